"""The flow table and the one before it: which pin is which, and how they change places.

A flow table of another size is not copied, which would lose what changes meanwhile. The new table
begins empty, the pinned one becomes the table before it (`old_flows`), and the programs look there
for what they do not find (`settings.chained`). Its flows end in time, and once none of them lives
(the dataplane sees that), the programs are built again without it. Until then a further change of
size waits: the programs know of two tables, and a third one's flows would be lost.

Programs are compiled for the sizes that are really used, so `choose` decides them from the pins,
before anything is compiled:

    pinned flows   table before   chosen
    none           none           a new table of the size wanted
    as wanted      none           the pinned one
    as wanted      in use         both pinned ones: the chain goes on
    another size   none           a new table, before it the pinned one: a chain begins
    another size   in use         both pinned ones: the size wanted has to wait
    none           in use         a new table of the size wanted, before it the pinned one

No table before it is a table of one bucket, which the programs never look into.

A chain begins in steps, and at each of them the process may die. N is the new table, P the pinned
one, E the one before it, in which nothing lives:

    flows=P                old_flows=E   before the start
    flows=P  new_flows=N   old_flows=E   N is pinned; after this the programs are attached
             new_flows=N   old_flows=P   one rename
    flows=N                old_flows=P   another

Where `new_flows` exists it is therefore the flow table, whatever the other pins are called, and
nobody needs to know whether the programs had been attached: if they had not, N is merely empty.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

FLOWS, OLD_FLOWS, NEW_FLOWS = "flows", "old_flows", "new_flows"
NO_TABLE = 1
"""Buckets of a table that stands for none."""


@dataclass(frozen=True, slots=True)
class FlowTables:
    """How many buckets the flow table has, and the one before it."""

    buckets: int
    old_buckets: int
    wanted: int
    """Buckets that the configuration asks for."""

    @property
    def chained(self) -> bool:
        """Whether flows may stand in the table before: what `settings.chained` must be."""
        return self.old_buckets > NO_TABLE

    @property
    def waits(self) -> bool:
        """Whether the size wanted has to wait until the table before is empty."""
        return self.buckets != self.wanted

    @property
    def defines(self) -> dict[str, str | int]:
        """What the programs must be compiled with."""
        return {"FLOW_BUCKETS": self.buckets, "OLD_FLOW_BUCKETS": self.old_buckets}

    def later(self) -> tuple[FlowTables, ...]:
        """What follows, each once the table before is empty."""
        last = replace(self, buckets=self.wanted, old_buckets=NO_TABLE)
        if self.waits:
            return replace(self, buckets=self.wanted, old_buckets=self.buckets), last
        return (last,) if self.chained else ()


@dataclass(frozen=True, slots=True)
class Choice:
    """The sizes, and the pins that the two maps are taken from. None: a new, empty map."""

    tables: FlowTables
    flows: str | None
    old_flows: str | None

    @property
    def begins_chain(self) -> bool:
        """Whether the flow table that is pinned becomes the one before."""
        return self.flows is None and self.old_flows in (FLOWS, NEW_FLOWS)


def standing(pins: Container[str]) -> tuple[str, str]:
    """The names of the pins that are the flow table and the one before it, if they are there."""
    if NEW_FLOWS not in pins:
        return FLOWS, OLD_FLOWS
    return NEW_FLOWS, FLOWS if FLOWS in pins else OLD_FLOWS


def choose(pinned: Mapping[str, int], wanted: int, *, old_is_empty: bool = False) -> Choice:
    """What to use, given the pinned tables (name of the pin → buckets) and the size wanted.

    `old_is_empty`: nothing lives in the table before, so it is needed no longer.
    """
    flows, old = standing(pinned)
    buckets, old_buckets = pinned.get(flows), pinned.get(old, NO_TABLE)
    old_pin: str | None = old
    if old_is_empty and old_buckets > NO_TABLE:
        old_pin, old_buckets = None, NO_TABLE
    if buckets is None:
        return Choice(FlowTables(wanted, old_buckets, wanted), None, old_pin)
    if buckets != wanted and old_buckets == NO_TABLE:
        return Choice(FlowTables(wanted, buckets, wanted), None, flows)
    return Choice(FlowTables(buckets, old_buckets, wanted), flows, old_pin)


def settle(directory: Path) -> None:
    """Finish the renames of a chain that has begun; each leaves what `standing` understands."""
    new, flows = directory / NEW_FLOWS, directory / FLOWS
    if not new.exists():
        return
    if flows.exists():
        flows.rename(directory / OLD_FLOWS)
    new.rename(flows)
