"""Arbitrary messages, of every type and up to the ends of every range."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from bus import peer_protocol, replica_protocol, words
from bus.codec import Envelope, Head
from bus.node_protocol import NODE_PROTOCOL
from bus.orders import Asked, OrderKind
from bus.states import (
    LocalChecks,
    NodeTable,
    SeatColumns,
    SnatSlice,
)
from bus.topics import (
    PAYLOADS,
    Topic,
)

RANGES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (words.Whole, st.integers(0, 2**62)),
    # Whoever reads it counts on from it, and says so to others.
    (words.Stored, st.integers(0, 2**61 - 1_000)),
    (peer_protocol.Promise, st.integers(0, words.LARGEST_PROMISE_MS)),
    (peer_protocol.PortOrNone, st.integers(0, 65_535)),
    (replica_protocol.Position, st.integers(-1, 2**31 - 1)),
    (replica_protocol.Tick, st.integers(0, 2**32 - 1)),
    (replica_protocol.Boot, st.from_regex("[0-9a-f]{0,16}", fullmatch=True)),
    (words.Signed, st.integers(-(2**62), 2**62)),
    (words.Word, st.integers(0, 2**64 - 1)),
    (words.Duration, st.integers(0, 316_224_000_000)),
    (words.Percent, st.integers(0, 100)),
    (words.Weight, st.integers(0, 1_000)),
    (words.Port, st.integers(1, 65_535)),
    (words.PortCount, st.integers(0, 65_536)),
    (words.LowPort, st.integers(0, 1_023)),
    (words.IPv4, st.ip_addresses(v=4).map(str)),
    (words.Entry, st.integers(1, 65_534).map(lambda port: f"lb-{port % 7}.local:{port}")),
]


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Anything a field of this type may hold that JSON can carry (no NaN)."""
    for ranged, strategy in RANGES:
        if kind == ranged:
            return strategy
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        fields = {name: values(hint) for name, hint in hints.items()}
        made = st.fixed_dictionaries(fields)
        return made.map(_fitted(kind)).map(lambda found: typing.cast("type[Any]", kind)(**found))
    if get_origin(kind) is Annotated:
        return values(get_args(kind)[0])
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and Ellipsis not in arguments:
        return st.tuples(*map(values, arguments))
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


def _fitted(kind: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What makes of any values some that a message of this type may hold together."""
    if kind is SnatSlice:
        return _clipped
    if kind in (LocalChecks, SeatColumns):
        return _as_long_as_each_other
    if kind is NodeTable:
        return _each_once
    if kind is Asked:
        return _an_order
    return lambda found: found


def _clipped(found: dict[str, Any]) -> dict[str, Any]:
    """As many of its ports as there are."""
    low_first_port = found["low_first_port"]
    if found["low_ports"]:
        low_first_port = max(1, low_first_port)
    return found | {
        "ports": min(found["ports"], 65_536 - found["first_port"]),
        "low_first_port": low_first_port,
        "low_ports": min(found["low_ports"], 1_024 - low_first_port),
    }


def _as_long_as_each_other(found: dict[str, Any]) -> dict[str, Any]:
    shortest = min(len(column) for column in found.values() if isinstance(column, tuple))
    return {
        name: value[:shortest] if isinstance(value, tuple) else value
        for name, value in found.items()
    }


def _an_order(found: dict[str, Any]) -> dict[str, Any]:
    texts = {name: words.one_line(found[name]) for name in ("node", "by", "why")}
    return found | {
        "node": texts["node"] or "n",
        "by": texts["by"] or "b",
        "why": texts["why"],
        "weight": found["weight"] if found["kind"] is OrderKind.WEIGHT else None,
        "within_ms": found["within_ms"] if found["kind"] is OrderKind.DRAIN else None,
    }


def _each_once(found: dict[str, Any]) -> dict[str, Any]:
    nodes = {node.id: node for node in found["nodes"]}
    services = {service.name: service for service in found["services"]}
    members = {member.address: member for member in found["members"]}
    return found | {
        "nodes": tuple(nodes.values()),
        "services": tuple(services.values()),
        "members": tuple(members.values()),
    }


def heads(topic: Topic) -> st.SearchStrategy[Head]:
    return st.builds(
        Head,
        topic=st.just(topic),
        source=values(str),
        host=values(str),
        boot=values(str),
        seq=values(int),
        version=values(int),
        time_ms=values(int),
        made_ms=values(int),
    )


def envelopes() -> st.SearchStrategy[Envelope]:
    return st.sampled_from(Topic).flatmap(
        lambda topic: st.builds(Envelope, heads(topic), values(PAYLOADS[topic]))
    )


def node_messages() -> st.SearchStrategy[Any]:
    return st.one_of(*(values(kind) for kind in NODE_PROTOCOL.values()))
