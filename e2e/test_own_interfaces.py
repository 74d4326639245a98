"""What becomes of the load balancer's own addresses while it runs: the public one is another (a
lease of DHCP's, a network with new numbers), or a card is, with its MAC address.

Once with the VIP that the LB has for itself, where the services move along, and once with one that
floats. All modes are there: pages by L4, echoes by L2, datagrams by L3, for which nodes take the
VIP.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from e2e import whole
from e2e.hosts import Hosts, LabHosts, lab_hosts, pid_of, verdicts, wait_for
from e2e.lab import Plan
from e2e.lab.files import toml_text
from e2e.lab.plan import PUBLIC, ROUTER, ROUTER_HOST
from e2e.test_routes import sh
from e2e.traffic import Result, Traffic, load_words

SERVICES = [
    {"name": "default", "port": 8080, "mode": "l4"},
    {"name": "echo", "port": 9000, "mode": "l2"},
    {"name": "udp", "port": 5300, "protocol": "udp", "mode": "l3"},
]
NEW = PUBLIC.address(77)
NEW_MAC = "02:00:5e:00:53:01"
RATE = 100
FOLLOWED_S = 15


@pytest.fixture(scope="module", params=["own", "floating"])
def hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("interfaces") / "extra.toml"
    extra.write_text(toml_text({"services": SERVICES}))
    lab = Plan(nodes=2, floating=request.param == "floating")
    with lab_hosts(lab, say, extra) as machines:
        yield machines


def requests_to(hosts: Hosts, vip: str) -> Traffic:
    return Traffic(hosts.start(hosts.client, *load_words(vip, RATE)))


def since_the_first_answer(requests: Traffic, changed: int) -> list[Result]:
    """What was sent once the first request was answered that ended after `changed` others."""
    seen = requests.results[changed:]
    answered_ms = min((each.ended_ms for each in seen if not each.error), default=float("inf"))
    return [each for each in seen if each.sent_ms > answered_ms]


def is_followed(requests: Traffic, changed: int) -> None:
    """Requests are answered again before long, and from then on without exception."""
    wait_for(
        lambda: len(since_the_first_answer(requests, changed)) > 3 * RATE,
        "requests to be answered again",
        FOLLOWED_S,
    )
    after = since_the_first_answer(requests, changed)
    assert not [each for each in after if each.error]


def all_arrives(hosts: Hosts, vip: str) -> None:
    whole.pages_and_a_download(hosts, vip)
    whole.upload(hosts, vip)
    for size in (40, 4000):
        whole.datagrams(hosts, vip, size)


def told(hosts: Hosts, lb: str) -> set[str]:
    """Where the services are, as the LB says it."""
    return {each["address"] for each in hosts.api(lb, "/v1/services")["services"]}


def taken(hosts: Hosts, node: str) -> set[str]:
    """The addresses that a node has on `lo`."""
    lines = hosts.run(node, "ip", "-oneline", "-4", "address", "show", "lo").stdout.splitlines()
    return {line.split()[3].partition("/")[0] for line in lines} - {"127.0.0.1"}


def test_the_public_address_is_another(hosts: LabHosts, lb: str) -> None:
    """Without a restart the services move along; a VIP that floats stays where it is."""
    floats = hosts.lab.plan.floating
    old = hosts.lab.plan.links(lb)[0].address
    processes = pid_of(hosts, lb, "gale:dataplane")
    ways = [(old, NEW), (NEW, old)]
    for gone, come in ways:
        vip = hosts.vip() if floats else come
        requests = requests_to(hosts, vip)
        wait_for(lambda: len(requests.results) > floats * RATE, "requests to begin")  # noqa: B023
        sh(
            hosts,
            lb,
            f"ip address del {gone}/24 dev pub0; ip address add {come}/24 dev pub0;"
            f" ip route replace default via {PUBLIC.address(ROUTER_HOST)} mtu 1500",
        )
        is_followed(requests, len(requests.results))
        requests.stop()
        wait_for(lambda: told(hosts, lb) == {vip}, "the services at their address")  # noqa: B023
        for node in hosts.nodes:
            wait_for(
                lambda: taken(hosts, node) == {vip},  # noqa: B023
                f"{node} to have {vip} alone",
                timeout_s=40,
            )
        all_arrives(hosts, vip)
        status = hosts.api(lb, "/v1/status")
        assert status["ready"], status
        assert not status["processes"]["dataplane"]["waiting_for"], status
    assert pid_of(hosts, lb, "gale:dataplane") == processes


@pytest.mark.parametrize("interface", ["pub0", "priv0"])
def test_a_mac_address_is_another(hosts: LabHosts, lb: str, interface: str) -> None:
    """The others learn at once where the machine's own addresses are, as from a kernel that tells
    them. Where floating ones are is for the LB to say.
    """
    before = json.loads(sh(hosts, lb, f"ip -json link show {interface}").stdout)[0]["address"]
    there = (hosts.client, ROUTER) if interface == "pub0" else (*hosts.nodes, ROUTER)
    requests = requests_to(hosts, hosts.vip())
    for mac in (NEW_MAC, before):
        changed = len(requests.results)
        wait_for(lambda: len(requests.results) > changed + RATE, "requests")  # noqa: B023
        own = next(each for each in hosts.lab.plan.links(lb) if each.network.interface == interface)
        sh(hosts, lb, f"ip link set {interface} address {mac}")
        for machine in there:
            hosts.run(machine, "ip", "neigh", "del", own.address, "dev", interface)
        is_followed(requests, len(requests.results))
    requests.stop()
    all_arrives(hosts, hosts.vip())
    by_xdp = verdicts(hosts, lb, "xdp_public")["l4_promoted"]
    whole.pages_and_a_download(hosts, hosts.vip())
    wait_for(
        lambda: verdicts(hosts, lb, "xdp_public")["l4_promoted"] > by_xdp + 10,
        "XDP to take frames to the new address",
    )
