"""Next hops as a real kernel has them: two namespaces, a veth pair, real ARP."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pyroute2 import netns

from services.dataplane import netlink
from services.dataplane.netlink import NextHopMonitor, decode
from services.dataplane.nexthop import (
    NO_MAC,
    NUD_PERMANENT,
    NUD_STALE,
    REFRESH_MS,
    Link,
    LinkGone,
    Neighbour,
    NextHop,
)

OWN, NODE, SECOND = "10.9.0.1", "10.9.0.2", "10.9.0.3"
PATIENCE_S = 30


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Wire:
    """Two machines and the wire between them; the node has two addresses."""

    lb: str
    node: str

    def ip(self, who: str, command: str) -> str:
        return run("ip", "-n", who, *command.split())

    def ip_lb(self, command: str) -> str:
        return self.ip(self.lb, command)

    def ip_node(self, command: str) -> str:
        return self.ip(self.node, command)

    def sysctl(self, who: str, *settings: str) -> None:
        run("nsenter", f"--net=/run/netns/{who}", "sysctl", "-qw", *settings)

    def mac(self, who: str, interface: str = "w0") -> str:
        found: str = json.loads(self.ip(who, f"-j link show {interface}"))[0]["address"]
        return found

    def neighbour(self, address: str = NODE) -> list[str]:
        """The kernel's own states for it."""
        found: list[dict[str, Any]] = json.loads(self.ip_lb(f"-j neigh show {address}") or "[]")
        return [state for entry in found for state in entry["state"]]


@dataclass
class Watch:
    """The monitor in a poll loop, with a clock that can be put forward."""

    monitor: NextHopMonitor
    ahead_ms: int = 0

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000 + self.ahead_ms

    def until(self, address: str, is_so: Callable[[NextHop | None], bool]) -> NextHop | None:
        poller = select.poll()
        poller.register(self.monitor, select.POLLIN)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            hops = self.monitor.serve(self.now_ms())
            if address in hops and is_so(hops[address]):
                return hops[address]
            next_ms = self.monitor.next_ms(self.now_ms())
            wait_s = 1.0 if next_ms is None else (next_ms - self.now_ms()) / 1000
            # Not select(2): it takes no descriptor above 1,023.
            poller.poll(max(0.0, min(wait_s, 0.1)) * 1000)
        pytest.fail(f"still {self.monitor.serve(self.now_ms())}")

    def until_reachable(self, address: str, **wanted: object) -> NextHop:
        """Wait for a next hop with these fields."""

        def is_so(hop: NextHop | None) -> bool:
            return hop is not None and all(getattr(hop, k) == v for k, v in wanted.items())

        hop = self.until(address, is_so)
        assert hop is not None
        return hop

    def until_unreachable(self, address: str) -> None:
        self.until(address, lambda hop: hop is None)

    def until_mac(self, address: str, mac: str | None) -> NextHop:
        """Wait until the fast path would send to this MAC, or to none."""
        return self.until_reachable(address, destination_mac=mac)


@pytest.fixture
def wire() -> Iterator[Wire]:
    unique = f"{os.getpid()}-{time.monotonic_ns() % 1_000_000}"
    wire = Wire(f"gale-nh-lb-{unique}", f"gale-nh-node-{unique}")
    try:
        run("ip", "netns", "add", wire.lb)
        run("ip", "netns", "add", wire.node)
        for who in (wire.lb, wire.node):
            # The end of duplicate address detection is a notification nobody here has asked for.
            wire.sysctl(who, "net.ipv6.conf.all.disable_ipv6=1")
            wire.ip(who, "link set lo up")
        wire.ip_lb(f"link add w0 type veth peer name w0 netns {wire.node}")
        wire.ip_lb(f"address add {OWN}/24 dev w0")
        for address in (NODE, SECOND):
            wire.ip_node(f"address add {address}/24 dev w0")
        wire.ip_lb("link set w0 up")
        wire.ip_node("link set w0 up")
        # A neighbour that does not answer is given up in 0.1 s instead of 8.
        prefix = "net.ipv4.neigh.w0"
        quick = ("mcast_solicit=1", "ucast_solicit=1", "retrans_time_ms=100")
        wire.sysctl(wire.lb, *(f"{prefix}.{item}" for item in quick))
        wire.sysctl(wire.lb, f"{prefix}.delay_first_probe_time=0")
        yield wire
    finally:
        for name in (wire.lb, wire.node):
            subprocess.run(("ip", "netns", "delete", name), check=False)


@pytest.fixture
def watch(wire: Wire) -> Iterator[Watch]:
    netns.pushns(wire.lb)
    try:
        monitor = NextHopMonitor()
    finally:
        netns.popns()
    yield Watch(monitor)
    monitor.close()


def test_an_address_nobody_has_spoken_to_is_resolved(wire: Wire, watch: Watch) -> None:
    watch.monitor.watch(frozenset({NODE}))
    hop = watch.until_mac(NODE, wire.mac(wire.node))
    index = json.loads(wire.ip_lb("-j link show w0"))[0]["ifindex"]
    assert hop == NextHop(index, wire.mac(wire.lb), wire.mac(wire.node), 1500, None, OWN)


def test_an_address_of_this_machine_says_so_and_its_loopback_is_nobody_s(
    wire: Wire, watch: Watch
) -> None:
    watch.monitor.watch(frozenset({OWN, "127.0.0.1", "127.1.2.3"}))
    hop = watch.until_reachable(OWN, own=True)
    assert (hop.destination_mac, hop.mtu, hop.source) == (None, 65_535, OWN)
    assert watch.monitor.serve(0)["127.0.0.1"] is None
    assert watch.monitor.serve(0)["127.1.2.3"] is None
    wire.ip_lb(f"address del {OWN}/24 dev w0")
    watch.until_unreachable(OWN)


def test_what_the_kernel_knew_before_is_there_at_once(wire: Wire, watch: Watch) -> None:
    wire.ip_lb(f"neigh replace {NODE} dev w0 lladdr {wire.mac(wire.node)} nud stale")
    netns.pushns(wire.lb)
    try:
        late = NextHopMonitor()
    finally:
        netns.popns()
    late.watch(frozenset({NODE}))
    hop = late.serve(0)[NODE]
    late.close()
    assert hop is not None
    assert hop.destination_mac == wire.mac(wire.node)


def test_flushed_neighbours_are_unset_and_resolved_again(wire: Wire, watch: Watch) -> None:
    watch.monitor.watch(frozenset({NODE, SECOND}))
    mac = wire.mac(wire.node)
    watch.until_mac(NODE, mac)
    watch.until_mac(SECOND, mac)
    wire.ip_node("link set w0 arp off")
    wire.ip_lb("neigh flush all")
    watch.until_mac(NODE, None)
    watch.until_mac(SECOND, None)
    wire.ip_node("link set w0 arp on")
    watch.until_mac(NODE, mac)
    watch.until_mac(SECOND, mac)


def test_a_stale_neighbour_is_confirmed(wire: Wire, watch: Watch) -> None:
    watch.monitor.watch(frozenset({NODE}))
    watch.until_mac(NODE, wire.mac(wire.node))
    wire.ip_lb(f"neigh change {NODE} dev w0 nud stale")
    watch.ahead_ms += REFRESH_MS
    watch.until(NODE, lambda _: wire.neighbour() == ["REACHABLE"])


def test_a_stale_neighbour_that_is_gone_is_unset(wire: Wire, watch: Watch) -> None:
    watch.monitor.watch(frozenset({NODE}))
    watch.until_mac(NODE, wire.mac(wire.node))
    wire.ip_node(f"address delete {NODE}/24 dev w0")
    wire.ip_lb(f"neigh change {NODE} dev w0 nud stale")
    watch.ahead_ms += REFRESH_MS
    watch.until_mac(NODE, None)


def test_another_mac_is_followed(wire: Wire, watch: Watch) -> None:
    watch.monitor.watch(frozenset({NODE}))
    watch.until_mac(NODE, wire.mac(wire.node))
    wire.ip_node("link set w0 address 02:00:00:00:99:99")
    wire.ip_lb(f"neigh change {NODE} dev w0 nud stale")
    watch.ahead_ms += REFRESH_MS
    watch.until_mac(NODE, "02:00:00:00:99:99")


def test_a_permanent_neighbour_stays_permanent(wire: Wire, watch: Watch) -> None:
    wire.ip_lb(f"neigh replace {NODE} dev w0 lladdr 02:00:00:00:00:aa nud permanent")
    watch.monitor.watch(frozenset({NODE, SECOND}))
    for _ in range(3):
        watch.until_mac(NODE, "02:00:00:00:00:aa")
        watch.until_mac(SECOND, wire.mac(wire.node))
        watch.ahead_ms += REFRESH_MS
    assert wire.neighbour() == ["PERMANENT"]


def test_beyond_a_gateway(wire: Wire, watch: Watch) -> None:
    far = "192.0.2.7"
    watch.monitor.watch(frozenset({far}))
    watch.until_unreachable(far)
    wire.ip_lb(f"route add 192.0.2.0/24 via {NODE} mtu 1400")
    hop = watch.until_mac(far, wire.mac(wire.node))
    assert (hop.gateway, hop.mtu) == (NODE, 1400)
    wire.ip_lb(f"route add 192.0.2.0/28 via {SECOND}")
    watch.until_reachable(far, gateway=SECOND)
    wire.ip_lb("route delete 192.0.2.0/28")
    watch.until_reachable(far, gateway=NODE)
    wire.ip_lb("route delete 192.0.2.0/24")
    watch.until_unreachable(far)


def test_a_default_route(wire: Wire, watch: Watch) -> None:
    far = "192.0.2.7"
    watch.monitor.watch(frozenset({far}))
    watch.until_unreachable(far)
    wire.ip_lb(f"route add default via {NODE}")
    watch.until_reachable(far, gateway=NODE)


def test_a_rule_changes_the_way(wire: Wire, watch: Watch) -> None:
    far = "192.0.2.7"
    wire.ip_lb(f"route add 192.0.2.0/24 via {NODE}")
    wire.ip_lb(f"route add 192.0.2.0/24 via {SECOND} table 100")
    watch.monitor.watch(frozenset({far}))
    watch.until_reachable(far, gateway=NODE)
    wire.ip_lb("rule add to 192.0.2.0/24 table 100")
    watch.until_reachable(far, gateway=SECOND)


def test_link_down_up_and_its_mtu(wire: Wire, watch: Watch) -> None:
    watch.monitor.watch(frozenset({NODE}))
    watch.until_mac(NODE, wire.mac(wire.node))
    wire.ip_lb("link set w0 down")
    watch.until_unreachable(NODE)
    wire.ip_lb("link set w0 up")
    watch.until_mac(NODE, wire.mac(wire.node))
    wire.ip_lb("link set w0 mtu 1300")
    watch.until_reachable(NODE, mtu=1300)


def test_a_link_that_comes_after_the_watch(wire: Wire, watch: Watch) -> None:
    watch.monitor.watch(frozenset({"10.9.1.2"}))
    watch.until_unreachable("10.9.1.2")
    wire.ip_lb(f"link add w1 type veth peer name w1 netns {wire.node}")
    wire.ip_node("address add 10.9.1.2/24 dev w1")
    wire.ip_node("link set w1 up")
    wire.ip_lb("address add 10.9.1.1/24 dev w1")
    wire.ip_lb("link set w1 up")
    hop = watch.until_mac("10.9.1.2", wire.mac(wire.node, "w1"))
    assert hop.source == "10.9.1.1"
    wire.ip_lb("link delete w1")
    watch.until_unreachable("10.9.1.2")


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_routes_that_lead_nowhere(wire: Wire, watch: Watch, kind: str) -> None:
    wire.ip_lb(f"route add {kind} 192.0.2.0/24")
    watch.monitor.watch(frozenset({"192.0.2.7", "fd00::7"}))
    hops = watch.monitor.serve(0)
    assert hops == {"192.0.2.7": None, "fd00::7": None}


def test_a_lost_notification_is_made_good(wire: Wire, watch: Watch) -> None:
    watch.monitor.watch(frozenset({NODE, SECOND}))
    watch.until_mac(NODE, wire.mac(wire.node))
    watch.until_mac(SECOND, wire.mac(wire.node))
    notifications = watch.monitor._notifications
    notifications.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    batch = "".join(
        f"neigh replace 10.9.0.{i} dev w0 lladdr 02:00:00:00:{j:02x}:{i:02x} nud stale\n"
        for j in range(3)
        for i in range(20, 220)
    )
    last = f"neigh replace {NODE} dev w0 lladdr 02:00:00:00:00:bb nud permanent\n"
    last += f"neigh delete {SECOND} dev w0\n"
    wire.ip_node("link set w0 arp off")
    subprocess.run(("ip", "-n", wire.lb, "-batch", "-"), input=batch + last, text=True, check=True)
    hops = watch.monitor.serve(watch.now_ms())
    assert watch.monitor.resyncs == 1
    macs = {address: hop and hop.destination_mac for address, hop in hops.items()}
    assert macs == {NODE: "02:00:00:00:00:bb", SECOND: None}
    wire.ip_lb(f"neigh replace {NODE} dev w0 lladdr 02:00:00:00:00:cc nud permanent")
    watch.until_mac(NODE, "02:00:00:00:00:cc")


def test_many_unresolved_at_once(wire: Wire, watch: Watch) -> None:
    absent = frozenset(f"10.9.0.{i}" for i in range(20, 220))
    watch.monitor.watch(absent | {NODE})
    watch.until_mac(NODE, wire.mac(wire.node))
    hops = watch.monitor.serve(watch.now_ms())
    assert {address for address, hop in hops.items() if hop and hop.destination_mac} == {NODE}


def test_a_bridge_s_own_messages_mean_nothing() -> None:
    link = netlink.LINK.pack(socket.AF_BRIDGE, 1, 3, 1, 0)
    assert decode(netlink.RTM_DELLINK, link) is None
    assert decode(netlink.RTM_NEWLINK, link) is None
    station = netlink.NEIGHBOUR.pack(socket.AF_BRIDGE, 3, NUD_PERMANENT, 0, 0)
    address = netlink.attribute(netlink.NDA_DST, bytes(4))
    assert decode(netlink.RTM_NEWNEIGH, station + address) is None


def test_what_is_deleted_is_gone_whatever_it_was() -> None:
    link = netlink.LINK.pack(socket.AF_UNSPEC, 1, 3, netlink.IFF_UP, 0)
    assert decode(netlink.RTM_DELLINK, link) == LinkGone(3)
    stale = netlink.NEIGHBOUR.pack(socket.AF_INET, 3, NUD_STALE, 0, 0)
    address = netlink.attribute(netlink.NDA_DST, socket.inet_aton(NODE))
    assert decode(netlink.RTM_DELNEIGH, stale + address) == Neighbour(3, NODE, None, 0)


def test_a_link_is_up_if_it_is_set_up() -> None:
    running = 0x40
    for flags, up in ((netlink.IFF_UP, True), (running, False)):
        link = netlink.LINK.pack(socket.AF_UNSPEC, 1, 3, flags, 0)
        assert decode(netlink.RTM_NEWLINK, link) == Link(3, NO_MAC, 0, up)


def test_an_answer_that_came_too_late_is_not_taken_for_another(wire: Wire, watch: Watch) -> None:
    body = netlink.LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
    watch.monitor._requests.send(netlink.message(netlink.RTM_GETLINK, flags, 99_999, body))
    watch.monitor.watch(frozenset({NODE}))
    watch.until_mac(NODE, wire.mac(wire.node))


def test_lengths_of_zero_are_an_end() -> None:
    assert list(netlink.split(bytes(64))) == []
    assert netlink.attributes(bytes(64)) == {}


@pytest.mark.parametrize("length", range(40))
def test_cut_messages_are_not_misread(length: int) -> None:
    """The kernel sends none; what is left of one must still not run in circles."""
    body = netlink.use_request(3, NODE)
    whole = netlink.message(netlink.RTM_NEWNEIGH, 0, 1, body)
    assert len(list(netlink.split(whole[:length]))) <= 1
    assert len(netlink.attributes(whole[:length])) <= length
