"""Protocol violations, counted per connection: after 8 within 10 s it is ignored for 60 s. Pure.

A message that cannot be read is always its sender's fault, and never a reason for this process to
fail or to fill its log. Each fault counts by its reason (`rejected` goes out with the checks). A
connection that commits more than `TOLERATED` within `WINDOW_MS` is told so once and ignored for
`CUT_OFF_MS`; then it starts clean. A peer that reconnects starts clean too: what it costs is a
handshake per handful of faults, which libzmq's thread bears, not this loop.

The table of offenders is bounded; when it is full, the one that has offended longest ago goes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from bus.node_protocol import (
    Heartbeat,
    Hello,
    Refused,
)
from bus.words import (
    LARGEST_WEIGHT,
    MOST_NAMED_SERVICES,
)

TOLERATED = 8
WINDOW_MS = 10_000
CUT_OFF_MS = 60_000
REMEMBERED = 4_096


@dataclass(slots=True)
class _Offender:
    window_start_ms: int
    faults: int = 0
    cut_off_until_ms: int | None = None


class PeerFaults:
    """Faults of connections; `rejected` counts them by reason since the process started."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        self._offenders: OrderedDict[bytes, _Offender] = OrderedDict()

    def ignores(self, connection: bytes, now_ms: int) -> bool:
        """Whether the connection is cut off; what it sends is then not even read."""
        offender = self._offenders.get(connection)
        if offender is None or offender.cut_off_until_ms is None:
            return False
        if now_ms < offender.cut_off_until_ms:
            self.rejected["cut_off"] += 1
            return True
        del self._offenders[connection]
        return False

    def fault(self, connection: bytes, reason: str, now_ms: int) -> Refused | None:
        """Count one fault; an answer comes back once, when the connection is being cut off."""
        self.rejected[reason] += 1
        offender = self._offenders.get(connection)
        if offender is None or now_ms - offender.window_start_ms >= WINDOW_MS:
            offender = self._offenders[connection] = _Offender(window_start_ms=now_ms)
        self._offenders.move_to_end(connection)
        if len(self._offenders) > REMEMBERED:
            self._offenders.popitem(last=False)
        offender.faults += 1
        if offender.faults <= TOLERATED:
            return None
        offender.cut_off_until_ms = now_ms + CUT_OFF_MS
        return Refused(f"cut off: {offender.faults} faults, the last was {reason}", CUT_OFF_MS)


# --------------------------------------------------------------------------- well typed, and wrong

LONGEST_NAME = 64
LARGEST_LOAD = 1e6


def hello_problem(hello: Hello) -> str | None:
    """What is wrong with a hello whose types are right; None: nothing."""
    if not _is_name(hello.name):
        return f"name: expected 1 to {LONGEST_NAME} printable characters without space, @ or /"
    if not _is_name(hello.boot):
        return "boot: expected the identity of this start of the agent"
    if not 1 <= hello.weight <= LARGEST_WEIGHT:
        return f"weight: {hello.weight}, expected 1 to {LARGEST_WEIGHT}"
    if len(hello.services) > MOST_NAMED_SERVICES:
        return f"services: {len(hello.services)}, expected at most {MOST_NAMED_SERVICES}"
    if not all(_is_name(service.name) for service in hello.services):
        return "services: expected names as the node's own"
    return None


def heartbeat_problem(beat: Heartbeat) -> str | None:
    """The name of the fault of a beat whose types are right; None: there is none.

    Its reason is never one: what its author did not make one line of, the reader does.
    """
    if not 0 <= beat.load <= LARGEST_LOAD:  # and so neither infinite nor not a number
        return "bad_heartbeat"
    if beat.prepared is None and beat.sick is None:
        return None
    for said in (beat.prepared or (), beat.sick or ()):
        names = [name for each in said for name in each.services]
        if len(names) > MOST_NAMED_SERVICES or not all(map(_is_name, names)):
            return "bad_heartbeat"
    return None


def _is_name(text: str) -> bool:
    return 0 < len(text) <= LONGEST_NAME and text.isprintable() and not set(text) & set(" @/\\")
