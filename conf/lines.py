"""On which line of a TOML text a key stands.

tomli gives values and forgets where they were, and an operator wants the line. This scanner walks
the same text once more and notes the line of every table's header, key, array element and inline
table. It judges nothing: tomli has accepted the text before, so it only has to know where tokens
end (strings of four kinds, comments, nesting), never what they mean.

A path is a tuple as pydantic writes it: `("load_balancer_quorum", "addresses", 1, "port")`.
"""

from __future__ import annotations

import re
from typing import NoReturn

import tomli

Key = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # up to two quotes may touch the closing three
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")


class LineIndex:
    """The line of each key of one valid TOML text, counted from 1."""

    def __init__(self, text: str) -> None:
        self._lines = _Scanner(text).scan()

    def __contains__(self, key: Key) -> bool:
        return key in self._lines

    def line_of(self, key: Key) -> int:
        """The key's line; for a key that is not there, its table's; for no table, 1."""
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines[key] if key else 1


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[Key, int] = {}
        self._elements: dict[Key, int] = {}
        """Arrays of tables: how many `[[...]]` of each have begun."""

    def scan(self) -> dict[Key, int]:
        table: Key = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._next("["):
                table = self._header()
            else:
                self._assignment(table)
            self._skip(_BLANK)
        return self._lines

    def _header(self) -> Key:
        line = self._line
        is_array = self._text.startswith("[[", self._at)
        brackets = 2 if is_array else 1
        self._advance(self._at + brackets)
        *parents, name = self._dotted_key()
        self._skip(_BLANK)
        self._advance(self._at + brackets)

        table: Key = ()
        for parent in parents:
            table = self._newest((*table, parent))
            self._lines.setdefault(table, line)  # a table that only its children's headers name
        table = (*table, name)
        if is_array:
            self._lines.setdefault(table, line)
            self._elements[table] = self._elements.get(table, 0) + 1
            table = self._newest(table)
        self._lines[table] = line
        return table

    def _newest(self, table: Key) -> Key:
        """An array of tables stands for the last of its elements."""
        count = self._elements.get(table)
        return table if count is None else (*table, count - 1)

    def _assignment(self, table: Key) -> None:
        line = self._line
        *parents, name = self._dotted_key()
        for parent in parents:
            table = (*table, parent)
            self._lines.setdefault(table, line)
        key = (*table, name)
        self._lines[key] = line
        self._skip(_BLANK)
        self._expect("=")
        self._value(key)

    def _dotted_key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            parts.append(_plain(self._match(_KEY)))
            dot = _DOT.match(self._text, self._at)
            if dot is None:
                return parts
            self._advance(dot.end())

    def _value(self, key: Key) -> None:
        self._skip(_BLANK)
        if self._next("["):
            self._array(key)
        elif self._next("{"):
            self._inline_table(key)
        elif self._next('"') or self._next("'"):
            self._match(_STRING)
        else:
            self._match(_SCALAR)

    def _array(self, key: Key) -> None:
        self._expect("[")
        index = 0
        self._skip(_BLANK)
        while not self._next("]"):
            element = (*key, index)
            self._lines[element] = self._line
            self._value(element)
            index += 1
            self._skip_comma()
        self._expect("]")

    def _inline_table(self, key: Key) -> None:
        self._expect("{")
        self._skip(_BLANK)
        while not self._next("}"):
            self._assignment(key)
            self._skip_comma()
        self._expect("}")

    def _skip_comma(self) -> None:
        self._skip(_BLANK)
        if self._next(","):
            self._expect(",")
            self._skip(_BLANK)

    # ----------------------------------------------------------------- the cursor

    def _next(self, character: str) -> bool:
        return self._text.startswith(character, self._at)

    def _expect(self, character: str) -> None:
        if not self._next(character):
            self._lost()
        self._advance(self._at + 1)

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            self._lost()
        self._advance(found.end())
        return found.group()

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._match(pattern)

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _lost(self) -> NoReturn:
        raise ValueError(f"line {self._line}: not the TOML that tomli has accepted")


def _plain(token: str) -> str:
    """A key without its quotes and escapes."""
    if token[0] in "\"'":
        (token,) = tomli.loads(f"{token} = 0")
    return token
