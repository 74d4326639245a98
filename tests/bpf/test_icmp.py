"""ICMP errors find the flow they are about, in both directions, and speak its addresses."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from tests.bpf.harness import ethernet, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    NODE,
    PUBLIC,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    ROUTER,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    is_xdp,
    to_client,
    to_node,
)

KINDS = {
    "network unreachable": (3, 0, 0),
    "port unreachable": (3, 3, 0),
    "fragmentation needed": (3, 4, 1280),
    "administratively prohibited": (3, 13, 0),
    "time exceeded": (11, 0, 0),
    "reassembly time exceeded": (11, 1, 0),
    "parameter problem": (12, 0, 0),
}
QUOTES = {"28 bytes": 28, "all of it": 2000, "an odd number of bytes": 61}


def error(source: str, destination: str, quoted: bytes, kind: str, **fields: Any) -> bytes:
    number, code, mtu = KINDS[kind]
    message = ICMP(type=number, code=code, nexthopmtu=mtu)
    return ethernet(IP(src=source, dst=destination, **fields) / message / Raw(quoted))


def with_check_of(quoted: bytes, original: bytes, at: int) -> bytes:
    """The quoted transport checksum is left as it was: of TCP's it is often not even there."""
    return quoted[:at] + original[at : at + 2] + quoted[at + 2 :]


@pytest.fixture
def connection(scene: Scene) -> Connection:
    scene.service("l4")
    return Connection(scene).establish()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_to_the_node(scene: Scene, connection: Connection, hook: str, kind: str) -> None:
    """About what the client saw coming from the VIP; it becomes what the node has sent."""
    seen = tcp(SERVICE, CLIENT, "A", bytes(99), ttl=60)[14:]
    sent = with_check_of(tcp(NODE, connection.source, "A", bytes(99), ttl=60)[14:], seen, 36)
    packet = error(ROUTER, VIP, seen, kind)
    out = error(ROUTER, NODE[0], sent, kind, ttl=63)
    scene.expect(hook, packet, "icmp_to_node", to_node(hook, out))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", REPLY_HOOKS)
def test_to_the_client(scene: Scene, connection: Connection, hook: str, kind: str) -> None:
    seen = tcp(connection.source, NODE, "A", bytes(99), ttl=60)[14:]
    sent = with_check_of(tcp(CLIENT, SERVICE, "A", bytes(99), ttl=60)[14:], seen, 36)
    packet = error("10.81.0.254", SNAT, seen, kind)
    out = error("10.81.0.254", CLIENT_ADDRESS, sent, kind, ttl=63)
    scene.expect(hook, packet, "icmp_to_client", to_client(hook, out))


@pytest.mark.parametrize("size", QUOTES.values(), ids=list(QUOTES))
@pytest.mark.parametrize("hook", [*REQUEST_HOOKS, *REPLY_HOOKS])
def test_however_much_is_quoted(scene: Scene, connection: Connection, hook: str, size: int) -> None:
    payload = bytes(range(200))
    node_side = tcp(NODE, connection.source, "A", payload)[14:]
    client_side = tcp(SERVICE, CLIENT, "A", payload)[14:]
    if hook in REPLY_HOOKS:
        node_side = tcp(connection.source, NODE, "A", payload)[14:]
        client_side = tcp(CLIENT, SERVICE, "A", payload)[14:]
        packet = error("10.81.0.254", SNAT, node_side[:size], "time exceeded")
        quoted = with_check_of(client_side, node_side, 36)[:size]
        out = error("10.81.0.254", CLIENT_ADDRESS, quoted, "time exceeded", ttl=63)
        scene.expect(hook, packet, "icmp_to_client", to_client(hook, out))
    else:
        packet = error(ROUTER, VIP, client_side[:size], "time exceeded")
        quoted = with_check_of(node_side, client_side, 36)[:size]
        out = error(ROUTER, NODE[0], quoted, "time exceeded", ttl=63)
        scene.expect(hook, packet, "icmp_to_node", to_node(hook, out))


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_the_client_itself_becomes_the_address_its_node_knows(
    scene: Scene, connection: Connection, hook: str
) -> None:
    seen = tcp(SERVICE, CLIENT, "A")[14:]
    sent = with_check_of(tcp(NODE, connection.source, "A")[14:], seen, 36)
    packet = error(CLIENT_ADDRESS, VIP, seen, "port unreachable")
    out = error(SNAT, NODE[0], sent, "port unreachable", ttl=63)
    scene.expect(hook, packet, "icmp_to_node", to_node(hook, out))


@pytest.mark.parametrize("hook", REPLY_HOOKS)
def test_the_node_itself_becomes_the_vip(scene: Scene, connection: Connection, hook: str) -> None:
    seen = tcp(connection.source, NODE, "A")[14:]
    sent = with_check_of(tcp(CLIENT, SERVICE, "A")[14:], seen, 36)
    packet = error(NODE[0], SNAT, seen, "administratively prohibited")
    out = error(VIP, CLIENT_ADDRESS, sent, "administratively prohibited", ttl=63)
    scene.expect(hook, packet, "icmp_to_client", to_client(hook, out))


@pytest.mark.parametrize("hook", REPLY_HOOKS)
def test_a_closed_udp_port(scene: Scene, hook: str) -> None:
    """The flow is half-open still: nothing but this error ever answers."""
    scene.service("l4", protocol="udp")
    source = (SNAT, scene.send("xdp_public", udp(CLIENT, SERVICE, b"q")).ports[0])
    seen = udp(source, NODE, b"q", ttl=63)[14:]
    sent = with_check_of(udp(CLIENT, SERVICE, b"q", ttl=63)[14:], seen, 26)
    packet = error(NODE[0], SNAT, seen, "port unreachable")
    out = error(VIP, CLIENT_ADDRESS, sent, "port unreachable", ttl=63)
    scene.expect(hook, packet, "icmp_to_client", to_client(hook, out))


def test_on_one_arm(one_arm: Scene) -> None:
    one_arm.service("l4")
    one_arm.seat(ifindex=PUBLIC)
    connection = Connection(one_arm)
    connection.syn()
    seen = tcp(connection.source, NODE, "S", seq=100)[14:42]
    packet = error(NODE[0], SNAT, seen, "port unreachable")
    outcome = one_arm.expect("tc_public", packet, "icmp_to_client")
    assert outcome.scapy[IP].dst == CLIENT_ADDRESS


def _quoting(**fields: Any) -> bytes:
    quoted = IP(tcp(SERVICE, CLIENT, "A", bytes(20))[14:])
    for name, value in fields.items():
        setattr(quoted, name, value)
    return bytes(quoted)


ANSWER = tcp(SERVICE, CLIENT, "A", bytes(20))[14:]
OTHERS = {
    "echo request": ethernet(IP(src=CLIENT_ADDRESS, dst=VIP) / ICMP(type=8) / Raw(ANSWER)),
    "echo reply": ethernet(IP(src=CLIENT_ADDRESS, dst=VIP) / ICMP(type=0) / Raw(ANSWER)),
    "source quench": ethernet(IP(src=CLIENT_ADDRESS, dst=VIP) / ICMP(type=4) / Raw(ANSWER)),
    "redirect": ethernet(IP(src=CLIENT_ADDRESS, dst=VIP) / ICMP(type=5) / Raw(ANSWER)),
    "quotes IPv6": error(ROUTER, VIP, b"\x65" + ANSWER[1:], "time exceeded"),
    "quotes options": error(ROUTER, VIP, b"\x46" + ANSWER[1:], "time exceeded"),
    "quotes another protocol": error(ROUTER, VIP, _quoting(proto=50), "time exceeded"),
    "quotes a later fragment": error(ROUTER, VIP, _quoting(frag=8), "time exceeded"),
    "quotes no ports": error(ROUTER, VIP, ANSWER[:20], "time exceeded"),
    "quotes half a port": error(ROUTER, VIP, ANSWER[:23], "time exceeded"),
    "is addressed to another": error(ROUTER, "10.80.0.101", ANSWER, "time exceeded"),
    "is a fragment itself": error(ROUTER, VIP, ANSWER, "time exceeded", flags="MF"),
    "has options itself": error(ROUTER, VIP, ANSWER, "time exceeded", options=[b"\x01\x01\x01\0"]),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_what_is_no_error_about_a_flow_passes(
    scene: Scene, connection: Connection, hook: str, name: str
) -> None:
    scene.expect(hook, OTHERS[name], "pass_icmp_other")


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_about_no_flow_of_the_service(scene: Scene, connection: Connection, hook: str) -> None:
    quoted = tcp(SERVICE, (CLIENT_ADDRESS, 1), "A")[14:]
    scene.expect(hook, error(ROUTER, VIP, quoted, "time exceeded"), "pass_icmp_other")


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_about_no_service(scene: Scene, connection: Connection, hook: str) -> None:
    quoted = tcp((VIP, 22), CLIENT, "A")[14:]
    scene.expect(hook, error(ROUTER, VIP, quoted, "time exceeded"), "pass_icmp_other")


@pytest.mark.parametrize("hook", REPLY_HOOKS)
def test_about_no_reply(scene: Scene, connection: Connection, hook: str) -> None:
    quoted = tcp((SNAT, 22), NODE, "A")[14:]
    scene.expect(hook, error(NODE[0], SNAT, quoted, "time exceeded"), "pass_icmp_other")


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestTheWayToTheNode:
    PACKET = error(ROUTER, VIP, ANSWER, "time exceeded")

    def test_time_to_live(self, scene: Scene, connection: Connection, hook: str) -> None:
        scene.expect(hook, error(ROUTER, VIP, ANSWER, "time exceeded", ttl=1), "drop_ttl")

    def test_unresolved(self, scene: Scene, connection: Connection, hook: str) -> None:
        scene.seat(flags=2)
        scene.expect(hook, self.PACKET, "slow_next_hop" if is_xdp(hook) else "icmp_to_node")

    def test_no_route(self, scene: Scene, connection: Connection, hook: str) -> None:
        scene.seat(flags=2, ifindex=0)
        scene.expect(hook, self.PACKET, "slow_next_hop" if is_xdp(hook) else "drop_no_route")

    def test_too_long(self, scene: Scene, connection: Connection, hook: str) -> None:
        scene.seat(mtu=60)
        packet = error(ROUTER, VIP, ANSWER, "time exceeded", flags="DF")
        scene.expect(hook, packet, "drop_too_big")

    def test_a_wrong_checksum_stays_wrong(
        self, scene: Scene, connection: Connection, hook: str
    ) -> None:
        packet = self.PACKET[:36] + b"\0\0" + self.PACKET[38:]
        good = scene.send(hook, self.PACKET).packet
        out = scene.send(hook, packet).packet
        assert out[36:38] != good[36:38]
        assert out[:36] + out[38:] == good[:36] + good[38:]


@pytest.mark.parametrize("hook", REPLY_HOOKS)
def test_time_to_live_on_the_way_back(scene: Scene, connection: Connection, hook: str) -> None:
    seen = tcp(connection.source, NODE, "A")[14:]
    packet = error(NODE[0], SNAT, seen, "time exceeded", ttl=1)
    scene.expect(hook, packet, "drop_ttl")
