"""What LBs say to one another: the election, the table, the leases.

A member is known by its address in the list of the configuration, which the transport vouches for,
and says its name in every message. Everything here may be lost, delayed, repeated or overtaken;
whatever matters is said again with the next beat.

    who          message       answered by    what for
    ──────────────────────────────────────────────────────────────────────────────────────────────
    any          PreVote       VoteReply      would I be elected? Changes nothing anywhere
    candidate    Vote          VoteReply      elect me
    leader       Beat          Ack            I lead; this is the table; elect nobody else
    follower     Ack           Grant          I have promised; this I have; give me my leases
    holder       Release       -              I claim that VIP no more
    leader       Go            Vote           you lead next: my lease is over
    follower     ViewReport    Beat           what my health process sees
    follower     OrderAsked    OrderAnswered  an operator of mine wants this; until answered

A `Version` is (term, epoch), in this order: of two tables the one with the larger version is the
newer, and two with the same version are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from bus.orders import Asked
from bus.states import LocalView, NodeTable


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Of a table; (0, 0) is of none."""

    term: int
    epoch: int


NO_VERSION = Version(0, 0)


@dataclass(frozen=True, slots=True)
class PreVote:
    sender: str
    term: int
    """The one that an election would be held in."""
    accepted: Version
    boot: str
    """Names this start of the sender's process; the answer repeats it."""


@dataclass(frozen=True, slots=True)
class Vote:
    sender: str
    term: int
    accepted: Version
    resigned: str | None
    """The leader of the term before, which has ended its lease and chosen the sender; else None."""


@dataclass(frozen=True, slots=True)
class VoteReply:
    sender: str
    term: int
    """The term of the voter."""
    asked: int
    """The term that was asked for."""
    granted: bool
    boot: str
    """What a `PreVote` said; empty in answer to a `Vote`."""
    has_table: bool
    """Whether the voter has accepted any."""
    table: NodeTable | None
    """The voter's own, if that is newer than the candidate's: so the candidate can catch up."""


@dataclass(frozen=True, slots=True)
class Beat:
    sender: str
    term: int
    seq: int
    """Of this leader's beats in this term; the next is larger."""
    promise_ms: int
    """For so long after this beat its receiver elects nobody else."""
    committed: Version
    proposed: Version
    table: NodeTable | None
    """The proposed one, for a follower that does not have it."""
    view_seen: tuple[str, int] | None
    """Boot and version of the receiver's newest view that arrived."""


@dataclass(frozen=True, slots=True)
class Ack:
    sender: str
    term: int
    seq: int
    """Of the beat that is answered."""
    accepted: Version
    """Of the table that the sender has stored."""
    boot: str
    asked: int
    """The sender's own running number, which a `Grant` answers."""
    eligible: bool
    """Whether it may hold VIPs."""
    fitness: int
    """If nobody is eligible, the leader takes whoever has most of this."""


@dataclass(frozen=True, slots=True)
class Grant:
    sender: str
    term: int
    boot: str
    asked: int
    vips: tuple[str, ...]
    left_ms: int
    """Of the leader's own lease, when it was asked."""


@dataclass(frozen=True, slots=True)
class Release:
    sender: str
    boot: str
    asked: int
    """The newest number that it has asked with: grants of it and of any before are given up."""
    vip: str


@dataclass(frozen=True, slots=True)
class Go:
    sender: str
    term: int


@dataclass(frozen=True, slots=True)
class ViewReport:
    sender: str
    boot: str
    """Of the health process: versions are comparable only within one."""
    view: LocalView
    age_ms: int
    """How old it was when this was sent."""


@dataclass(frozen=True, slots=True)
class OrderAsked:
    sender: str
    id: str
    """Of the operator's command, however often and by whomever it is passed on."""
    asked: Asked


@dataclass(frozen=True, slots=True)
class OrderAnswered:
    sender: str
    id: str
    refusal: str
    """Why it is not carried out, in words for the operator; empty: it stands in a committed table.
    """


PeerMessage = (
    PreVote
    | Vote
    | VoteReply
    | Beat
    | Ack
    | Grant
    | Release
    | Go
    | ViewReport
    | OrderAsked
    | OrderAnswered
)
