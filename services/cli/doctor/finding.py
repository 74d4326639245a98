"""What a check says, and what a check is.

A check looks at one thing of this machine that has stopped packets somewhere, in a test or at
somebody's, and says what it found; where something is to be done, it names the file or the command
that does it. It looks and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from rich.text import Text


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `remedy` is empty if there is nothing to do."""

    level: Level
    check: str
    message: str
    remedy: str = ""


Findings = Iterator[Finding]

Ground = TypeVar("Ground")


@dataclass(frozen=True, slots=True)
class Check(Generic[Ground]):
    """A row of the table of checks: its name, what it sees to, and how."""

    name: str
    sees_to: str
    examine: Callable[[Ground], Findings]


def line(finding: Finding) -> Text:
    """For people."""
    text = Text(f"{finding.level.value:<5}", STYLES[finding.level])
    text.append(f" {finding.check}: {finding.message}", "default")
    return text.append(f" -> {finding.remedy}", "bold") if finding.remedy else text
