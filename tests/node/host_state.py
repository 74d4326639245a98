"""All of a network namespace's state that direct return could change, to be compared."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

SETTINGS = ("arp_ignore", "arp_announce", "rp_filter")
FLEETING = ("preferred_life_time", "valid_life_time")


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ip(*words: str) -> Any:
    return json.loads(tool("ip", "-j", "-d", *words) or "[]")


def snapshot() -> dict[str, Any]:
    """Of the thread's namespace."""
    names = [name for _, name in socket.if_nameindex()]
    return {
        "addresses": [
            {key: value for key, value in entry.items() if key not in FLEETING}
            for link in ip("-4", "address")
            for entry in link["addr_info"]
        ],
        "rules": ip("rule"),
        "routes": sorted(map(str, ip("-4", "route", "show", "table", "all"))),
        "xdp": {link["ifname"]: link.get("xdp") for link in ip("link")},
        "qdiscs": tool("tc", "qdisc", "show"),
        "filters": {name: tool("tc", "filter", "show", "dev", name, "ingress") for name in names},
        "settings": {
            f"{name}/{setting}": read_setting(f"{name}/{setting}")
            for name in ("all", *names)
            for setting in SETTINGS
        },
    }


def read_setting(name: str) -> str:
    return (Path("/proc/sys/net/ipv4/conf") / name).read_text().strip()


def write_setting(name: str, value: int) -> None:
    (Path("/proc/sys/net/ipv4/conf") / name).write_text(str(value))
