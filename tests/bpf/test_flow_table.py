"""Places of the flow table: who gets one, who gives one up, and what no flood takes away.

A table of one bucket has sixteen places, so eight flows fill it, and whoever comes next shows what
makes room. Its share for what is half-open is four places: two flows.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from services.dataplane.flows.record import HALF_OPEN, FlowState
from tests.bpf.batch import Batch, batch_of, run_batch
from tests.bpf.harness import LB_MAC, SMALL_TABLES, Rig, TcVerdict, XdpVerdict, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    NODE,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    mac,
    now_ticks,
    to_client,
    to_node,
)

REQUEST, REPLY = 0, 1
WAYS, SHARE = 16, 4
FLOWS = WAYS // 2
GRACE_TICKS = 2
DAY_S = 86_400
OPENED = (FlowState.TCP_OPENING, FlowState.UDP_ASKED)


@pytest.fixture(scope="session")
def one_bucket() -> Scene:
    return Scene(Rig({**SMALL_TABLES, "FLOW_BUCKETS": 1, "HALF_OPEN_WAYS": SHARE}))


@pytest.fixture
def crowded(one_bucket: Scene) -> Scene:
    """Of both protocols at one VIP and port; the ports of the slice are not what runs out."""
    one_bucket.forget()
    for protocol in ("tcp", "udp"):
        one_bucket.service("l4", protocol=protocol)
    one_bucket.snat_slice()
    return one_bucket


def client(number: int) -> tuple[str, int]:
    return (CLIENT_ADDRESS, 1000 + number)


def fill(scene: Scene, flows: int, first: int = 0) -> list[Connection]:
    numbers = range(first, first + flows)
    return [Connection(scene, client=client(number)).establish() for number in numbers]


def goes_on(connection: Connection) -> None:
    scene = connection.scene
    for hook in REQUEST_HOOKS:
        wanted = to_node(hook, connection.request_out("PA", b"x"))
        scene.expect(hook, connection.request("PA", b"x"), "l4_established", wanted)
    for hook in REPLY_HOOKS:
        wanted = to_client(hook, connection.reply_out("PA", b"y"))
        scene.expect(hook, connection.reply("PA", b"y"), "l4_reply", wanted)


def open_one(scene: Scene, number: int, protocol: str = "tcp") -> tuple[str, int]:
    """A new flow of that client; the source that its node sees."""
    packet = (tcp if protocol == "tcp" else udp)(client(number), SERVICE)
    return (SNAT, scene.expect("xdp_public", packet, "l4_new_flow").ports[0])


def clients(scene: Scene, kind: str = "") -> list[int]:
    """Whose flows have both their directions."""
    ports: dict[int, set[int]] = {}
    for key, flow in scene.flows(kind):
        port = socket.ntohs(flow.dport if key.direction else key.sport)
        ports.setdefault(port - 1000, set()).add(key.direction)
    return sorted(number for number, ways in ports.items() if ways == {REQUEST, REPLY})


class TestPlaces:
    def test_eight_flows_fill_a_bucket(self, crowded: Scene) -> None:
        for connection in fill(crowded, FLOWS):
            goes_on(connection)
        assert clients(crowded, "est") == list(range(FLOWS))

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("make", [tcp, udp])
    def test_a_full_one_refuses_only_new_flows(self, crowded: Scene, hook: str, make: Any) -> None:
        connections = fill(crowded, FLOWS)
        for number in range(20, 30):
            crowded.expect(hook, make(client(number), SERVICE), "drop_table_full")
        for connection in connections:
            goes_on(connection)
        assert crowded.flows("half") == []

    @pytest.mark.parametrize("direction", [REQUEST, REPLY])
    def test_one_place_is_none(self, crowded: Scene, direction: int) -> None:
        """Where one direction found room and the other does not, the room is free again."""
        fill(crowded, FLOWS - 1)
        open_one(crowded, 8)
        crowded.change(direction, state=FlowState.TCP_ESTABLISHED)
        crowded.expect("xdp_public", tcp(client(20), SERVICE), "drop_table_full")
        assert len(crowded.flows("est")) == WAYS - 1
        assert clients(crowded, "half") == []

    def test_what_expired_makes_room(self, crowded: Scene) -> None:
        fill(crowded, FLOWS)
        crowded.age_flow(1003, 8000)
        open_one(crowded, 20)
        assert clients(crowded) == [0, 1, 2, 4, 5, 6, 7, 20]

    def test_at_its_deadline_it_is_dead_and_a_moment_later_its_place_is_free(
        self, crowded: Scene
    ) -> None:
        """Who found it in time is long done with it by then."""
        connections = fill(crowded, FLOWS)
        for _ in range(100):
            now = now_ticks()
            crowded.change(REQUEST, deadline=now)
            crowded.change(REPLY, deadline=now)
            packet = connections[0].reply()
            seen = crowded.send("tc_private", packet).reason
            refused = crowded.send("xdp_public", tcp(client(20), SERVICE)).reason
            if now_ticks() < now + GRACE_TICKS:
                break
            crowded.forget()
            self.again(crowded)
            connections = fill(crowded, FLOWS)
        assert (seen, refused) == ("drop_no_flow", "drop_table_full")
        self.wait_until(now + GRACE_TICKS)
        crowded.expect("xdp_public", tcp(client(20), SERVICE), "l4_new_flow")

    def again(self, scene: Scene) -> None:
        scene.service("l4")
        scene.snat_slice()

    def wait_until(self, tick: int) -> None:
        while now_ticks() < tick + 1:
            pass

    @pytest.mark.parametrize("end", ["time wait", "reset"])
    def test_what_is_closed_keeps_its_place_until_then(self, crowded: Scene, end: str) -> None:
        """And with it its port: the node may be in TIME_WAIT."""
        connections = fill(crowded, FLOWS)
        for connection in connections:
            if end == "reset":
                crowded.expect("xdp_public", connection.request("R"), "l4_established")
            else:
                crowded.send("xdp_public", connection.request("FA"))
                crowded.send("tc_private", connection.reply("FA"))
                crowded.send("xdp_public", connection.request("A", seq=102, ack=502))
        crowded.age("flows", 5)
        crowded.expect("xdp_public", tcp(client(20), SERVICE), "drop_table_full")
        crowded.expect("xdp_public", connections[3].request("S", seq=9000), "l4_reopened")
        crowded.age("flows", 60)
        open_one(crowded, 20)


class TestShare:
    """What anybody can forge holds a part of each bucket, however much there is of it."""

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_the_oldest_half_open_flow_makes_room(self, crowded: Scene, protocol: str) -> None:
        for number, age_s in ((1, 0), (2, 3)):
            open_one(crowded, number, protocol)
            crowded.age_flow(1000 + number, age_s)
        open_one(crowded, 3, protocol)
        assert clients(crowded) == [1, 3]
        crowded.age_flow(1001, 1)
        open_one(crowded, 4, protocol)
        assert clients(crowded) == [3, 4]

    def test_also_in_a_bucket_that_is_full_but_for_them(self, crowded: Scene) -> None:
        connections = fill(crowded, FLOWS - 2)
        for number in range(10, 16):
            open_one(crowded, number)
            crowded.age_flow(1000 + number, 20 - number)
        assert clients(crowded, "half") == [14, 15]
        for connection in connections:
            goes_on(connection)

    def test_the_last_of_them_makes_room_too(self, crowded: Scene) -> None:
        fill(crowded, FLOWS - 1)
        for number in (10, 11):
            open_one(crowded, number)
        assert clients(crowded) == [0, 1, 2, 3, 4, 5, 6, 11]

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_one_answer_changes_nothing(self, crowded: Scene, protocol: str) -> None:
        for number in range(1, 20):
            source = open_one(crowded, number, protocol)
            answer = tcp(NODE, source, "SA", seq=500, ack=1001)
            crowded.expect(
                "tc_private", udp(NODE, source) if protocol == "udp" else answer, "l4_reply"
            )
            crowded.age_flow(1000 + number, 20 - number)
            assert len(crowded.flows("half")) <= SHARE
        assert clients(crowded) == [18, 19]

    def test_what_is_established_is_not_of_it(self, crowded: Scene) -> None:
        fill(crowded, 4)
        assert clients(crowded) == [0, 1, 2, 3]
        for number in (10, 11):
            open_one(crowded, number)
        assert clients(crowded) == [0, 1, 2, 3, 10, 11]

    def test_a_flows_own_halves_do_not_make_room_for_each_other(self, crowded: Scene) -> None:
        """They are the youngest, though others may have begun in the same instant."""
        for number in range(50):
            open_one(crowded, number)
            assert number in clients(crowded), number


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestHalfALoss:
    """A half-open flow that gave up one direction's place has lost both, and may begin anew."""

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    @pytest.mark.parametrize("lost", [REQUEST, REPLY])
    def test_the_client_tries_again(
        self, scene: Scene, hook: str, protocol: str, lost: int
    ) -> None:
        scene.service("l4", protocol=protocol)
        packet = (tcp if protocol == "tcp" else udp)(CLIENT, SERVICE)
        first = scene.expect(hook, packet, "l4_new_flow").ports[0]
        scene.give_away(lost)
        second = scene.expect(hook, packet, "l4_new_flow").ports[0]
        assert first != second
        scene.expect(hook, packet, "l4_opening")

    @pytest.mark.parametrize("lost", [REQUEST, REPLY])
    def test_the_node_answers_nobody(self, scene: Scene, hook: str, lost: int) -> None:
        scene.service("l4")
        scene.snat_slice()
        connection = Connection(scene)
        connection.syn(hook)
        scene.give_away(lost)
        scene.expect("tc_private", connection.reply("SA", seq=500, ack=101), "drop_no_flow")

    @pytest.mark.parametrize("lost", [REQUEST, REPLY])
    def test_the_clients_acknowledgement_establishes_nothing(
        self, scene: Scene, hook: str, lost: int
    ) -> None:
        scene.service("l4")
        connection = Connection(scene)
        connection.syn(hook)
        connection.syn_ack()
        scene.give_away(lost)
        scene.expect(hook, connection.request("A"), "no_flow_reset")
        assert scene.flows("est") == []

    @pytest.mark.parametrize("fields", [{"daddr": 99}, {"dport": 99}, {"saddr": 99}, {"sport": 99}])
    def test_what_leads_elsewhere_is_not_the_other_half(
        self, scene: Scene, hook: str, fields: dict[str, int]
    ) -> None:
        """Its key may be the same: the port may be another flow's by now."""
        scene.service("l4")
        connection = Connection(scene)
        connection.syn()
        connection.syn_ack()
        scene.change(REPLY, **fields)
        scene.expect(hook, connection.request("A"), "no_flow_reset")
        assert scene.flows("est") == []


class TestVersions:
    """An entry whose version is odd is being written: nobody reads it."""

    @pytest.mark.parametrize("hook", [*REQUEST_HOOKS, *REPLY_HOOKS])
    def test_of_either_direction(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.snat_slice()
        connection = Connection(scene).establish()
        direction = REQUEST if hook in REQUEST_HOOKS else REPLY
        packet = connection.request() if direction == REQUEST else connection.reply()
        self.turn_versions(scene, direction, 1)
        refused = "no_flow_reset" if direction == REQUEST else "drop_no_flow"
        scene.expect(hook, packet, refused)
        self.turn_versions(scene, direction, 1)
        goes_on(connection)

    @pytest.mark.parametrize("direction", [REQUEST, REPLY])
    def test_nor_does_anybody_change_it(self, scene: Scene, direction: int) -> None:
        scene.service("l4")
        connection = Connection(scene)
        connection.syn()
        self.turn_versions(scene, direction, 1)
        scene.send("tc_private", connection.reply("SA", seq=500, ack=101))
        self.turn_versions(scene, direction, 1)
        assert set(scene.states().values()) <= {FlowState.TCP_OPENING}

    def test_it_is_even_at_rest_and_rises_with_each_new_flow(self, crowded: Scene) -> None:
        seen = []
        for number in range(3):
            open_one(crowded, number)
            seen.append(sum(key.version for key, _ in crowded.flows()))
            assert all(key.version % 2 == 0 for key, _ in crowded.flows())
            crowded.age("flows", DAY_S)
        assert seen[-1] > seen[0] > 0

    def turn_versions(self, scene: Scene, direction: int, by: int) -> None:
        table = scene.programs.table("flows")
        for index, bucket in list(table.items()):
            for flow in bucket.flow:
                if flow.state and flow.key.direction == direction:
                    flow.key.version ^= by
                    table[index] = bucket


class TestByItself:
    """Nothing waits for user space: a day without it, and new flows open."""

    def test_in_a_full_bucket(self, crowded: Scene) -> None:
        for day in range(3):
            connections = fill(crowded, FLOWS, 10 * day)
            crowded.expect("xdp_public", tcp(client(99), SERVICE), "drop_table_full")
            crowded.age("flows", DAY_S)
            assert crowded.flows() == []
            crowded.expect("xdp_public", connections[0].request(), "no_flow_reset")

    def test_where_all_ports_were_held(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=4)
        for day in range(3):
            fill(scene, 4, 10 * day)
            scene.expect("xdp_public", tcp(client(99), SERVICE), "drop_no_port")
            scene.age("flows", DAY_S)

    def test_datagrams(self, crowded: Scene) -> None:
        for day in range(3):
            for number in range(FLOWS):
                source = open_one(crowded, 10 * day + number, "udp")
                crowded.expect("tc_private", udp(NODE, source), "l4_reply")
                question = udp(client(10 * day + number), SERVICE)
                crowded.age("flows", 2)
                crowded.expect("xdp_public", question, "l4_promoted")
            crowded.expect("xdp_public", udp(client(99), SERVICE), "drop_table_full")
            crowded.age("flows", DAY_S)


# --------------------------------------------------------------------------- floods

BUCKETS, WIDE_SHARE = int(SMALL_TABLES["FLOW_BUCKETS"]), int(SMALL_TABLES["HALF_OPEN_WAYS"])
FLOOD = 10 * BUCKETS * WAYS
ROUND = FLOOD // 20


@pytest.fixture
def flooded(scene: Scene) -> Scene:
    for protocol in ("tcp", "udp"):
        scene.service("l4", protocol=protocol, snat_first_port=1024, snat_ports=60_000)
    return scene


def spoofed(packet: bytes, first: int, count: int) -> Batch:
    """That packet from another address and port each; checksums are left wrong: nobody looks."""
    batch = batch_of([packet], len(packet))
    rows = np.repeat(batch.rows, count, axis=0)
    numbers = np.arange(first, first + count)
    rows[:, 27:30] = (numbers[:, None] >> [16, 8, 0]) & 0xFF
    rows[:, 34:36] = (numbers[:, None] * 7919 >> [8, 0]) & 0xFF
    return Batch(rows, np.full(count, len(packet)))


def rounds(packet: bytes) -> Iterator[Batch]:
    for first in range(0, FLOOD, ROUND):
        yield spoofed(packet, first, ROUND)


def answers(sent: Batch) -> Batch:
    """One datagram of the node for each question that reached it."""
    rows = sent.rows.copy()
    rows[:, 26:30], rows[:, 30:34] = sent.rows[:, 30:34], sent.rows[:, 26:30]
    rows[:, 34:36], rows[:, 36:38] = sent.rows[:, 36:38], sent.rows[:, 34:36]
    rows[:, :6] = np.frombuffer(mac(LB_MAC), np.uint8)
    return Batch(rows, sent.sizes)


def share_of_each(scene: Scene) -> int:
    """How many places half-open flows hold in the bucket where they hold most."""
    now = now_ticks()
    most = 0
    for _, bucket in scene.programs.table("flows").items():
        held = [flow for flow in bucket.flow if flow.state in HALF_OPEN and flow.deadline > now]
        most = max(most, len(held))
    return most


class TestFloods:
    """Ten times the table, and not one established flow notices."""

    def established(self, scene: Scene) -> list[Connection]:
        return [
            Connection(scene, client=("203.0.113.5", 5000 + number)).establish()
            for number in range(50)
        ]

    def test_of_syns(self, flooded: Scene) -> None:
        connections = self.established(flooded)
        fd = flooded.programs.function("xdp_public")
        forwarded = 0
        for number, batch in enumerate(rounds(tcp(("10.0.0.0", 0), SERVICE))):
            verdicts, _ = run_batch(fd, batch, xdp=True)
            forwarded += int((verdicts == XdpVerdict.REDIRECT).sum())
            flooded.flood("xdp_public", [])
            Connection(flooded, client=("203.0.113.7", 1000 + number)).establish()
        assert share_of_each(flooded) == WIDE_SHARE
        self.all_is_well(flooded, connections)
        assert forwarded > FLOOD * 0.95

    def test_of_datagrams_answered_once(self, flooded: Scene) -> None:
        connections = self.established(flooded)
        there, back = (flooded.programs.function(hook) for hook in ("xdp_public", "tc_private"))
        for number, batch in enumerate(rounds(udp(("10.0.0.0", 0), SERVICE, b"q"))):
            verdicts, sent = run_batch(there, batch, xdp=True)
            asked = sent.only(verdicts == XdpVerdict.REDIRECT)
            verdicts, _ = run_batch(back, answers(asked), xdp=False)
            assert (verdicts == TcVerdict.REDIRECT).mean() > 0.1
            flooded.flood("xdp_public", [])
            Connection(flooded, client=("203.0.113.7", 1000 + number)).establish()
        self.all_is_well(flooded, connections)

    def test_of_datagrams_that_go_on_after_an_answer(self, flooded: Scene) -> None:
        """Who floods cannot see the answer, but can act as if."""
        connections = self.established(flooded)
        there, back = (flooded.programs.function(hook) for hook in ("xdp_public", "tc_private"))
        for number, batch in enumerate(rounds(udp(("10.0.0.0", 0), SERVICE, b"q"))):
            verdicts, sent = run_batch(there, batch, xdp=True)
            run_batch(back, answers(sent.only(verdicts == XdpVerdict.REDIRECT)), xdp=False)
            for _ in range(2):
                verdicts, _ = run_batch(there, batch, xdp=True)
                assert (verdicts == XdpVerdict.REDIRECT).mean() > 0.95
            flooded.flood("xdp_public", [])
            Connection(flooded, client=("203.0.113.7", 1000 + number)).establish()
        self.all_is_well(flooded, connections)

    def all_is_well(self, scene: Scene, connections: list[Connection]) -> None:
        for connection in connections:
            goes_on(connection)
        assert share_of_each(scene) <= WIDE_SHARE
        living = Counter(flow.state for _, flow in scene.flows())
        assert living[FlowState.TCP_ESTABLISHED] == 2 * (len(connections) + 20)
        assert not living[FlowState.UDP_ESTABLISHED]


# --------------------------------------------------------------------------- another size


@pytest.fixture(scope="session")
def chained_tables() -> Scene:
    """A table of other buckets, behind which is one like `scene`'s."""
    sizes: dict[str, str | int] = {"FLOW_BUCKETS": 2 * BUCKETS, "OLD_FLOW_BUCKETS": BUCKETS}
    return Scene(Rig({**SMALL_TABLES, **sizes}))


class Resized:
    """Flows begin in a small table; then it stands behind a larger one."""

    def __init__(self, small: Scene, chained: Scene) -> None:
        self.small, self.scene = small, chained
        small.service("l4")
        chained.forget()
        chained.service("l4")
        chained.snat_slice()
        table = chained.programs.table("old_flows")
        for index in range(BUCKETS):
            table[index] = table.Leaf()

    def resize(self, connection: Connection) -> Connection:
        table = self.scene.programs.table("old_flows")
        for index, bucket in self.small.programs.table("flows").items():
            table[index] = table.Leaf.from_buffer_copy(bytes(bucket))
        self.scene.settings(chained=1)
        connection.scene = self.scene
        return connection


@pytest.fixture
def resized(scene: Scene, chained_tables: Scene) -> Resized:
    return Resized(scene, chained_tables)


class TestChained:
    def test_flows_of_the_old_table_go_on(self, resized: Resized) -> None:
        connection = resized.resize(Connection(resized.small).establish())
        goes_on(connection)
        resized.scene.send("xdp_public", connection.request("FA", seq=102, ack=502))
        resized.scene.send("tc_private", connection.reply("FA", seq=502, ack=103))
        late = connection.request("A", seq=103, ack=503)
        resized.scene.expect("xdp_public", late, "l4_established")
        resized.scene.expect("xdp_public", late, "l4_closed")

    def test_a_handshake_is_finished_there(self, resized: Resized) -> None:
        connection = Connection(resized.small)
        connection.syn()
        resized.resize(connection)
        connection.syn_ack()
        connection.ack()
        goes_on(connection)
        assert resized.scene.flows() == []

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("end", ["closed", "expired", "half-open"])
    def test_what_is_new_stands_in_the_new_one(self, resized: Resized, hook: str, end: str) -> None:
        """Also where the old one still knows the client."""
        connection = Connection(resized.small)
        connection.syn()
        if end != "half-open":
            connection.syn_ack()
            connection.ack()
        if end == "closed":
            resized.small.send("xdp_public", connection.request("R"))
        if end == "half-open":
            resized.small.give_away(REPLY)
        if end == "expired":
            resized.small.age("flows", DAY_S)
        resized.resize(connection)
        connection.syn(hook)
        assert len(resized.scene.flows()) == 2
        connection.syn_ack()
        connection.ack(hook)
        goes_on(connection)

    def test_an_unchained_table_is_not_asked(self, resized: Resized) -> None:
        connection = resized.resize(Connection(resized.small).establish())
        resized.scene.settings(chained=0)
        resized.scene.expect("xdp_public", connection.request(), "no_flow_reset")

    def test_a_port_held_there_is_not_given_away(self, resized: Resized) -> None:
        connection = resized.resize(Connection(resized.small).establish())
        resized.scene.service("l4", snat_first_port=connection.source[1], snat_ports=1)
        resized.scene.expect("xdp_public", tcp(client(1), SERVICE), "drop_no_port")
        goes_on(connection)

    def test_other_clients_flows(self, resized: Resized) -> None:
        old = resized.resize(Connection(resized.small).establish())
        for connection in fill(resized.scene, 20):
            goes_on(connection)
        goes_on(old)
        assert len(resized.scene.flows("est")) == 40
        assert resized.scene.counted_at_seat()["flows"] == 20


def test_the_vip_of_another_service_is_another_flow(crowded: Scene) -> None:
    crowded.service("l4", at=(VIP, 8443), number=1)
    Connection(crowded).establish()
    Connection(crowded, service=(VIP, 8443)).establish()
    assert len(crowded.flows("est")) == 4
