"""What an operator wants of a node, against or beside what health sees of it. Pure.

An operator asks one LB (`Asked`, by the API, to the quorum process of that LB); the leader of the
LBs writes an `Order` into the node table, and all of them go by it. `services.quorum.orders` has
what each kind means and how they follow one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from bus.words import Duration, Weight, Whole, one_line

LONGEST_TEXT = 200
"""Characters of who, why, and of a node's id."""


class OrderKind(StrEnum):
    DRAIN = "drain"
    """No new flows; those that are there go on, to the deadline if there is one."""
    ENABLE = "enable"
    """A drain or a ban of an operator's is over."""
    BAN = "ban"
    """Routed to by nobody, for as long as the order stands."""
    PARDON = "pardon"
    """A ban is over, whoever said it, and the node's failures are forgotten."""
    WEIGHT = "weight"
    """Its part of the rings, whatever its agent says; without a number: what its agent says."""


Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]


@dataclass(frozen=True, slots=True)
class Asked:
    """An order as it is asked for. `node`: the node's id, as in the table."""

    node: Text
    kind: OrderKind
    by: Text
    why: Text = ""
    weight: Weight | None = None
    within_ms: Duration | None = None
    """Of a drain: after so long, what still goes to the node ends."""
    time_ms: Whole = 0
    """When it was asked, by the wall clock (milliseconds since 1970): for people alone."""

    def __post_init__(self) -> None:
        if self.weight is not None and self.kind is not OrderKind.WEIGHT:
            raise ValueError(f"{self.kind} takes no weight")
        if self.within_ms is not None and self.kind is not OrderKind.DRAIN:
            raise ValueError(f"{self.kind} takes no deadline")
        for text in (self.node, self.by, self.why):
            if one_line(text, LONGEST_TEXT) != text:
                raise ValueError("an order's words are one printable line each")
        if not self.node or not self.by:
            raise ValueError("an order names a node and who gives it")

    @property
    def is_record(self) -> bool:
        """Whether it only says that another order is over, and is kept for a while to be seen."""
        gives_back = self.kind is OrderKind.WEIGHT and self.weight is None
        return gives_back or self.kind in (OrderKind.ENABLE, OrderKind.PARDON)


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it stands in the node table."""

    id: Text
    """Of the command that gave it: the same one is not carried out twice."""
    asked: Asked
    epoch: Whole
    """Of the first table that it stands in; later ones are larger."""
    remaining_ms: Duration | None
    """What was left when the message was made: of a drain until its deadline; of what is kept for
    the record (enable, pardon) until it is dropped. None: it stands until another follows."""
