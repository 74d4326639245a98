"""One LB, one node and one SNAT address: its ports run short, and the alert says so.

An LB has 7,808 ports of a shared SNAT address, towards each server of each node; in any other lab
that would be tens of thousands of flows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from e2e.alerts import check, scrape
from e2e.hosts import LabHosts, lab_hosts, wait_for
from e2e.lab import Plan
from e2e.lab.files import toml_text
from e2e.lab.plan import SNAT_ADDRESSES, VIP

USED, CAPACITY = "gale_snat_ports_used{", "gale_snat_ports_capacity{"
FILLING = """
import socket, sys
place, first, count = (sys.argv[1], 5300), int(sys.argv[2]), int(sys.argv[3])
for port in range(first, first + count):
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.settimeout(1)
    own.bind(("", port))
    own.connect(place)
    for _ in range(5):
        own.send(b"who")
        try:
            own.recv(64)
            break
        except TimeoutError:
            pass
    else:
        sys.exit(f"no answer to port {port}")
    own.close()
"""
FIRST_PORT, FLOWS = 10_000, 6_600
FILLING_S = 200
ENOUGH = 0.82
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("ports") / "extra.toml"
    extra.write_text(
        toml_text(
            {
                "dataplane": {"udp_one_sided": "5m", "udp": "5m"},
                "virtual_ips": [{"address": VIP, "snat_addresses": list(SNAT_ADDRESSES[:1])}],
                "services": [{"name": "udp", "port": 5300, "protocol": "udp"}],
            }
        )
    )
    with lab_hosts(Plan(nodes=1), say, extra) as machines:
        yield machines


def test_the_ports_of_the_one_snat_address_run_short(hosts: LabHosts) -> None:
    capacity = wait_for(lambda: scrape(hosts).sum(CAPACITY), "the ports to be counted")
    assert ENOUGH * capacity < FLOWS < capacity
    check(scrape(hosts), [])
    words = ("python3", "-c", FILLING, hosts.vip(), str(FIRST_PORT), str(FLOWS))
    filling = hosts.start(hosts.client, *words)
    _, complaint = filling.communicate(timeout=FILLING_S)
    assert filling.returncode == 0, complaint
    short = wait_for(
        lambda: seen if (seen := scrape(hosts)).sum(USED) > ENOUGH * capacity else None,
        "the flows to be counted",
        timeout_s=60,
    )
    check(short, ["GaleSnatPortsShort"])
