"""What is attached follows the configuration from one start to the next, and nothing stays behind.

The tests build upon each other: replies by XDP, then by TC, then the private interface is a bridge
over the same cable, as on a hypervisor, and at last `gale detach`. Whatever is attached, requests
go on.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from e2e import whole
from e2e.hosts import (
    Hosts,
    LabHosts,
    lab_hosts,
    pid_of,
    read_config,
    verdicts,
    wait_for,
    write_config,
)
from e2e.lab import Plan
from e2e.lab.files import toml_text

MOVE_TO_BRIDGE = """
ip link add br0 type bridge stp_state 0 mcast_snooping 0
ip address flush dev priv0
ip link set priv0 master br0
ip link set br0 up
ip address add "$1" dev br0
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("attachment") / "extra.toml"
    extra.write_text(toml_text({"dataplane": {"reply_hook": "xdp"}}))
    with lab_hosts(Plan(nodes=2), say, extra) as machines:
        yield machines


def restart(hosts: Hosts, lb: str, *changes: tuple[str, str]) -> None:
    """Start the dataplane anew with another configuration; returns once it is ready."""
    text = read_config(hosts, lb)
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    write_config(hosts, lb, text)
    before = pid_of(hosts, lb, "gale:dataplane")
    hosts.supervisorctl(lb, "restart", "gale:dataplane")

    def is_ready() -> bool:
        status = hosts.api(lb, "/v1/status")
        process = status["processes"]["dataplane"]
        return bool(status["ready"] and process["alive"] and process["pid"] not in (None, before))

    wait_for(is_ready, "the dataplane to be ready")


def attached(hosts: Hosts, lb: str) -> set[tuple[str, str]]:
    """Interface and hook of every program, as bpftool sees them."""
    done = hosts.run(lb, "bpftool", "--json", "net", "show")
    hooks = json.loads(done.stdout)[0]
    return {(hook["devname"], kind) for kind in ("xdp", "tc") for hook in hooks[kind]}


def told(hosts: Hosts, lb: str) -> set[tuple[str, str]]:
    """The same, as the status has it."""
    hooks = hosts.api(lb, "/v1/status")["dataplane"]["hooks"]
    return {(hook["interface"], hook["program"][:3].strip("_")) for hook in hooks}


def only_these(hosts: Hosts, lb: str, wanted: set[tuple[str, str]]) -> None:
    wait_for(lambda: attached(hosts, lb) == told(hosts, lb) == wanted, f"{sorted(wanted)} alone")


def sent_by(hosts: Hosts, lb: str, carries: str) -> tuple[str, str]:
    """The interface that requests or replies leave by, and who sends them."""
    outputs: list[dict[str, Any]] = hosts.api(lb, "/v1/status")["dataplane"]["outputs"]
    (only,) = (each for each in outputs if each["carries"] == carries)
    return only["interface"], only["hook"]


def all_arrives(hosts: Hosts) -> None:
    whole.pages_and_a_download(hosts, hosts.vip())
    whole.upload(hosts, hosts.vip())
    whole.datagrams(hosts, hosts.vip(), 4000)


TWO_ARMS = {("pub0", "xdp"), ("pub0", "tc"), ("priv0", "tc")}


def test_replies_by_xdp(hosts: Hosts, lb: str) -> None:
    only_these(hosts, lb, TWO_ARMS | {("priv0", "xdp")})
    all_arrives(hosts)
    assert sent_by(hosts, lb, "replies") == ("pub0", "xdp")
    wait_for(lambda: verdicts(hosts, lb, "xdp_private")["l4_reply"] > 100, "replies by XDP")


def test_replies_by_tc_again(hosts: Hosts, lb: str) -> None:
    restart(hosts, lb, ('reply_hook = "xdp"', 'reply_hook = "tc"'))
    only_these(hosts, lb, TWO_ARMS)
    seen: list[int] = []
    for _ in range(2):
        before = verdicts(hosts, lb, "tc_private")["l4_reply"]
        all_arrives(hosts)
        # What is counted is told once a second, of all hooks at once.
        wait_for(
            lambda: verdicts(hosts, lb, "tc_private")["l4_reply"] > before + 10,  # noqa: B023
            "replies by TC",
        )
        seen.append(sum(verdicts(hosts, lb, "xdp_private").values()))
    assert seen[0] == seen[1], "the XDP program on the private side sees no packet any more"
    assert sent_by(hosts, lb, "replies") == ("pub0", "tc")


def test_the_private_interface_becomes_a_bridge(hosts: LabHosts, lb: str) -> None:
    address = hosts.lab.plan.links(lb)[1].address
    done = hosts.run(lb, "bash", "-c", MOVE_TO_BRIDGE, "move", f"{address}/24")
    assert done.returncode == 0, done.stderr
    restart(hosts, lb, ('net_interface_private = "priv0"', 'net_interface_private = "br0"'))
    only_these(hosts, lb, {("pub0", "xdp"), ("pub0", "tc"), ("br0", "tc")})
    wait_for(lambda: hosts.api(lb, "/v1/status")["nodes"]["up"] == 2, "both nodes up")
    all_arrives(hosts)
    assert sent_by(hosts, lb, "requests") == ("br0", "tc")
    wait_for(lambda: verdicts(hosts, lb, "xdp_public")["slow_output"] > 10, "XDP to have passed")


def test_detaching_takes_all(hosts: Hosts, lb: str) -> None:
    hosts.supervisorctl(lb, "stop", "gale:dataplane")
    done = hosts.run(lb, "gale", "detach")
    assert done.returncode == 0, done.stderr
    assert attached(hosts, lb) == set()
