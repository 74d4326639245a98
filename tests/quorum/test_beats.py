"""What a leader says with its beats, and when it says it again."""

from __future__ import annotations

from bus.peer_protocol import Beat, Version
from services.quorum.beats import RESEND_MS, Beats
from services.quorum.reports import OwnView, Reports
from services.quorum.seen import Seen
from services.quorum.staged import Staging
from tests.quorum.cluster import OLD
from tests.quorum.rig import Rig, rig, table_of
from tests.quorum.views import view


def beats_of(made: Rig) -> tuple[Beats, Reports]:
    reports = Reports(OwnView("lb-0", alone=False), 2_000)
    staging = Staging(OLD, None, alone=False, witness=False)
    seen = Seen(made.roster, made.election, made.register, staging, reports, 0)
    return Beats(made.roster, made.election, made.register, reports, seen, made.outbox, 0), reports


def beat_to(made: Rig, entry: str) -> Beat:
    (beat,) = (message for to, message in made.sent() if to == entry)
    assert isinstance(beat, Beat)
    return beat


def test_the_table_goes_until_it_is_acknowledged() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2", epoch=3))
    beats, _ = beats_of(made)
    made.lead()
    told = []
    for now_ms in (0, 25, RESEND_MS):
        beats.send(now_ms)
        beat = beat_to(made, "lb-1")
        assert (beat.proposed, beat.committed) == (Version(1, 3), Version(1, 3))
        told.append(beat.table is not None)
    assert told == [True, False, True]
    made.register.held["lb-1"] = Version(1, 3)
    beats.send(3 * RESEND_MS)
    assert beat_to(made, "lb-1").table is None
    beats.send(4 * RESEND_MS)
    assert beat_to(made, "lb-2").table is not None, "whoever has not is sent it still"


def test_who_comes_back_is_sent_it_at_once() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    beats, _ = beats_of(made)
    made.lead()
    beats.send(0)
    assert beat_to(made, "lb-1").table is not None
    beats.forget("lb-1")
    beats.send(1)
    assert beat_to(made, "lb-1").table is not None


def test_they_come_at_their_pace_unless_there_is_something_to_say() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    beats, _ = beats_of(made)
    made.lead()
    numbers = [beats.send(100)]
    assert beats.due_ms == 125
    beats.hurry(110)
    assert beats.due_ms == 110
    numbers.append(beats.send(110))
    assert numbers[1] == numbers[0] + 1


def test_each_is_told_which_view_of_it_is_here() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
    beats, reports = beats_of(made)
    made.lead()
    reports.take("lb-1", "boot", view(version=9), 0, 0)
    beats.send(0)
    sent = {to: message.view_seen for to, message in made.sent() if isinstance(message, Beat)}
    assert sent == {"lb-1": ("boot", 9), "lb-2": None}
