"""LBs that were removed hear of it, for a while."""

from __future__ import annotations

from bus.peer_protocol import Ack, Beat, Version
from services.quorum.parting import PARTING_MS, RESEND_MS, Parting
from tests.quorum.rig import Rig, rig, table_of


def parting(made: Rig) -> Parting:
    gone = Parting("lb-0", made.election, made.register, made.outbox)
    gone.begin(["lb-2"], 0)
    return gone


def beats(made: Rig) -> list[Beat]:
    sent = made.sent()
    assert {to for to, _ in sent} <= {"lb-2"}
    return [message for _, message in sent if isinstance(message, Beat)]


def test_it_is_sent_the_table_until_it_has_it_and_beats_until_the_time_is_over() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1", epoch=4))
    gone = parting(made)
    tables = []
    for now_ms in (0, 25, RESEND_MS):
        gone.send_beats(7, now_ms)
        (beat,) = beats(made)
        assert (beat.seq, beat.proposed, beat.committed) == (7, Version(1, 4), Version(1, 4))
        tables.append(beat.table is not None)
    assert tables == [True, False, True]
    gone.answered("lb-2", Ack("lb-2", 1, 7, Version(1, 4), "b", 1, (), 0))
    gone.send_beats(8, 3 * RESEND_MS)
    assert [beat.table for beat in beats(made)] == [None]
    gone.send_beats(9, PARTING_MS)
    assert beats(made) == []
    assert gone.entries == ()


def test_who_is_back_or_has_another_leader_is_told_nothing() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    gone = parting(made)
    assert "lb-2" in gone
    gone.back(["lb-1", "lb-2"])
    assert "lb-2" not in gone
    gone.begin(["lb-2"], 0)
    gone.end()
    assert gone.entries == ()
