"""The line of every key, in texts that are hard to read and in random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.lines import Key, LineIndex

HARD = '''\
# a comment with [brackets] = and "quotes"
top = 1
[plain]  # header
a = "text with # and ] and \\" quote"
b = \'literal \\\' # then a comment
c = """
several
[lines] = 1
""" # closed
d = \'\'\'
raw "" \'\' lines
and quotes at the end\'\'\'\'
after = """x\\"" "" """""
[dotted . "quoted key" . 'another']
x.y . z = 1
x.w = 2
list = [ 1,
  2, [ 3,
    4 ] , # inner
  { a = 1, b.c = [
     2 ] },
]
when = 1979-05-27 07:32:00
[[array]]
k = 1
[array.sub]
k = 2
[[array]]
[[array.inner]]
k = 3
[[array.inner]]
k = 4
[parent.child]
k = 1
[parent]
k = 2
'''

EXPECTED: dict[Key, int] = {
    ("top",): 2,
    ("plain",): 3,
    ("plain", "a"): 4,
    ("plain", "b"): 5,
    ("plain", "c"): 6,
    ("plain", "d"): 10,
    ("plain", "after"): 13,
    ("dotted",): 14,
    ("dotted", "quoted key"): 14,
    ("dotted", "quoted key", "another"): 14,
    ("dotted", "quoted key", "another", "x"): 15,
    ("dotted", "quoted key", "another", "x", "y", "z"): 15,
    ("dotted", "quoted key", "another", "x", "w"): 16,
    ("dotted", "quoted key", "another", "list"): 17,
    ("dotted", "quoted key", "another", "list", 0): 17,
    ("dotted", "quoted key", "another", "list", 1): 18,
    ("dotted", "quoted key", "another", "list", 2): 18,
    ("dotted", "quoted key", "another", "list", 2, 0): 18,
    ("dotted", "quoted key", "another", "list", 2, 1): 19,
    ("dotted", "quoted key", "another", "list", 3): 20,
    ("dotted", "quoted key", "another", "list", 3, "a"): 20,
    ("dotted", "quoted key", "another", "list", 3, "b", "c"): 20,
    ("dotted", "quoted key", "another", "list", 3, "b", "c", 0): 21,
    ("dotted", "quoted key", "another", "when"): 23,
    ("array",): 24,
    ("array", 0): 24,
    ("array", 0, "k"): 25,
    ("array", 0, "sub"): 26,
    ("array", 0, "sub", "k"): 27,
    ("array", 1): 28,
    ("array", 1, "inner", 0): 29,
    ("array", 1, "inner", 0, "k"): 30,
    ("array", 1, "inner", 1): 31,
    ("array", 1, "inner", 1, "k"): 32,
    ("parent", "child"): 33,
    ("parent", "child", "k"): 34,
    ("parent",): 35,
    ("parent", "k"): 36,
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "dos"])
def test_hard_text(newline: str) -> None:
    text = HARD.replace("\n", newline)
    tomli.loads(text)
    index = LineIndex(text)
    assert {key: index.line_of(key) for key in EXPECTED} == EXPECTED
    assert all(key in index for key in EXPECTED)


def test_missing_key_is_on_its_tables_line() -> None:
    index = LineIndex("\n[a]\nb = [\n{ c = 1 }]\n[[d]]\n[[d]]\n")
    assert index.line_of(("a", "missing")) == 2
    assert index.line_of(("a", "b", 0, "missing")) == 4
    assert index.line_of(("d", 1, "missing")) == 6
    assert index.line_of(("nowhere", "missing")) == 1
    assert ("a", "missing") not in index


def test_empty_texts() -> None:
    for text in ("", "\n", "# only a comment", " \t"):
        assert LineIndex(text).line_of(("a",)) == 1


class _Writer:
    """Writes random values as TOML in a random layout, and notes where it has put each key."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw
        self.text = ""
        self.lines: dict[Key, int] = {}

    def note(self, key: Key) -> None:
        self.lines[key] = self.text.count("\n") + 1

    def gap(self) -> None:
        self.text += self._draw(st.sampled_from(["", " ", "\n", " # ] } \" ' [x]\n", "\n\n\t"]))

    def value(self, key: Key, depth: int) -> None:
        kinds = ["scalar", "scalar", "list", "table"] if depth else ["scalar"]
        match self._draw(st.sampled_from(kinds)):
            case "scalar":
                self.text += self._draw(st.sampled_from(SCALARS))
            case "list":
                self.text += "["
                for index in range(self._draw(st.integers(0, 3))):
                    self.gap()
                    self.note((*key, index))
                    self.value((*key, index), depth - 1)
                    self.gap()
                    self.text += ","
                self.gap()
                self.text += "]"
            case _:
                self.text += "{ "
                for index in range(self._draw(st.integers(0, 3))):
                    self.text += ", " if index else ""
                    self.assignment(key, depth - 1)
                self.text += " }"

    def assignment(self, table: Key, depth: int) -> None:
        name = f"k{len(self.lines)}"
        written = self._draw(
            st.sampled_from([name, f'"{name}"', f"'{name}'", f'"\\u006b{name[1:]}"'])
        )
        self.note((*table, name))
        self.text += f"{written} = "
        self.value((*table, name), depth)


SCALARS = [
    "1",
    "-2.5e3",
    "true",
    '"a # ] } b"',
    '"\\"] \\\\"',
    "'\\'",
    '"""\n]\n# " "" """',
    '"""a\\""""',
    '""""b"""""',
    "'''\n[x]\n'''",
    '""',
    "''",
    '""""""',
    "1979-05-27 07:32:00",
]


def _keys_of(value: Any, key: Key = ()) -> set[Key]:
    children: Any = ()
    if isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
    keys = {key} if key else set()
    return keys.union(*(_keys_of(child, (*key, part)) for part, child in children))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data())
def test_random_texts(data: st.DataObject) -> None:
    writer = _Writer(data.draw)
    for index in range(data.draw(st.integers(0, 4))):
        writer.gap()
        writer.text = writer.text.rstrip(" \t") + "\n"
        table: Key = (f"t{index}",)
        writer.note(table)
        writer.text += f"[ {table[0]} ]\n"
        for _ in range(data.draw(st.integers(0, 3))):
            writer.assignment(table, depth=3)
            writer.text += "\n"
    index_of = LineIndex(writer.text)
    assert {key: index_of.line_of(key) for key in writer.lines} == writer.lines
    assert _keys_of(tomli.loads(writer.text)) == set(writer.lines)
