"""A fault that is put into a core on purpose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    module: str
    """Its file in the service's package."""
    old: str
    """Stands there exactly once."""
    new: str
    service: str = "quorum"
    lbs: int = 3
    """In the schedules that are to catch it; 0: those of nodes."""
