"""docs/events.md says what is sent: every topic, every field, every type."""

from __future__ import annotations

import dataclasses
import enum
import glob
import re
import types
import typing
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import orjson
import pytest
import zmq

from bus import topics
from bus.topics import (
    PAYLOADS,
    Topic,
)
from services.api.fold import PUBLIC_STATES
from services.api.stream import EventLog
from tests.api.samples import down, envelope

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
PUBLIC_TOPICS = [
    *PUBLIC_STATES.values(),
    *(topic for topic in Topic if not topic.is_state),
]


def rows(heading: str) -> dict[str, str]:
    """The first two columns of the table below a heading."""
    text = re.split(rf"^#+ {re.escape(heading)}$", PAGE.read_text(), flags=re.MULTILINE)[1]
    text = re.split(r"^#", text, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.*?) \|", text, flags=re.MULTILINE))


def words(kind: Any) -> str:
    """A type as the page writes it."""
    if dataclasses.is_dataclass(kind):
        name = getattr(kind, "__name__", "")
        return f"[{name}](#{name.lower()})"
    if get_origin(kind) is tuple:
        return f"array of {words(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return f"object of {words(get_args(kind)[1])}"
    if get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(words(argument) for argument in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    named = {
        str: "string",
        int: "integer",
        float: "number",
        bool: "boolean",
        type(None): "null",
    }
    return named[kind]


def messages_within(kind: Any, found: dict[str, type]) -> dict[str, type]:
    """All dataclasses that a payload is made of, by name."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__name__ not in found:
        found[kind.__name__] = kind
        for hint in get_type_hints(kind).values():
            messages_within(hint, found)
    for argument in get_args(kind):
        messages_within(argument, found)
    return found


def test_every_public_topic_names_its_schema() -> None:
    documented = rows("Topics")
    assert documented == {topic.value: words(PAYLOADS[topic]) for topic in PUBLIC_TOPICS}


def test_every_field_of_every_schema() -> None:
    found: dict[str, type] = {}
    for topic in PUBLIC_TOPICS:
        messages_within(PAYLOADS[topic], found)
    assert len(found) > 15
    for name, kind in found.items():
        expected = {field: words(hint) for field, hint in get_type_hints(kind).items()}
        assert rows(name) == expected, name


def test_no_schema_is_left_over() -> None:
    found: dict[str, type] = {}
    for topic in PUBLIC_TOPICS:
        messages_within(PAYLOADS[topic], found)
    assert set(re.findall(r"^### (\w+)$", PAGE.read_text(), flags=re.MULTILINE)) == set(found)


def test_every_field_of_the_envelope() -> None:
    entry = EventLog("b").append(Topic.NODE_DOWN, envelope(topics.HEALTH, Topic.NODE_DOWN, down()))
    assert list(rows("A message")) == list(orjson.loads(entry.body))


def test_topics_end_in_a_dot_on_the_page_too() -> None:
    assert all(topic.endswith(".") for topic in rows("Topics"))


def test_the_script_is_ten_lines() -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(script.splitlines()) <= 10


def test_the_script_listens_to_a_lab_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq goes on trying, so it has to be told where that lab will be."""
    monkeypatch.delenv("GALE_RUN_DIR", raising=False)
    monkeypatch.setattr(glob, "glob", lambda _pattern: [])
    connects: list[str] = []
    monkeypatch.setattr(zmq.Socket, "connect", lambda _socket, place: connects.append(place))
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(script.partition("while True:")[0], {})
    wanted = {f"ipc:///run/gale/lab/lb-{number}/run/events.ipc" for number in range(8)}
    assert {"ipc:///run/gale/events.ipc"} | wanted == set(connects)
