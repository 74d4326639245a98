"""Who may speak, and for which node; what is not listened to."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bus.node_protocol import Heartbeat, Hello, NodeMessage, Refused, Sick, Welcome, encode_node
from bus.states import NodeService
from bus.words import NodeState
from services.health.deadlines import STRANGER_MS
from services.health.door import KEY_GONE, MOST_SESSIONS, SAME_NAME_RETRY_MS, Doorkeeper, Guest
from services.health.node import Node
from services.health.outbox import Outbox
from services.health.roster import Roster
from services.health.standing import Standing
from tests.health.parts import make_node
from tests.health.rig import POLICY, SERVING, START_MS, TIMEOUT_MS, Agent, Rig

PROBATION, UP, DOWN = NodeState.PROBATION, NodeState.UP, NodeState.DOWN


# ----------------------------------------------------------------- who speaks


def test_a_second_agent_of_the_same_name_takes_over_once_and_for_all() -> None:
    rig = Rig()
    first = Agent(rig).bring_up()
    second = Agent(rig, boot="boot-2")
    second.hello()
    second.beat()
    first.beat()
    assert first.messages()[-1] == Refused("say hello first", 0)
    first.hello()
    refusal = first.messages()[-1]
    assert isinstance(refusal, Refused)
    assert "another agent named node-0" in refusal.reason
    rig.wait(2 * TIMEOUT_MS, beating=[second])
    assert second.state is UP


def test_the_same_agent_may_reconnect_as_often_as_it_likes() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for _ in range(5):
        rig.wait(400)
        agent.connect()
        agent.hello()
        agent.beat()
        assert isinstance(agent.messages()[-1], Welcome)
    assert agent.state is UP


def test_a_connection_speaks_for_the_node_it_named_last() -> None:
    rig = Rig()
    first = Agent(rig).bring_up()
    second = Agent(rig, "node-1", connection=first.connection)
    second.hello()
    rig.sent.clear()
    rig.wait(TIMEOUT_MS)
    assert first.state is DOWN
    assert {m.node_id for _, m in rig.sent if isinstance(m, Welcome)} == {second.id}


def test_an_agent_may_be_renamed_now_and_then() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for number in range(20):
        rig.now_ms += 2_000
        renamed = Agent(rig, f"name-{number}", connection=agent.connection)
        renamed.hello()
        renamed.beat()
        assert isinstance(renamed.messages()[-1], Welcome)


def test_there_is_an_end_to_the_names_of_one_connection() -> None:
    rig = Rig()
    honest = Agent(rig).bring_up()
    for number in range(20_000):
        rig.raw(b"\0many", encode_node(Hello(1, f"name-{number}", "b", 1, ())))
    assert len(rig.registry.view(rig.now_ms).nodes) < 12
    rejected = rig.registry.checks(rig.now_ms).rejected
    assert rejected["another_name"] == 9
    assert rejected["cut_off"] > 19_900
    rig.wait(STRANGER_MS + 1, beating=[honest])
    assert [node.id for node in rig.registry.view(rig.now_ms).nodes] == [honest.id]
    assert honest.state is UP


# ----------------------------------------------------------------- the peers' faults


def test_a_repeated_beat_counts_once() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    frames = agent.make_beat()
    for _ in range(5):
        agent.deliver(frames)
    assert rig.observe(agent.id).checks_passed == 1
    assert rig.registry.checks(rig.now_ms).rejected == {"repeated": 4}


def test_malformed_messages_count_and_then_cut_the_connection_off() -> None:
    rig = Rig()
    bad = b"\0bad"
    for frames in ([b"hello"], [b"noise", b"{}"], [b"hello", b"{}"], [b"heartbeat", b"\xff"]):
        for _ in range(3):
            rig.raw(bad, frames)
    rejected = rig.registry.checks(rig.now_ms).rejected
    assert rejected == {"malformed": 9, "cut_off": 3}
    refusals = [message for connection, message in rig.sent if connection == bad]
    assert [type(message) for message in refusals] == [Refused]
    honest = Agent(rig).bring_up()
    assert honest.state is UP
    rig.now_ms += 60_000
    rig.raw(bad, encode_node(Hello(1, "late", "b", 1, ())))
    assert rig.observe("late@10.81.0.99").state is PROBATION


def test_a_fault_now_and_then_is_borne() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for _ in range(100):
        rig.now_ms += 5_000
        rig.raw(agent.connection, [b"noise", b""])
    agent.beat()
    assert not any(isinstance(message, Refused) for message in agent.messages())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Hello(2, "n", "b", 1, ()), "version"),
        (Hello(1, "", "b", 1, ()), "bad_hello"),
        (Hello(1, "a b", "b", 1, ()), "bad_hello"),
        (Hello(1, "x" * 65, "b", 1, ()), "bad_hello"),
        (Hello(1, "a@b", "b", 1, ()), "bad_hello"),
        (Hello(1, "n", "", 1, ()), "bad_hello"),
        (Hello(1, "n", "b", 0, ()), "bad_hello"),
        (Hello(1, "n", "b", 1_001, ()), "bad_hello"),
        (Hello(1, "n", "b", 1, (NodeService("s", 0),)), "malformed"),
        (Hello(1, "n", "b", 1, (NodeService("s", 65_536),)), "malformed"),
        (Hello(1, "n", "b", 1, (NodeService("s", 1),) * 1_001), "bad_hello"),
        (Welcome("lb", "n", 1, 1, UP, ()), "unexpected_kind"),
        (Refused("no", 1), "unexpected_kind"),
    ],
)
def test_what_is_well_typed_and_wrong_is_refused_by_name(
    message: Hello | Welcome | Refused, reason: str
) -> None:
    rig = Rig()
    rig.raw(b"\0x", encode_node(message))
    view = rig.registry.view(rig.now_ms)
    assert (view.nodes, rig.registry.checks(rig.now_ms).rejected) == ((), {reason: 1})


@pytest.mark.parametrize("load", [-1.0, 1e9])
def test_a_beat_that_is_wrong_is_not_a_check(load: float) -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    agent.deliver(encode_node(Heartbeat(1, 1, SERVING, load, "")))
    assert rig.observe(agent.id).checks_passed == 0
    assert rig.registry.checks(rig.now_ms).rejected == {"bad_heartbeat": 1}


def test_a_load_that_is_no_number_is_refused() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    for load in (b"NaN", b"Infinity", b"1e999", b'"x"'):
        body = b'{"seq":9,"sent_ms":1,"status":"serving","load":%s,"reason":""}' % load
        agent.deliver([b"heartbeat", body])
    assert rig.observe(agent.id).checks_passed == 0


# ----------------------------------------------------------------- the door alone


@dataclass
class Entrance:
    """A door, whom it knows, and by which keys."""

    owners: dict[str, str] | None = None
    """By key, whose it is; None: no keys are used."""
    roster: Roster = field(default_factory=Roster)
    outbox: Outbox = field(default_factory=Outbox)

    def __post_init__(self) -> None:
        name_of = self.owners.get if self.owners is not None else None
        self.door = Doorkeeper(POLICY, self.roster, self.outbox, name_of)

    def admit(
        self, connection: bytes, name: str, address: str = "10.81.0.20", *, key: str = ""
    ) -> Guest | None:
        return self.door.admit(connection, address, key, Hello(1, name, "boot", 1, ()), START_MS)

    def known(self, node_id: str, address: str = "10.81.0.20") -> Node:
        node = make_node("n", address=address)
        node.id = node_id
        self.roster.add(node)
        return node

    def said(self) -> list[tuple[bytes, NodeMessage]]:
        return [(connection, message) for connection, message in self.outbox.take().messages]


def refusal(text: str) -> Refused:
    return Refused(text, SAME_NAME_RETRY_MS)


def test_without_keys_a_node_is_its_name_and_address() -> None:
    at = Entrance()
    node = at.known("n@10.81.0.20")
    assert at.admit(b"1", "n") == Guest("n@10.81.0.20", node, None)
    assert at.admit(b"1", "n", "10.81.0.21") == Guest("n@10.81.0.21", None, None)
    assert at.said() == []


def test_with_keys_a_node_is_whose_key_it_has_wherever_it_is() -> None:
    at = Entrance({"k": "n", "k2": "m"})
    node = at.known("n")
    assert at.admit(b"1", "n", "10.99.0.1", key="k") == Guest("n", node, None)
    assert at.admit(b"2", "n", key="k2") is None
    assert at.admit(b"3", "n", key="stolen") is None
    assert at.said() == [
        (b"2", refusal("this is the key of m, not n")),
        (b"3", refusal(KEY_GONE)),
    ]
    assert at.door.faults.rejected == {"name_of_another_key": 1, "key_not_admitted": 1}


def test_a_node_from_before_keys_were_used_is_gone_when_it_comes_with_one() -> None:
    at = Entrance({"k": "n"})
    former = at.known("n@10.81.0.20")
    former.heard = False
    assert at.admit(b"1", "n", key="k") == Guest("n", None, former)
    former.heard = True
    assert at.admit(b"1", "n", key="k") == Guest("n", None, None), "it is there itself"


def test_a_node_from_when_keys_were_used_is_gone_when_it_comes_without_one() -> None:
    at = Entrance()
    former = at.known("n")
    former.heard = False
    assert at.admit(b"1", "n") == Guest("n@10.81.0.20", None, former)
    assert at.admit(b"1", "n", "10.81.0.21") == Guest("n@10.81.0.21", None, None), "another's"


def test_keys_that_are_not_admitted_any_more_end_what_they_opened() -> None:
    owners = {"k": "n", "k2": "n", "other": "m"}
    at = Entrance(owners)
    node, other = at.known("n"), at.known("m")
    for connection, key in ((b"1", "k"), (b"2", "k2")):
        at.door.attach(node, connection, "boot", key)
    at.door.attach(other, b"3", "boot", "other")
    del owners["k"]
    assert at.door.keys_changed() == [], "it has another one"
    assert at.said() == [(b"1", refusal(KEY_GONE))]
    owners["k2"] = "somebody"
    assert at.door.keys_changed() == [node]
    assert at.said() == [(b"2", refusal(KEY_GONE))]
    assert at.door.keys_changed() == []
    assert at.door.beat(b"2", Heartbeat(1, 0, SERVING, 0.5, ""), START_MS) is None
    assert at.door.beat(b"3", Heartbeat(1, 0, SERVING, 0.5, ""), START_MS) is not None


def test_the_oldest_connection_goes_when_there_are_too_many() -> None:
    at = Entrance()
    node = at.known("n@10.81.0.20")
    connections = [b"%d" % number for number in range(MOST_SESSIONS + 1)]
    for connection in connections:
        at.door.attach(node, connection, "boot", "")
    at.door.answer(node, START_MS)
    assert [connection for connection, _ in at.said()] == connections[1:]
    at.door.attach(node, connections[1], "boot", "")
    at.door.attach(node, b"new", "boot", "")
    at.door.answer(node, START_MS)
    assert [c for c, _ in at.said()] == [*connections[3:], connections[1], b"new"]


def test_another_start_of_the_agent_has_nothing_of_the_one_before() -> None:
    at = Entrance()
    node = at.known("n@10.81.0.20")
    at.door.attach(node, b"1", "first", "")
    sick = (Sick("it fell", ("web",)),)
    speaker = at.door.beat(b"1", Heartbeat(7, 0, SERVING, 0.5, "", None, sick), START_MS)
    assert speaker is not None
    assert (speaker.beats, speaker.sick, speaker.sent_ms) == (1, {"web": "it fell"}, START_MS)
    again = at.door.beat(b"1", Heartbeat(8, 10, SERVING, 0.5, ""), START_MS + 10)
    assert again is speaker
    assert (speaker.beats, speaker.sick) == (2, {"web": "it fell"}), "it said nothing new"
    at.door.attach(node, b"2", "second", "")
    assert at.door.beat(b"1", Heartbeat(9, 0, SERVING, 0.5, ""), START_MS) is None
    speaker = at.door.beat(b"2", Heartbeat(1, 0, SERVING, 0.5, ""), START_MS)
    assert speaker is not None
    assert (speaker.beats, speaker.sick, speaker.former_boot) == (1, None, "first")


def test_of_a_node_that_is_forgotten_nobody_speaks() -> None:
    at = Entrance()
    node = at.known("n@10.81.0.20")
    at.door.attach(node, b"1", "boot", "")
    at.door.forget(node)
    at.door.answer(node, START_MS)
    assert at.said() == []
    assert at.door.beat(b"1", Heartbeat(1, 0, SERVING, 0.5, ""), START_MS) is None
    assert at.said() == [(b"1", Refused("say hello first", 0))]
    at.door.forget(node)


def test_what_an_agent_is_told() -> None:
    at = Entrance()
    node = at.known("n@10.81.0.20")
    at.door.attach(node, b"1", "boot", "")
    node.apart["default"] = Standing(PROBATION, "", START_MS)
    at.door.answer(node, START_MS)
    node.state, node.reason, node.ban_until_ms = NodeState.BANNED, "banned", START_MS + 9
    at.door.answer(node, START_MS)
    (_, welcome), (_, refused) = at.said()
    assert isinstance(welcome, Welcome)
    assert (welcome.state, welcome.interval_ms) == (UP, POLICY.interval_ms(PROBATION)), (
        "for one of its services"
    )
    assert refused == Refused("banned", 9)


def test_a_name_of_the_peers_own_for_its_connection_is_not_read() -> None:
    at = Entrance()
    frames = encode_node(Hello(1, "n", "boot", 1, ()))
    assert at.door.read(b"own", frames, START_MS) is None
    assert at.door.read(b"\0own", frames, START_MS) == Hello(1, "n", "boot", 1, ())
    assert at.door.faults.rejected == {"own_routing_id": 1}
