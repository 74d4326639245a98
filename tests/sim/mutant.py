"""A fault that is put into the sources on purpose, and what is to catch it.

A core's is for schedules (`python -m tests.sim`) to catch: they play the cores on virtual time. Of
a shell, which has real sockets and files, schedules know nothing: there a test is named that must
fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    module: str
    """Its file in the package."""
    old: str
    """Stands there exactly once."""
    new: str
    package: str = "services/quorum"
    lbs: int = 3
    """In the schedules that are to catch it; 0: those of nodes."""
    first: int | None = None
    """The seed to begin with: the first that caught it when that was looked for last. None: nobody
    has looked yet, and it may take hundreds, so this is not for each run of the tests."""
    test: str = ""
    """Which is to catch it instead of schedules, as pytest names it."""

    @property
    def path(self) -> Path:
        """Where in the sources."""
        return Path(self.package) / self.module

    def made_in(self, text: str) -> str:
        """The module's text with the fault in it. Raises ValueError if there is no such place."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.path} has {text.count(self.old)} such places")
        return text.replace(self.old, self.new)
