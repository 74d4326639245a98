"""A configuration file as it was read, and what is wrong with it.

`Source.read` opens and parses; whatever fails there (no such file, not UTF-8, not TOML) is a
problem of the file with a line, like a wrong value. `ConfigError` carries *all* problems of a file:
an operator who fixes one should not have to meet the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from conf.lines import Key, LineIndex
from conf.regular import read_regular

LONGEST_FILE_BYTES = 4 << 20

_TOML_POSITION = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)
_KEY_ON_LINE = re.compile(r"""\s*([\w."' -]+?)\s*=""")
_HEADER_ON_LINE = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong: where, what, and what would be right."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.message}"


class ConfigError(Exception):
    """A file that is not to be used, with every reason; `str()` is one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Source:
    """A file of valid TOML: its values, and the lines they stand on."""

    path: Path
    data: dict[str, Any]
    lines: LineIndex

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read `path`; raises `ConfigError`."""
        try:
            raw = read_regular(path, LONGEST_FILE_BYTES)
        except OSError as error:
            message = f"cannot be read ({error.strerror}), expected a TOML file"
            raise ConfigError([Problem(str(path), 1, "file", message)]) from None
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            message = f"byte 0x{raw[error.start]:02x} is not UTF-8, expected a UTF-8 text"
            raise ConfigError([Problem(str(path), line, "file", message)]) from None
        try:
            return cls(path, tomli.loads(text), LineIndex(text))
        except tomli.TOMLDecodeError as error:
            raise ConfigError([_syntax_problem(path, text, str(error))]) from None
        except (RecursionError, ValueError):  # nested, or numbers with digits, beyond all sense
            message = "is nested too deeply or has a number too long, expected plain TOML"
            raise ConfigError([Problem(str(path), 1, "syntax", message)]) from None

    def problem(self, key: Key, message: str) -> Problem:
        return Problem(str(self.path), self.lines.line_of(key), key_text(key), message)


def key_text(key: Key) -> str:
    """A path as people write it: `load_balancer_quorum.addresses[1].port`."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            quoted = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{quoted}" if text else quoted
    return text


def _syntax_problem(path: Path, text: str, message: str) -> Problem:
    found = _TOML_POSITION.fullmatch(message)
    reason, line = (found[1], found[2]) if found else (message, None)
    lines = text.split("\n")
    line_number = int(line) if line else max(1, len(text.rstrip().split("\n")))
    wrong = f"{reason[:1].lower()}{reason[1:]}, expected valid TOML"
    return Problem(str(path), line_number, _key_near(lines, line_number), wrong)


def _key_near(lines: list[str], line_number: int) -> str:
    """The key that a line tomli could not read begins with, or `syntax` when it shows none."""
    line = lines[line_number - 1] if line_number <= len(lines) else ""
    if key := _KEY_ON_LINE.match(line):
        headers = (_HEADER_ON_LINE.match(above) for above in reversed(lines[: line_number - 1]))
        table = next((header[1] for header in headers if header), None)
        return f"{table}.{key[1]}" if table else key[1]
    if header := _HEADER_ON_LINE.match(line):
        return header[1]
    return "syntax"
