"""Every message survives the wire; what is not a message is refused, never half read."""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from typing import Any, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import topology
from bus.messages import (
    NODE_PROTOCOL,
    PAYLOADS,
    Command,
    Envelope,
    MalformedMessage,
    Reply,
    Topic,
    decode,
    decode_node,
    encode,
    encode_node,
    from_json,
    one_line,
    to_json,
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Anything a field of this type may hold that JSON can carry (64-bit integers, no NaN)."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        fields = {name: values(hint) for name, hint in hints.items()}
        return st.builds(typing.cast("type[Any]", kind), **fields)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(values(argument) for argument in arguments))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    return {
        str: st.text(max_size=8),
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        type(None): st.none(),
        Any: st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3)),
    }[kind]


def envelopes() -> st.SearchStrategy[Envelope]:
    return st.sampled_from(Topic).flatmap(
        lambda topic: st.builds(
            Envelope,
            topic=st.just(topic),
            source=values(str),
            host=values(str),
            boot=values(str),
            seq=values(int),
            time_ms=values(int),
            data=values(PAYLOADS[topic]),
        )
    )


def node_messages() -> st.SearchStrategy[Any]:
    return st.one_of(*(values(kind) for kind in NODE_PROTOCOL.values()))


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
