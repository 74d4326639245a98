"""What decodes harms no core: arbitrary valid messages through each of them, to the ends of ranges.

A core that is handed them must neither raise nor say anything that the others could not decode: a
view or a table is refused as a whole, so one node's odd value would take all nodes with it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, cast, get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import (
    Envelope,
    Head,
    decode_body,
    decode_head,
    encode,
    from_json,
    to_json,
)
from bus.node_protocol import (
    NodeMessage,
    decode_node,
    encode_node,
)
from bus.peer_protocol import (
    OrderAsked,
    PeerMessage,
    decode_peer,
    decode_peer_head,
    encode_peer,
)
from bus.replica_protocol import (
    WITH_BYTES,
    Credit,
    Hello,
    ReplicaMessage,
    Resume,
    decode_replica,
    encode_replica,
)
from bus.states import (
    LocalView,
    NodeTable,
    TableService,
)
from bus.topics import (
    PAYLOADS,
    Topic,
)
from bus.words import (
    IPv4,
    Stored,
)
from services.api import snapshot
from services.api.fold import Fold
from services.api.metrics import Scrape, exposition
from services.api.snapshot import Local
from services.dataplane.flows.replica import Following, Log, Teller, Telling
from services.dataplane.maps import EMPTY, LocalFacts
from services.dataplane.plan import make_plan
from services.health.keeping import KeptNode
from services.health.registry import Registry
from services.node.core import Agent, AgentConfig, CheckPlan
from services.node.direct import need_of
from services.quorum.composition import QuorumConfig
from services.quorum.core import Quorum
from services.quorum.durable import BLANK, HardState
from services.quorum.table import FloatingVip, TableConfig
from services.quorum.timing import Timing
from tests.bus.strategies import envelopes, node_messages, values
from tests.health.rig import POLICY

FEW = settings(max_examples=60)
ADDRESSES = ("10.0.0.1", "10.0.0.2")


def survives(topic: Topic, data: Any) -> None:
    """A process that publishes this is understood by all others."""
    envelope = Envelope(Head(topic, "s", "h", "b", 1, 1, 1, 1), data)
    frames = encode(envelope)
    assert decode_body(decode_head(frames), frames[2]) == envelope


@FEW
@given(st.lists(st.tuples(st.integers(0, 2), node_messages()), max_size=12), values(NodeTable))
def test_the_registry(said: list[tuple[int, NodeMessage]], table: NodeTable) -> None:
    registry, now_ms = Registry(POLICY, 0), 0
    registry.adopt_table(table, now_ms)
    for connection, message in said:
        now_ms += 400
        address = ADDRESSES[connection % 2]
        registry.receive(b"\0%d" % connection, address, encode_node(message), now_ms)
        registry.tick(now_ms)
        output = registry.take_output()
        for send in output.messages:
            assert decode_node(encode_node(send.message)) == send.message
        for topic, event in output.events:
            survives(topic, event)
        survives(Topic.STATE_VIEW, registry.view(now_ms))
        survives(Topic.STATE_CHECKS, registry.checks(now_ms))
    again = Registry(POLICY, now_ms)
    again.adopt(registry.kept(now_ms), 0, now_ms)
    survives(Topic.STATE_VIEW, again.view(now_ms))


@FEW
@given(values(tuple[KeptNode, ...]), st.integers(0, 2**62))
def test_the_registry_and_what_was_kept(kept: tuple[KeptNode, ...], elapsed_ms: int) -> None:
    registry = Registry(POLICY, 0)
    registry.adopt(kept, elapsed_ms, 0)
    for now_ms in (0, 5_000, 50_000, 500_000):
        registry.tick(now_ms)
        registry.next_due_ms()
        survives(Topic.STATE_VIEW, registry.view(now_ms))
        survives(Topic.STATE_CHECKS, registry.checks(now_ms))
        for topic, event in registry.take_output().events:
            survives(topic, event)


@FEW
@given(st.lists(node_messages(), max_size=12))
def test_the_agent(heard: list[NodeMessage]) -> None:
    agent = Agent(AgentConfig("n", 1, ("lb",), ()), "boot", 0)
    agent.connected("lb", 0)
    now_ms = 0
    for message in heard:
        now_ms += 300
        agent.receive("lb", encode_node(message), now_ms)
        for plan in agent.plans():
            assert isinstance(plan, CheckPlan)
            agent.checked(plan, True, "", now_ms)
        need_of(agent.offers(), frozenset())
        agent.tick(now_ms)
        for send in agent.take_output().messages:
            assert decode_node(encode_node(send.message)) == send.message
        to_json(agent.status(now_ms))


def _name(service: TableService) -> str:
    return service.name


def configurations() -> st.SearchStrategy[TableConfig]:
    vip = st.builds(FloatingVip, values(IPv4), values(tuple[IPv4, ...]))
    return st.builds(
        TableConfig,
        services=st.lists(values(TableService), max_size=3, unique_by=_name).map(tuple),
        vips=st.lists(vip, max_size=2).map(tuple),
    )


def stored() -> st.SearchStrategy[HardState]:
    """What the state file may hold."""
    table = values(NodeTable).filter(lambda table: max(table.term, table.epoch) <= 2**61)
    return st.builds(HardState, values(Stored), st.none() | st.just("lb-0"), st.none() | table)


@FEW
@given(st.lists(values(LocalView), max_size=4), configurations(), st.just(BLANK) | stored())
def test_the_quorum(views: list[LocalView], config: TableConfig, state: HardState) -> None:
    core = Quorum(QuorumConfig("lb-0", "", config, Timing(), 1_000), state, 2**64 - 1, 0)
    now_ms = 0
    for version, view in enumerate(views):
        now_ms += 600
        core.report(f"boot-{version}", view, now_ms)
        core.tick(now_ms)
        while (ready := core.take(now_ms)) is not None:
            if ready.committed is not None:
                survives(Topic.STATE_TABLE, ready.committed)
            for topic, event in ready.events:
                survives(topic, event)
            if ready.persist is not None:
                core.stored(ready.persist.mark, now_ms)
        survives(Topic.STATE_QUORUM, core.state(now_ms))


OWN, *PEERS = (f"10.0.0.{host}:8081" for host in range(1, 4))
FAMILIAR: dict[str, st.SearchStrategy[Any]] = {
    "term": st.integers(0, 3),
    "asked": st.integers(0, 20),
    "seq": st.integers(0, 20),
    "boot": st.just("boot"),
    "view_seen": st.none() | st.tuples(st.just("boot"), st.integers(0, 3)),
}
"""What a peer says that the core may take to be about itself."""


@st.composite
def peer_messages(draw: st.DrawFn) -> PeerMessage:
    message = draw(values(draw(st.sampled_from(get_args(PeerMessage)))))
    known = FAMILIAR.keys() & {field.name for field in fields(message)}
    changed = {name: draw(FAMILIAR[name]) for name in sorted(known) if draw(st.booleans())}
    if isinstance(message, OrderAsked):
        changed.pop("asked", None)
    return cast("PeerMessage", replace(message, **changed))


@FEW
@given(
    st.lists(st.tuples(st.sampled_from(PEERS), peer_messages(), st.integers(0, 300)), max_size=30),
    configurations(),
    st.just(BLANK) | stored(),
)
def test_the_quorum_and_its_peers(
    said: list[tuple[str, PeerMessage, int]], config: TableConfig, state: HardState
) -> None:
    meant = QuorumConfig("lb-0", OWN, config, Timing(), 1_000, others=tuple(PEERS))
    core, now_ms = Quorum(meant, state, 2**64 - 1, 0, boot="boot"), 0
    for peer, message, passed_ms in said:
        now_ms += passed_ms
        core.receive(peer, message, now_ms)
        core.tick(now_ms)
        while (ready := core.take(now_ms)) is not None:
            if ready.committed is not None:
                survives(Topic.STATE_TABLE, ready.committed)
            for topic, event in ready.events:
                survives(topic, event)
            for out in ready.sends:
                head, body = encode_peer(out.message, "gale", "boot", 1)
                assert decode_peer(decode_peer_head(head), body) == out.message
            if ready.persist is not None:
                core.stored(ready.persist.mark, now_ms)
        survives(Topic.STATE_QUORUM, core.state(now_ms))
        core.next_due_ms()


REPLICA_BOOT = "b007"
RECORD_BYTES = 8


@st.composite
def replica_messages(draw: st.DrawFn) -> tuple[ReplicaMessage, bytes]:
    """One that a follower or a teller may take to be about itself, and its records."""
    message = draw(values(draw(st.sampled_from(get_args(ReplicaMessage)))))
    usual = {
        "cluster": st.just("gale"),
        "boot": st.just(REPLICA_BOOT),
        "known_boot": st.just(REPLICA_BOOT),
        "next_seq": st.integers(0, 6),
        "first": st.integers(0, 6),
        "position": st.integers(-1, 3),
        "allowed": st.integers(0, 60),
    }
    known = usual.keys() & {field.name for field in fields(message)}
    changed = {name: draw(usual[name]) for name in sorted(known) if draw(st.booleans())}
    payload = bytes(RECORD_BYTES * draw(st.integers(0, 3)))
    return replace(message, **changed), payload if isinstance(message, WITH_BYTES) else b""


def understood(message: ReplicaMessage, payload: bytes = b"") -> None:
    assert decode_replica(encode_replica(message, payload)) == (message, payload)


@FEW
@given(st.lists(st.tuples(replica_messages(), st.integers(0, 2_000)), max_size=20))
def test_who_follows_the_flows_of_another(
    said: list[tuple[tuple[ReplicaMessage, bytes], int]],
) -> None:
    following, now_ms = Following("gale", "lb-0", RECORD_BYTES, 0), 0
    for (message, payload), passed_ms in said:
        now_ms += passed_ms
        with suppress(ValueError):  # what is not for a follower, which is counted
            entering = following.heard(message, payload, now_ms)
            assert entering is None or not len(entering.records) % RECORD_BYTES
        progress = following.progress  # as the kernel's map keeps it
        assert 0 <= int(progress.boot or "0", 16) < 2**64
        assert 0 <= progress.next_seq < 2**64
        assert -1 <= progress.position < 2**31
        for answer in following.take(now_ms, synced=True):
            understood(answer)


@FEW
@given(
    values(Hello),
    st.lists(replica_messages(), max_size=20),
    st.lists(st.integers(0, 3), max_size=20),
)
def test_who_tells_its_flows_to_another(
    hello: Hello, said: list[tuple[ReplicaMessage, bytes]], happened: list[int]
) -> None:
    log = Log(RECORD_BYTES, 64)
    hello = replace(hello, record_bytes=RECORD_BYTES)
    telling = Telling(log, hello, Teller("gale", "lb-0", REPLICA_BOOT), 0)
    for now_ms, (message, _) in enumerate(said):
        for count in happened[now_ms : now_ms + 1]:
            log.append(bytes(RECORD_BYTES * count), 1, now_ms)
        if isinstance(message, Credit | Resume):
            telling.heard(message)
        for out in telling.take_live(now_ms, 1, synced=True):
            understood(*out)
        if telling.wants_part:
            understood(*telling.told_part(-1, 1, b""))
        assert telling.lag_ms(now_ms) >= 0


@settings(max_examples=20)
@given(st.lists(st.tuples(values(NodeTable), st.none() | values(LocalView)), max_size=3))
def test_the_plan(told: list[tuple[NodeTable, LocalView | None]]) -> None:
    own = frozenset({"10.0.0.1", "10.0.1.1"})
    facts = LocalFacts("lb-0", "10.0.0.1", "10.0.1.1", own, 4096, 64, 64, 64, 4096)
    held = EMPTY
    for now_ms, (table, view) in enumerate(told):
        held = make_plan(held, table, view, {}, facts, None, now_ms).after


@FEW
@given(st.lists(envelopes(), max_size=8))
def test_the_api(received: list[Envelope]) -> None:
    fold = Fold("boot", {})
    local = Local("lb-0", "l4", "0", 1, None, "")
    for envelope in received:
        data = from_json(PAYLOADS[envelope.topic], to_json(envelope.data))
        assert data == envelope.data
        for entry in fold.receive(envelope, 1):
            assert entry.body
    for shape in (
        snapshot.status(fold, local, 2),
        snapshot.nodes(fold, 2),
        snapshot.services(fold, local, 2),
        snapshot.quorum(fold, 2),
    ):
        to_json(shape)
    assert exposition(lambda: Scrape(fold, local, {}, {}, 2))()
    to_json(fold.published)
