"""Services of different modes side by side, on two LBs, over links for long packets.

Each LB is a quorum of its own here and its public address its VIP, so both serve at once, and each
node returns directly for both. With an MTU of 9000 a packet may come to XDP in several pieces, and
what needs fragments elsewhere travels whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.hosts import LabHosts, lab_hosts, wait_for
from e2e.lab import Plan
from e2e.lab.files import toml_text

SERVICES = [
    {"name": "default", "port": 8080, "mode": "l2"},
    {"name": "echo", "port": 9000, "mode": "l3", "encap": "gue"},
    {"name": "udp", "port": 5300, "protocol": "udp", "mode": "l4"},
    {"name": "web", "port": 80, "node_port": 8080, "mode": "l4"},
    {"name": "talk", "port": 7777, "mode": "l3", "encap": "ipip", "affinity": "client"},
]
LBS = ("lb-0", "lb-1")
SUM_CHECK = """
fetch() { curl --silent --noproxy '*' "http://$1/1m.bin$2"; }
[ "$(fetch "$1" | sha256sum | cut -c-64)" = "$(fetch "$1" .sha256 | cut -c-64)" ] && echo whole
"""
ECHO_CLIENT = """
import os, socket, sys, threading
names = set()
for _ in range(20):
    flow = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
    stream = flow.makefile("rb")
    names.add(stream.readline().decode().strip())
    sent = os.urandom(200_000)
    threading.Thread(target=flow.sendall, args=[sent]).start()
    assert stream.read(len(sent)) == sent
print(*names)
"""
UDP_CLIENT = Path(__file__).with_name("datagrams.py").read_text()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("mixed") / "extra.toml"
    extra.write_text(toml_text({"services": SERVICES}))
    with lab_hosts(Plan(lbs=len(LBS), nodes=2, mtu=9000, floating=False), say, extra) as machines:
        yield machines


@pytest.fixture(params=LBS)
def vip(request: pytest.FixtureRequest, hosts: LabHosts) -> str:
    return hosts.lab.plan.vip(request.param)


@pytest.mark.parametrize("port", [8080, 80])
def test_pages_by_two_services_that_lead_to_one_server(
    hosts: LabHosts, vip: str, port: int
) -> None:
    done = hosts.run(hosts.client, "bash", "-c", SUM_CHECK, "check", f"{vip}:{port}")
    assert done.stdout.strip() == "whole", done.stderr


@pytest.mark.parametrize(("port", "nodes"), [(9000, 2), (7777, 1)])
def test_long_packets_in_outer_headers(hosts: LabHosts, vip: str, port: int, nodes: int) -> None:
    """The second service keeps a client with one node."""
    done = hosts.run(hosts.client, "python3", "-c", ECHO_CLIENT, vip, str(port))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == nodes


@pytest.mark.parametrize("size", [40, 8000, 20_000])
def test_datagrams_whole_and_in_fragments(hosts: LabHosts, vip: str, size: int) -> None:
    options = ["--count", "50", "--bytes", str(size)]
    done = hosts.run(hosts.client, "python3", "-c", UDP_CLIENT, vip, "5300", *options)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["lost"] == 0
    assert set(seen["answers"]) == set(hosts.nodes)


@pytest.mark.parametrize("lb", LBS)
def test_only_what_is_of_mode_l4_comes_back_by_the_lb(hosts: LabHosts, lb: str) -> None:
    """Runs after the tests above, so every service has carried something."""

    def carried(direction: str) -> dict[str, int]:
        services = hosts.api(lb, "/v1/services")["services"]
        return {
            service["name"]: sum(seat[f"packets_{direction}"] for seat in service["nodes"])
            for service in services
        }

    wait_for(lambda: all(carried("in").values()), "every service to have carried something")
    back = {name for name, packets in carried("out").items() if packets}
    assert back == {service["name"] for service in SERVICES if service["mode"] == "l4"}
