"""Arbitrary messages, of every type and up to the ends of every range."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from bus import messages
from bus.messages import NODE_PROTOCOL, PAYLOADS, Envelope, NodeTable, SnatSlice, Topic

RANGES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (messages.Whole, st.integers(0, 2**62)),
    (messages.Stored, st.integers(0, 2**61)),
    (messages.Signed, st.integers(-(2**62), 2**62)),
    (messages.Word, st.integers(0, 2**64 - 1)),
    (messages.Duration, st.integers(0, 316_224_000_000)),
    (messages.Weight, st.integers(0, 1_000)),
    (messages.Port, st.integers(1, 65_535)),
    (messages.PortCount, st.integers(0, 65_536)),
    (messages.LowPort, st.integers(0, 1_023)),
    (messages.IPv4, st.ip_addresses(v=4).map(str)),
]


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Anything a field of this type may hold that JSON can carry (no NaN)."""
    for ranged, strategy in RANGES:
        if kind == ranged:
            return strategy
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        fields = {name: values(hint) for name, hint in hints.items()}
        built = st.builds(typing.cast("type[Any]", kind), **fields)
        return built.map(_clipped) if kind is SnatSlice else built.filter(_fits)
    if get_origin(kind) is Annotated:
        return values(get_args(kind)[0])
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
        int: st.integers(0, 2**62),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        type(None): st.none(),
        Any: st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3)),
    }[kind]


def _clipped(found: SnatSlice) -> SnatSlice:
    """As many of its ports as there are."""
    low_first_port = max(1, found.low_first_port) if found.low_ports else found.low_first_port
    return dataclasses.replace(
        found,
        ports=min(found.ports, 65_536 - found.first_port),
        low_first_port=low_first_port,
        low_ports=min(found.low_ports, 1_024 - low_first_port),
    )


def _fits(value: Any) -> bool:
    """Whether what is said of values together holds as well."""
    if isinstance(value, NodeTable):
        ids, names = [n.id for n in value.nodes], [s.name for s in value.services]
        return len(set(ids)) == len(ids) and len(set(names)) == len(names)
    return True


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
