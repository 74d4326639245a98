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
    follower     OrderAsked    OrderAnswered  an operator wants this; repeated until answered
    follower     MemberAsked   OrderAnswered  likewise, of the list of members

A `Version` is (term, epoch), in this order: of two tables the one with the larger version is the
newer, and two with the same version are the same.

On the wire a message is two frames of JSON: a `PeerHead`, by which it is decided whether its sender
is heard at all, and the message. An unknown format, or a message that is not what its kind says, is
`MalformedMessage`: the sender's fault. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, get_args

from msgspec import Meta

from bus.codec import MalformedMessage, UnknownVersion, from_json, to_json
from bus.orders import Asked
from bus.states import LocalView, NodeTable
from bus.words import LARGEST_PROMISE_MS, Duration, Entry, MemberChange, Signed, Stored, Whole


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Of a table; (0, 0) is of none."""

    term: Stored
    epoch: Stored


NO_VERSION = Version(0, 0)
PortOrNone = Annotated[int, Meta(ge=0, le=65_535)]
Promise = Annotated[int, Meta(ge=0, le=LARGEST_PROMISE_MS)]


@dataclass(frozen=True, slots=True)
class PreVote:
    sender: str
    term: Stored
    """The one that an election would be held in."""
    accepted: Version
    boot: str
    """Names this start of the sender's process; the answer repeats it."""


@dataclass(frozen=True, slots=True)
class Vote:
    sender: str
    term: Stored
    accepted: Version
    resigned: str | None
    """The leader of the term before, which has ended its lease and chosen the sender; else None."""


@dataclass(frozen=True, slots=True)
class VoteReply:
    sender: str
    term: Stored
    """The term of the voter."""
    asked: Stored
    """The term that was asked for."""
    granted: bool
    boot: str
    """What a `PreVote` said; empty in answer to a `Vote`."""
    has_table: bool
    """Whether the voter has accepted any."""
    table: NodeTable | None
    """The voter's own, if that is newer than the candidate's: so the candidate can catch up. If the
    voter has accepted none: the one that the first is to be made of, from a time alone.
    """


@dataclass(frozen=True, slots=True)
class MemberSeen:
    """How the leader sees one of the members: nobody else hears them all."""

    name: str
    address: str
    """Its entry in the list, as the leader's file writes it."""
    alive: bool
    term: Stored
    epoch: Stored
    why: tuple[str, ...]
    """Why it may hold no VIPs; empty: it may."""
    staged: str = ""
    """A digest of the services and VIPs of its file; empty: not known."""
    late: bool = False
    """Whether its verdicts on nodes do not count."""
    listed: str = ""
    """A digest of the list of LBs of its file; empty: not known."""


@dataclass(frozen=True, slots=True)
class Beat:
    sender: str
    term: Stored
    seq: Stored
    """Of this leader's beats in this term; the next is larger."""
    promise_ms: Promise
    """For so long after this beat its receiver elects nobody else."""
    committed: Version
    proposed: Version
    table: NodeTable | None
    """The proposed one, for a follower that does not have it."""
    view_seen: tuple[str, Whole] | None
    """Boot and version of the receiver's newest view that arrived."""
    members: tuple[MemberSeen, ...] | None = None
    """None: as it was told last."""
    why_not_listed: str = ""
    """Why the members are not those of the list on which all files agree; empty: nothing is against
    it."""


@dataclass(frozen=True, slots=True)
class Ack:
    sender: str
    term: Stored
    seq: Stored
    """Of the beat that is answered."""
    accepted: Version
    """Of the table that the sender has stored."""
    boot: str
    asked: Stored
    """The sender's own running number, which a `Grant` answers."""
    why: tuple[str, ...]
    """Why it may hold no VIPs, in words; empty: it may."""
    fitness: Signed
    """If nobody is eligible, the leader takes whoever has most of this."""
    witness: bool = False
    """The sender only votes."""
    staged: str = ""
    """A digest of the services and VIPs of its file."""
    late: bool = False
    """The sender's health process is silent, or was held up a moment ago."""
    listed: str = ""
    """A digest of the list of LBs of its file; empty: it decides alone."""


@dataclass(frozen=True, slots=True)
class Grant:
    sender: str
    term: Stored
    boot: str
    asked: Stored
    vips: tuple[str, ...]
    left_ms: Duration
    """Of the leader's own lease, when it was asked."""


@dataclass(frozen=True, slots=True)
class Release:
    sender: str
    boot: str
    asked: Stored
    """The newest number that it has asked with: grants of it and of any before are given up."""
    vip: str


@dataclass(frozen=True, slots=True)
class Go:
    sender: str
    term: Stored
    left_ms: Duration = 0
    """Of the leases that the sender has granted; its own is over."""


@dataclass(frozen=True, slots=True)
class ViewReport:
    sender: str
    boot: str
    """Of the health process: versions are comparable only within one."""
    view: LocalView
    age_ms: Duration
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


@dataclass(frozen=True, slots=True)
class MemberAsked:
    sender: str
    id: str
    change: MemberChange
    address: Entry
    """The entry, `host:port`, of whom it is about."""


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
    | MemberAsked
)

# --------------------------------------------------------------------------- on the wire

PEER_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PeerHead:
    """Who says something, and which of its messages it is."""

    v: Whole
    cluster: str
    sender: str
    boot: str
    """Names this start of the sender's process."""
    number: Whole
    """Of the messages of one start to one receiver: each is larger than the one before."""
    kind: str
    """The name of the message's type."""
    node_health: dict[str, str] = field(default_factory=dict)
    """By key, what the sender's file says in `[node_health]`."""
    port: PortOrNone = 0
    """Where the sender listens for such messages; 0: it does not say."""


_KINDS: dict[str, type[PeerMessage]] = {kind.__name__: kind for kind in get_args(PeerMessage)}


def encode_peer(
    message: PeerMessage,
    cluster: str,
    boot: str,
    number: int,
    node_health: dict[str, str] | None = None,
    port: int = 0,
) -> tuple[bytes, bytes]:
    """The two frames of a message."""
    kind, health = type(message).__name__, node_health or {}
    head = PeerHead(PEER_FORMAT, cluster, message.sender, boot, number, kind, health, port)
    return to_json(head), to_json(message)


def decode_peer_head(raw: bytes) -> PeerHead:
    """Raises `MalformedMessage`, or `UnknownVersion` for another format."""
    head = from_json(PeerHead, raw)
    if head.v != PEER_FORMAT:
        raise UnknownVersion(f"format {head.v} of messages between LBs, expected {PEER_FORMAT}")
    return head


def decode_peer(head: PeerHead, raw: bytes) -> PeerMessage:
    """Raises `MalformedMessage`."""
    kind = _KINDS.get(head.kind)
    if kind is None:
        raise MalformedMessage("no kind of message between LBs")
    message = from_json(kind, raw)
    if message.sender != head.sender:
        raise MalformedMessage("two senders in one message")
    return message
