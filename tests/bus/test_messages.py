"""Every message survives the wire; what is not a message is refused, never half read."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import messages, topology
from bus.messages import (
    NODE_PROTOCOL,
    PAYLOADS,
    Command,
    Envelope,
    MalformedMessage,
    NodeTable,
    ProcessEvent,
    Reply,
    SnatSlice,
    Topic,
    decode,
    decode_node,
    encode,
    encode_node,
    from_json,
    from_plain,
    one_line,
    to_json,
)
from tests.bus.strategies import envelopes, node_messages, values


@given(envelopes())
def test_a_bus_message_survives_the_wire(envelope: Envelope) -> None:
    frames = encode(envelope)
    assert frames[0] == envelope.topic.encode()
    assert decode(frames) == envelope


@given(node_messages())
def test_a_node_message_survives_the_wire(message: Any) -> None:
    assert decode_node(encode_node(message)) == message


@given(st.one_of(values(Command), values(Reply)))
def test_a_command_survives_the_wire(message: Any) -> None:
    assert from_json(type(message), to_json(message)) == message


@given(envelopes(), st.data())
def test_a_missing_field_is_refused(envelope: Envelope, data: st.DataObject) -> None:
    frames = encode(envelope)
    body = orjson.loads(frames[1])
    missing = data.draw(st.sampled_from(sorted(body)))
    del body[missing]
    with pytest.raises(MalformedMessage):
        decode([frames[0], orjson.dumps(body)])


@given(envelopes(), st.data())
def test_a_payload_without_one_of_its_fields_is_refused(
    envelope: Envelope, data: st.DataObject
) -> None:
    frames = encode(envelope)
    body = orjson.loads(frames[1])
    fields = dataclasses.fields(PAYLOADS[envelope.topic])
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = data.draw(st.sampled_from(required))
    del body["data"][missing]
    with pytest.raises(MalformedMessage, match=re.escape(missing)):
        decode([frames[0], orjson.dumps(body)])


@given(envelopes())
def test_unknown_fields_are_ignored(envelope: Envelope) -> None:
    frames = encode(envelope)
    body = orjson.loads(frames[1])
    body["new_in_version_9"] = 1
    body["data"]["also_new"] = {"x": []}
    assert decode([frames[0], orjson.dumps(body)]) == envelope


@given(envelopes(), st.one_of(st.none(), st.integers(2, 9), st.text(max_size=2)))
def test_another_format_version_is_refused(envelope: Envelope, version: Any) -> None:
    frames = encode(envelope)
    body = orjson.loads(frames[1]) | {"v": version}
    with pytest.raises(MalformedMessage, match="version"):
        decode([frames[0], orjson.dumps(body)])


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_arbitrary_bytes_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        decode(frames)
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
    body = {"v": 1, "source": "s", "host": "h", "boot": "b", "seq": 1, "time_ms": 1}
    with pytest.raises(MalformedMessage):
        decode([topic.encode(), orjson.dumps(body | {"data": payload})])


def test_the_first_wrong_field_is_named() -> None:
    body = {"v": 1, "source": "s", "host": "h", "boot": "b", "seq": 1, "time_ms": 1}
    data = {"process": "health", "pid": "twelve", "version": "1", "adopted": ""}
    with pytest.raises(MalformedMessage, match=r"ProcessEvent\.pid"):
        decode([b"process.started.", orjson.dumps(body | {"data": data})])


def test_topics_end_in_a_dot_and_none_is_a_prefix_of_another() -> None:
    for topic in Topic:
        assert topic.endswith(".")
        assert [other for other in Topic if other.startswith(topic)] == [topic]


def test_every_topic_has_a_payload_and_every_message_is_frozen_and_slotted() -> None:
    assert set(PAYLOADS) == set(Topic)
    for kind in {*PAYLOADS.values(), *NODE_PROTOCOL.values(), Command, Reply, Envelope}:
        assert vars(kind)["__dataclass_params__"].frozen, kind
        assert "__slots__" in vars(kind), kind


def test_who_subscribes_asks_for_what_is_published() -> None:
    for subscriber, wanted in topology.SUBSCRIBES.items():
        for publisher, topics in wanted.items():
            assert publisher != subscriber
            assert set(topics) <= set(topology.PUBLISHES[publisher])


# ----------------------------------------------------------------- ranges


def whole_messages() -> Iterator[tuple[type[Any], dict[str, Any]]]:
    """Of every type that travels, one value as JSON."""
    for kind in [*set(PAYLOADS.values()), *NODE_PROTOCOL.values()]:
        yield kind, orjson.loads(to_json(one_of_each(kind)))


def one_of_each(kind: Any) -> Any:
    """A value of that type in which every list has an element."""
    simplest: dict[Any, Any] = {str: "x", float: 0.5, bool: True, type(None): None, Any: 1}
    by_range = {1: (messages.Whole, messages.Signed, messages.Word, messages.Duration)}
    if kind == messages.IPv4:
        return "10.0.0.1"
    ports = (messages.Port, messages.PortCount, messages.LowPort)
    if kind in (*by_range[1], messages.Weight, *ports):
        return 1
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        made: Any = typing.cast("type[Any]", kind)
        return made(**{name: one_of_each(hint) for name, hint in hints.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return (one_of_each(arguments[0]),)
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


def test_no_number_is_taken_that_has_no_room() -> None:
    """Neither by the way of the bus (parsed first) nor by that of the node protocol."""
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
                with pytest.raises(MalformedMessage):
                    from_plain(kind, orjson.loads(body))
            wrongs: list[Any] = [True, "7", 1.5, None, []]
            for wrong in wrongs:
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
    ("NodeEvent", "address"),
    ("VipEvent", "address"),
    ("VipHolder", "address"),
    ("QuorumMember", "address"),
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
    table = one_of_each(NodeTable)
    for first, ports, fits in ((65_535, 1, True), (65_535, 2, False), (1, 65_535, True)):
        changed = dataclasses.replace(table, snat_slices=(SnatSlice("lb", None, first, ports),))
        assert is_taken(NodeTable, to_json(changed)) is fits
    lows = ((1_023, 1, True), (1_023, 2, False), (1, 1_023, True), (0, 1, False), (0, 0, True))
    for first, ports, fits in lows:
        piece = SnatSlice("lb", None, 1_536, 1, low_first_port=first, low_ports=ports)
        changed = dataclasses.replace(table, snat_slices=(piece,))
        assert is_taken(NodeTable, to_json(changed)) is fits, (first, ports)


def test_a_table_lists_each_node_and_each_service_once() -> None:
    table = one_of_each(NodeTable)
    assert is_taken(NodeTable, to_json(table))
    for changed in ({"nodes": table.nodes * 2}, {"services": table.services * 2}):
        assert not is_taken(NodeTable, to_json(dataclasses.replace(table, **changed)))


@pytest.mark.parametrize("value", [2**64, 2**63, -1, "1", True, 1.5, None])
def test_an_envelopes_number_has_room(value: Any) -> None:
    frames = encode(
        Envelope(Topic.PROCESS_STARTED, "s", "h", "b", 1, 1, ProcessEvent("p", 1, "", ""))
    )
    body = frames[1].replace(b'"seq":1', b'"seq":' + json.dumps(value).encode())
    assert decode(frames).seq == 1
    with pytest.raises(MalformedMessage):
        decode([frames[0], body])


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
