"""Every message survives the wire; what is not a message is refused, never half read."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import replica_protocol, topics, words
from bus.codec import (
    BUS_VERSION,
    Envelope,
    Head,
    MalformedMessage,
    UnknownVersion,
    decode_body,
    decode_head,
    encode,
    encode_head,
    from_json,
    to_json,
)
from bus.commands import (
    COMMAND_VERSION,
    Command,
    Reply,
    read_command,
)
from bus.events import ProcessEvent
from bus.node_protocol import (
    NODE_PROTOCOL,
    decode_node,
    encode_node,
)
from bus.orders import Asked, OrderKind
from bus.peer_protocol import PeerMessage, Promise
from bus.states import (
    Counters,
    LocalChecks,
    NodeTable,
    SeatColumns,
    SnatSlice,
)
from bus.topics import (
    PAYLOADS,
    Topic,
)
from bus.words import one_line
from tests.bus.strategies import envelopes, node_messages, values


def decode(frames: list[bytes]) -> Envelope:
    """A message as a whole: the head, then the body."""
    return decode_body(decode_head(frames), frames[2])


@given(envelopes())
def test_a_bus_message_survives_the_wire(envelope: Envelope) -> None:
    frames = encode(envelope)
    assert frames[0] == envelope.topic.encode()
    assert decode(frames) == envelope


@given(envelopes())
def test_of_a_state_the_head_alone_is_a_message_and_of_an_event_it_is_not(
    envelope: Envelope,
) -> None:
    frames = encode_head(envelope.head)
    if envelope.topic.is_state:
        assert decode_head(frames) == envelope.head
    else:
        with pytest.raises(MalformedMessage):
            decode_head(frames)


@given(node_messages())
def test_a_node_message_survives_the_wire(message: Any) -> None:
    assert decode_node(encode_node(message)) == message


@given(st.one_of(values(Command), values(Reply)))
def test_a_command_survives_the_wire(message: Any) -> None:
    assert from_json(type(message), to_json(message)) == message


@given(envelopes(), st.data())
def test_a_head_without_one_of_its_fields_is_refused(
    envelope: Envelope, data: st.DataObject
) -> None:
    frames = encode(envelope)
    head = orjson.loads(frames[1])
    missing = data.draw(st.sampled_from(sorted(head)))
    del head[missing]
    with pytest.raises(MalformedMessage):
        decode_head([frames[0], orjson.dumps(head), frames[2]])


@given(envelopes(), st.data())
def test_a_payload_without_one_of_its_fields_is_refused(
    envelope: Envelope, data: st.DataObject
) -> None:
    frames = encode(envelope)
    body = orjson.loads(frames[2])
    fields = dataclasses.fields(PAYLOADS[envelope.topic])
    required = [
        field.name
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    missing = data.draw(st.sampled_from(required))
    del body[missing]
    with pytest.raises(MalformedMessage, match=re.escape(missing)):
        decode([*frames[:2], orjson.dumps(body)])


@given(envelopes())
def test_unknown_fields_are_ignored(envelope: Envelope) -> None:
    frames = encode(envelope)
    head, body = (orjson.loads(frame) for frame in frames[1:])
    head["new_in_version_9"] = 1
    body["also_new"] = {"x": []}
    assert decode([frames[0], orjson.dumps(head), orjson.dumps(body)]) == envelope


@given(envelopes(), st.integers(0, 9).filter(lambda version: version != BUS_VERSION))
def test_another_version_of_the_bus_is_refused_as_such(envelope: Envelope, version: int) -> None:
    frames = encode(envelope)
    head = orjson.loads(frames[1]) | {"v": version}
    with pytest.raises(UnknownVersion, match="version"):
        decode_head([frames[0], orjson.dumps(head), frames[2]])


def test_another_version_of_commands_is_refused_as_such() -> None:
    assert read_command(to_json(Command("1", "reload", {}))).verb == "reload"
    with pytest.raises(UnknownVersion, match="version"):
        read_command(to_json(Command("1", "reload", {}, v=COMMAND_VERSION + 1)))


def test_nesting_without_end_is_the_senders_fault() -> None:
    for body in (b"[" * 100_000, b'{"id":"1","verb":"v","arguments":{"a":' + b"[" * 100_000):
        with pytest.raises(MalformedMessage):
            from_json(Command, body)


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_arbitrary_bytes_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        decode_head(frames)
    with pytest.raises(MalformedMessage):
        decode_node(frames)


@given(
    st.sampled_from(Topic),
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    ),
)
def test_any_json_as_payload_is_refused(topic: Topic, payload: Any) -> None:
    with pytest.raises(MalformedMessage):
        decode_body(head_of(topic), orjson.dumps(payload))


def test_the_first_wrong_field_is_named() -> None:
    data = {"process": "health", "pid": "twelve", "version": "1", "adopted": ""}
    with pytest.raises(MalformedMessage, match=r"ProcessEvent\.pid: Expected `int`"):
        decode_body(head_of(Topic.PROCESS_STARTED), orjson.dumps(data))


def test_topics_end_in_a_dot_and_none_is_a_prefix_of_another() -> None:
    for topic in Topic:
        assert topic.endswith(".")
        assert [other for other in Topic if other.startswith(topic)] == [topic]


def test_every_topic_has_a_payload_and_every_message_is_frozen_and_slotted() -> None:
    assert set(PAYLOADS) == set(Topic)
    for kind in {*PAYLOADS.values(), *NODE_PROTOCOL.values(), Command, Reply, Head, Envelope}:
        assert vars(kind)["__dataclass_params__"].frozen, kind
        assert "__slots__" in vars(kind), kind


def test_who_subscribes_asks_for_what_is_published() -> None:
    for subscriber, wanted in topics.SUBSCRIBES.items():
        for publisher, these in wanted.items():
            assert publisher != subscriber
            assert set(these) <= set(topics.PUBLISHES[publisher])


# ----------------------------------------------------------------- ranges


def head_of(topic: Topic) -> Head:
    return Head(topic, "s", "h", "b", 1, 1, 1, 1)


def whole_messages() -> Iterator[tuple[type[Any], dict[str, Any]]]:
    """Of every type that travels, one value as JSON."""
    replica_kinds = replica_protocol.REPLICA_PROTOCOL.values()
    for kind in [
        *set(PAYLOADS.values()),
        *NODE_PROTOCOL.values(),
        *get_args(PeerMessage),
        *replica_kinds,
    ]:
        yield kind, orjson.loads(to_json(one_of_each(kind)))


def one_of_each(kind: Any) -> Any:
    """A value of that type in which every list has an element."""
    simplest: dict[Any, Any] = {str: "x", float: 0.5, bool: True, type(None): None, Any: 1}
    counted = (words.Whole, words.Stored, words.Signed, words.Word, words.Duration, Promise)
    if kind == replica_protocol.Boot:
        return "1"
    if kind == words.IPv4:
        return "10.0.0.1"
    if kind == words.Entry:
        return "lb-0.local:8081"
    ports = (words.Port, words.PortCount, words.LowPort)
    if kind in (
        *counted,
        replica_protocol.Position,
        replica_protocol.Tick,
        words.Percent,
        words.Weight,
        *ports,
    ):
        return 1
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        if kind is Asked:  # a weight and a deadline are of one kind of order each
            return Asked("x", OrderKind.WEIGHT, "x", "x", 1, None, 1)
        made: Any = typing.cast("type[Any]", kind)
        return made(**{name: one_of_each(hint) for name, hint in hints.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return tuple(one_of_each(each) for each in arguments if each is not Ellipsis)
    if origin is dict:
        return {one_of_each(arguments[0]): one_of_each(arguments[1])}
    if origin in (types.UnionType, typing.Union, Annotated):
        return one_of_each(arguments[0])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    return simplest[kind]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value the numbers stand that are whole."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path


def with_value(message: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = orjson.loads(orjson.dumps(message))
    holder = changed
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return typing.cast("dict[str, Any]", changed)


def is_taken(kind: type[Any], body: bytes) -> bool:
    try:
        from_json(kind, body)
    except MalformedMessage:
        return False
    return True


OPTIONAL = ("weight", "within_ms", "remaining_ms")
"""What an order may do without."""


def test_no_number_is_taken_that_has_no_room() -> None:
    seen = 0
    for kind, message in whole_messages():
        assert is_taken(kind, orjson.dumps(message))
        for path in places(message):
            seen += 1
            for text in ("-9223372036854775809", "18446744073709551616", "1" + "0" * 30, "-1e30"):
                body = orjson.dumps(with_value(message, path, "HERE")).replace(
                    b'"HERE"', text.encode()
                )
                assert not is_taken(kind, body), (kind, path, text)
            wrongs: list[Any] = [True, "7", 1.5, None, []]
            for wrong in wrongs:
                if wrong is None and path[-1] in OPTIONAL:
                    continue
                assert not is_taken(kind, orjson.dumps(with_value(message, path, wrong)))
    assert seen > 60


BAD_VALUES: dict[str, tuple[Any, ...]] = {
    "port": (0, -1, 65_536, 70_000),
    "node_port": (0, -1, 65_536, 70_000),
    "first_port": (0, -1, 65_536),
    "ports": (-1, 65_537),
    "low_first_port": (-1, 1_024),
    "low_ports": (-1, 1_024),
    "weight": (-1, 1_001, 2**32),
    "remaining_ms": (-1, 2**40),
    "banned_for_ms": (-1, 2**40),
    "retry_ms": (-1, 2**40),
    "hash_seed": (-1, 2**64),
    "epoch": (-1, 2**63 - 1),
    "seat": (-1,),
    "vip": ("", "::1", "10.0.0", "10.0.0.1/24", "10.0.0.256", "010.0.0.1", "10.0.0.1\n", "lb"),
    "address": ("", "::1", "fe80::1%eth0", "10.0.0", "10.0.0.256", "1.2.3.4.5", "10.0.0.1 ", "a"),
    "snat_address": ("", "::1", "10.0.0.1:80"),
    "snat_addresses": ([""], ["10.0.0.1", "::1"], "10.0.0.1"),
}
FREE = {
    # For people: what an agent's hello says, events, and the members of the quorum.
    ("Hello", "weight"),
    ("Applicant", "address"),
    ("MemberEvent", "address"),
    ("NodeEvent", "address"),
    ("VipEvent", "address"),
    ("VipHolder", "address"),
    ("QuorumMember", "address"),
    ("ClaimState", "address"),
    ("ReplicaPeer", "address"),
}


def test_values_that_would_kill_a_core_are_not_taken() -> None:
    seen = set()
    kinds = {k for kind in PAYLOADS.values() for k in nested(kind)}
    kinds |= {k for kind in NODE_PROTOCOL.values() for k in nested(kind)}
    for kind in kinds:
        message = orjson.loads(to_json(one_of_each(kind)))
        for name in set(message) & set(BAD_VALUES):
            if (kind.__name__, name) in FREE:
                continue
            seen.add(name)
            for value in BAD_VALUES[name]:
                body = json.dumps(with_value(message, (name,), value)).encode()
                assert not is_taken(kind, body), (kind, name, value)
    assert seen == set(BAD_VALUES)


def nested(kind: Any) -> set[type[Any]]:
    """The message types that occur in a type, itself included."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return {inner for argument in get_args(kind) for inner in nested(argument)}
    hints = get_type_hints(kind, include_extras=True).values()
    return {kind} | {inner for hint in hints for inner in nested(hint)}


def test_a_slice_of_ports_ends_where_ports_end() -> None:
    piece = orjson.loads(to_json(one_of_each(SnatSlice)))
    for first, ports, fits in ((65_535, 1, True), (65_535, 2, False), (1, 65_535, True)):
        changed = piece | {"first_port": first, "ports": ports}
        assert is_taken(SnatSlice, orjson.dumps(changed)) is fits
    lows = ((1_023, 1, True), (1_023, 2, False), (1, 1_023, True), (0, 1, False), (0, 0, True))
    for first, ports, fits in lows:
        changed = piece | {"low_first_port": first, "low_ports": ports}
        assert is_taken(SnatSlice, orjson.dumps(changed)) is fits, (first, ports)


def test_a_table_lists_each_node_and_each_service_once() -> None:
    table = orjson.loads(to_json(one_of_each(NodeTable)))
    assert is_taken(NodeTable, orjson.dumps(table))
    for name in ("nodes", "services"):
        assert not is_taken(NodeTable, orjson.dumps(table | {name: table[name] * 2}))


@pytest.mark.parametrize("kind", [LocalChecks, SeatColumns])
def test_columns_are_as_long_as_each_other(kind: type[Any]) -> None:
    columns = orjson.loads(to_json(one_of_each(kind)))
    for name, column in columns.items():
        if isinstance(column, list):
            assert not is_taken(kind, orjson.dumps(columns | {name: column * 2})), name


@pytest.mark.parametrize(
    ("kind", "name", "wrap"),
    [
        (NodeTable, "hash_seed", lambda word: word),
        (SeatColumns, "packets_in", lambda word: [word]),
        (SeatColumns, "flows", lambda word: [word]),
        (Counters, "verdicts", lambda word: {"xdp_public.fine": word}),
    ],
)
def test_a_word_has_64_bits(kind: type[Any], name: str, wrap: Callable[[int], Any]) -> None:
    message = orjson.loads(to_json(one_of_each(kind)))
    for word, fits in ((2**64 - 1, True), (2**64, False), (-1, False)):
        body = json.dumps(message | {name: wrap(word)}).encode()
        assert is_taken(kind, body) is fits, word


@pytest.mark.parametrize("value", [2**64, 2**63, -1, "1", True, 1.5, None])
def test_an_envelopes_number_has_room(value: Any) -> None:
    frames = encode(Envelope(head_of(Topic.PROCESS_STARTED), ProcessEvent("p", 1, "", "")))
    for name in (b'"seq":1', b'"version":1'):
        head = frames[1].replace(name, name[:-1] + json.dumps(value).encode())
        assert head != frames[1]
        with pytest.raises(MalformedMessage):
            decode_head([frames[0], head, frames[2]])


# ----------------------------------------------------------------- reasons


@given(st.text(max_size=400), st.integers(1, 300))
def test_one_line_is_one_printable_line_of_any_text(text: str, longest: int) -> None:
    line = one_line(text, longest)
    assert line.isprintable()
    assert len(line) <= longest
    assert one_line(line, longest) == line


def test_one_line_keeps_the_words_and_what_is_one_line_already() -> None:
    assert one_line("a  b: ärger") == "a  b: ärger"
    assert one_line("line 1\n\n  line 2\r\n") == "line 1 line 2"
    assert one_line("x" * 1_000) == "x" * 200


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("welcome", {"boot": "no number"}),
        ("welcome", {"boot": "0123456789abcdef0"}),
        ("hello", {"known_boot": "ABC"}),
        ("hello", {"position": -2}),
        ("part", {"following": 2**31}),
        ("live", {"tick": 2**32}),
        ("digests", {"before_tick": 2**32}),
        ("hello", {"v": -1}),
    ],
)
def test_what_the_kernel_has_no_room_for_is_not_taken_from_a_replica(
    kind: str, changes: dict[str, Any]
) -> None:
    good = orjson.loads(to_json(one_of_each(replica_protocol.REPLICA_PROTOCOL[kind])))
    payload = [b""] if kind in ("part", "live", "digests") else []
    replica_protocol.decode_replica([kind.encode(), orjson.dumps(good), *payload])
    with pytest.raises(MalformedMessage):
        replica_protocol.decode_replica([kind.encode(), orjson.dumps(good | changes), *payload])
