"""An LB whose public interface takes no XDP: TC has all the work, and bulk passes in every mode.

Nobody's offloads are off: what reaches TC is merged, and its checksums are partial. Once all goes
through a VLAN whose tag the LB itself sees, and without which its replies reach nobody.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from e2e import whole
from e2e.hosts import Hosts, LabHosts, lab_hosts, verdicts, wait_for
from e2e.lab import Plan
from e2e.lab.files import toml_text
from e2e.lab.plan import SERVICES
from e2e.test_modes import UPLOAD


@pytest.fixture(scope="module", params=["l2", "l3", "l4", "l4 in a VLAN"])
def hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("vlan") / "extra.toml"
    ours = [{"name": one.name, "port": one.port, "protocol": one.protocol} for one in SERVICES]
    extra.write_text(toml_text({"services": [*ours, whole.IPERF]}))
    mode, _, vlan = request.param.partition(" in a ")
    lab = Plan(nodes=2, mode=mode, devices=("macvlan/veth",), vlan=bool(vlan))
    with lab_hosts(lab, say, extra) as machines:
        yield machines


def test_a_large_download_arrives_whole(hosts: Hosts) -> None:
    whole.large_download(hosts, hosts.vip())


def test_an_upload_arrives_whole(hosts: Hosts) -> None:
    done = hosts.run(hosts.client, "python3", "-c", UPLOAD, hosts.vip())
    assert done.stdout.strip() == "all echoed", done.stderr


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk(hosts: Hosts, direction: str) -> None:
    whole.bulk(hosts, hosts.vip(), direction)


def test_datagrams_are_answered_by_every_node(hosts: Hosts) -> None:
    seen = whole.exchanged(hosts, hosts.vip(), "--count", "100", "--bytes", "40")
    assert seen["lost"] == 0
    assert set(seen["answers"]) == set(hosts.nodes)


def test_tc_had_all_the_work(hosts: Hosts, lb: str) -> None:
    """Runs after the others. A packet of the wire is none longer than the wire's."""
    hooks = {hook["program"]: hook for hook in hosts.api(lb, "/v1/status")["dataplane"]["hooks"]}
    assert not hooks["xdp_public"]["attached"]
    assert hooks["tc_public"]["attached"]
    assert not verdicts(hosts, lb, "xdp_public")

    def counted() -> bool:
        services = hosts.api(lb, "/v1/services")["services"]
        seats = [seat for service in services for seat in service["nodes"]]
        packets = sum(seat["packets_in"] for seat in seats)
        size = sum(seat["bytes_in"] for seat in seats)
        return bool(packets > 1000 and size / packets <= 1514)

    wait_for(counted, "what came to be counted in packets of the wire")
