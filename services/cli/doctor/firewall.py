"""Whether this machine's own packet filter lets in whom it should.

The programs of an LB run before it, so it stops no client. But what Gale's processes listen on goes
by way of the kernel: nodes, the other LBs, and whoever asks the API.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from services.cli.doctor.finding import Finding, Findings, Level

TIMEOUT_S = 5.0


def read_ruleset() -> list[dict[str, Any]] | None:
    """nftables' rules, those that iptables made among them; None: nobody can tell."""
    nft = shutil.which("nft")
    if nft is None:
        return None
    try:
        told = subprocess.run(
            [nft, "-j", "list", "ruleset"], capture_output=True, timeout=TIMEOUT_S, check=True
        )
        rules: list[dict[str, Any]] = json.loads(told.stdout)["nftables"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
    return rules


def firewall_findings(
    ports: Mapping[int, str], ruleset: list[dict[str, Any]] | None = None
) -> Findings:
    """`ports`: who connects to each."""
    rules = read_ruleset() if ruleset is None else ruleset
    if rules is None:
        return
    closed = [
        each["chain"]
        for each in rules
        if "chain" in each
        and each["chain"].get("hook") == "input"
        and each["chain"].get("policy") == "drop"
    ]
    named = _named_ports([each["rule"]["expr"] for each in rules if "rule" in each])
    for port, who in sorted(ports.items()):
        if closed and port not in named:
            chain = closed[0]
            where = f"{chain['family']} {chain['table']} {chain['name']}"
            yield Finding(
                Level.WARN,
                "firewall",
                f"the chain {where} drops what no rule accepts, and none names tcp/{port}: {who}"
                " may be kept out",
                f"nft add rule {where} tcp dport {port} accept",
            )
        else:
            yield Finding(Level.OK, "firewall", f"tcp/{port} ({who}) is not closed")


def _named_ports(value: Any) -> set[int]:
    """Every number in the rules that may be a port, ranges and sets unfolded."""
    if isinstance(value, bool):
        return set()
    if isinstance(value, int):
        return {value}
    if isinstance(value, dict):
        if isinstance(value.get("range"), list) and all(
            isinstance(end, int) for end in value["range"]
        ):
            first, last = value["range"]
            return set(range(first, min(last, 65_535) + 1))
        return set().union(*map(_named_ports, value.values()))
    return set().union(*map(_named_ports, value)) if isinstance(value, list) else set()
