"""Who of those that speak on the quorum's port is heard. Pure.

A member is an entry of `load_balancer_quorum.addresses`. Whose connection a message came by is what
the kernel says of it: its address, which must be that of an entry. Then the head of the message is
looked at, and whatever is wrong with it is a named reason, in this order:

    not_listed   no entry has the address that the message came from
    malformed    it is not what it says
    format       it is of another format of these messages: another Gale
    cluster      it is of a cluster of another name
    name         its sender has this LB's name, or that of another entry
    configuration   it judges nodes by other numbers (`[node_health]`), and the file says
                 `enforce_single_configuration`; the text names the keys and both values
    replayed     its number is not larger than the last one of that start of the sender's process,
                 or it is of a start before the present one

Each LB refuses whoever differs from itself, so those that have the same numbers are heard by one
another, and whoever differs from the majority has nobody. Without `enforce_single_configuration`
the difference is only told: each LB judges by its own numbers, and the majority merges.

All are counted; the first of each sender and reason within `SAID_MS` is also told, as the event
`quorum.peer_refused.`. Whoever sends them is a stranger, so what is kept of them is bounded.

A message that was overtaken on another connection of the same sender counts as replayed: whatever
matters is said again.

**Who asks to be a member.** An LB whose file lists this one, and which is none, is heard knocking:
its name and where it listens are kept for `APPLICANT_MS`, of `MOST_APPLICANTS` at the most, so that
an operator can call it by its name. Nothing else that it says is read. A stranger may lie about its
name, not about its address; so an operator is shown both.

Where keys are used, it is not the address that counts but whom the key of the connection stands
for: then that name is what stands for an address in all of this.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from bus.codec import MalformedMessage, UnknownVersion
from bus.peer_protocol import PeerHead, PeerMessage, decode_peer, decode_peer_head
from bus.words import one_line

SAID_MS = 60_000
MOST_REMEMBERED = 256
MOST_APPLICANTS = 16
APPLICANT_MS = 5_000
LONGEST_KNOCK = 4_096
"""Bytes of the head of a stranger's message."""
FORMER_STARTS = 64
MOST_KEYS = 32
"""Of `[node_health]` there are far fewer."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is to be told of somebody who is not heard."""

    peer: str
    """The entry it came from, or the address that is no entry's."""
    reason: str
    text: str

    @property
    def told(self) -> str:
        return f"{self.reason}: {self.text}"


class _RefusedError(Exception):
    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(slots=True)
class _Member:
    name: str = ""
    boot: str = ""
    number: int = -1
    former: deque[str] = field(default_factory=lambda: deque(maxlen=FORMER_STARTS))


class Admission:
    """Decides on every message; `refused` counts by reason."""

    def __init__(self, cluster: str, own_name: str) -> None:
        self._cluster, self._own_name = cluster, own_name
        self._members: dict[str, _Member] = {}
        self._entries: dict[str, str] = {}
        self._said_ms: OrderedDict[tuple[str, str], int] = OrderedDict()
        self.refused: Counter[str] = Counter()
        self.untold: list[Refusal] = []
        """For the caller to take."""
        self.trouble: dict[str, str] = {}
        """By entry, why its last message was not heard, or how its numbers differ."""
        self.differing: list[Refusal] = []
        """Members that are heard though their numbers differ, for the caller to take."""
        self._node_health: dict[str, str] = {}
        self._enforce = False
        self._applicants: OrderedDict[str, tuple[str, int]] = OrderedDict()
        """By entry, the name of who knocks, and when it was last heard."""

    def expect(self, entries: dict[str, str]) -> None:
        """By the address that a connection may come from, or by its key's name, whose it is."""
        self._entries = dict(entries)
        wanted = set(entries.values())
        self._members = {entry: self._members.get(entry, _Member()) for entry in sorted(wanted)}

    def judge_by(self, node_health: dict[str, str], *, enforce: bool) -> None:
        """What this LB's file says in `[node_health]`, and whether all must say the same."""
        self._node_health, self._enforce = node_health, enforce

    def is_listed(self, address: str) -> bool:
        return address in self._entries

    def knock(self, address: str, raw: bytes, now_ms: int) -> None:
        """A message with this head came from an address that is no member's."""
        if len(raw) > LONGEST_KNOCK:
            return
        try:
            head = decode_peer_head(raw)
        except MalformedMessage:
            return
        is_one = head.cluster == self._cluster and head.port and head.sender
        if not is_one or one_line(head.sender, 64) != head.sender:
            return
        entry = f"{address}:{head.port}"
        self._applicants[entry] = head.sender, now_ms
        self._applicants.move_to_end(entry)
        if len(self._applicants) > MOST_APPLICANTS:
            self._applicants.popitem(last=False)

    def applicants(self, now_ms: int) -> dict[str, str]:
        """By entry, the names of those that knock and are no members."""
        members = set(self._entries.values())
        return {
            entry: name
            for entry, (name, heard_ms) in self._applicants.items()
            if now_ms < heard_ms + APPLICANT_MS and entry not in members
        }

    def refuse_stranger(self, address: str, now_ms: int) -> None:
        """A message came from an address, or with a key, that is no member's."""
        text = "nobody in load_balancer_quorum.addresses has this address or key"
        self._refuse(address, "not_listed", text, now_ms)

    def admit(
        self, address: str, frames: list[bytes], now_ms: int
    ) -> tuple[str, PeerMessage] | None:
        """The entry and what it says, or None if it is not heard."""
        entry = self._entries.get(address)
        if entry is None:
            self.refuse_stranger(address, now_ms)
            return None
        try:
            return entry, self._read(entry, frames)
        except _RefusedError as error:
            if error.reason != "replayed":
                self.trouble[entry] = f"{error.reason}: {error}"
            self._refuse(entry, error.reason, str(error), now_ms)
        except UnknownVersion as error:
            self.trouble[entry] = f"format: {error}"
            self._refuse(entry, "format", str(error), now_ms)
        except MalformedMessage as error:
            self._refuse(entry, "malformed", str(error), now_ms)
        return None

    def _read(self, entry: str, frames: list[bytes]) -> PeerMessage:
        if len(frames) != 2:
            raise MalformedMessage(f"{len(frames)} frames, expected a head and a message")
        head = decode_peer_head(frames[0])
        if head.cluster != self._cluster:
            raise _RefusedError("cluster", f"it is of the cluster {one_line(head.cluster, 64)}")
        self._check_name(entry, head)
        differences = self._differences(head)
        if differences and self._enforce:
            raise _RefusedError("configuration", differences)
        self._check_number(self._members[entry], head)
        message = decode_peer(head, frames[1])
        self._note_differences(entry, differences)
        member = self._members[entry]
        if member.boot not in (head.boot, ""):
            member.former.append(member.boot)
        member.name, member.boot, member.number = head.sender, head.boot, head.number
        return message

    def _check_name(self, entry: str, head: PeerHead) -> None:
        shown = one_line(head.sender, 64)
        if not head.sender or shown != head.sender:
            raise MalformedMessage("a sender without a proper name")
        if head.sender == self._own_name:
            raise _RefusedError("name", f"it has this LB's name, {shown}")
        for other, member in self._members.items():
            if other != entry and member.name == head.sender:
                raise _RefusedError("name", f"it has the name of {other}, {shown}")

    def _differences(self, head: PeerHead) -> str:
        ours, theirs = self._node_health, head.node_health
        if ours == theirs or not ours:
            return ""
        return "; ".join(
            f"node_health.{key} is {ours.get(key, 'unknown')} here and"
            f" {one_line(theirs.get(key, 'unknown'), 64)} there"
            for key in sorted(ours.keys() | theirs.keys())[:MOST_KEYS]
            if ours.get(key) != theirs.get(key)
        )

    def _note_differences(self, entry: str, differences: str) -> None:
        """It is heard; how it differs is told once, as long as it stays the same."""
        if differences and self.trouble.get(entry) != differences:
            self.differing.append(Refusal(entry, "differs", differences))
        if differences:
            self.trouble[entry] = differences
        else:
            self.trouble.pop(entry, None)

    def _check_number(self, member: _Member, head: PeerHead) -> None:
        is_old = head.boot == member.boot and head.number <= member.number
        if is_old or head.boot in member.former:
            raise _RefusedError("replayed", "a message of it has come before, or was overtaken")

    def _refuse(self, peer: str, reason: str, text: str, now_ms: int) -> None:
        self.refused[reason] += 1
        key = (peer, reason)
        said_ms = self._said_ms.get(key)
        if said_ms is not None and now_ms < said_ms + SAID_MS:
            return
        self._said_ms[key] = now_ms
        self._said_ms.move_to_end(key)
        if len(self._said_ms) > MOST_REMEMBERED:
            self._said_ms.popitem(last=False)
        self.untold.append(Refusal(peer, reason, text))

    def take_differing(self) -> list[Refusal]:
        told, self.differing = self.differing, []
        return told

    def take_untold(self) -> list[Refusal]:
        told, self.untold = self.untold, []
        return told
