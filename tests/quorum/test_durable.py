"""What goes to the disk, and what waits for it."""

from __future__ import annotations

from bus.peer_protocol import Go
from services.quorum.durable import Disk, Outbox, Persist
from services.quorum.register import version_of
from tests.quorum.rig import Rig, rig, table_of


def disk_of(made: Rig) -> Disk:
    return Disk(made.election, made.register, alone=False)


def accept(made: Rig, epoch: int, now_ms: int) -> None:
    assert made.register.accept(table_of("lb-0", "lb-1", epoch=epoch), now_ms)
    made.election.table_changed()


def test_one_write_at_a_time_and_the_next_has_what_came_meanwhile() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    disk = disk_of(made)
    assert disk.next_persist(0) is None, "all of it is there already"
    accept(made, 2, 10)
    first = disk.next_persist(10)
    assert isinstance(first, Persist)
    assert first.state.table == table_of("lb-0", "lb-1", epoch=2)
    assert first.state.joined
    accept(made, 3, 20)
    accept(made, 4, 30)
    assert disk.next_persist(30) is None
    assert disk.stored(first.mark)
    assert version_of(made.register.stored).epoch == 2, "and not what came meanwhile"
    second = disk.next_persist(30)
    assert second is not None
    assert second.state.table is not None
    assert second.state.table.epoch == 4
    assert second.mark > first.mark


def test_what_the_first_table_is_to_be_made_of_is_kept_until_there_is_one() -> None:
    made = rig("lb-1")
    disk = disk_of(made)
    made.register.begin_with(table_of("lb-0", epoch=40), 0)
    made.election.saw_term(2, 5)
    persist = disk.next_persist(5)
    assert persist is not None
    assert (persist.state.table, persist.state.first) == (None, table_of("lb-0", epoch=40))
    disk.stored(persist.mark)
    accept(made, 1, 10)
    persist = disk.next_persist(10)
    assert persist is not None
    assert persist.state.table == table_of("lb-0", "lb-1")
    assert persist.state.first is None


def test_a_state_with_the_same_table_is_no_news_of_it() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    disk = disk_of(made)
    made.election.saw_term(2, 5)
    persist = disk.next_persist(5)
    assert persist is not None
    assert (persist.state.term, persist.state.vote) == (2, None)
    assert not disk.stored(persist.mark)
    assert disk.durable_mark == persist.mark


def test_how_long_it_has_not_answered() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    disk = disk_of(made)
    assert disk.writing_for_ms(1_000) == 0
    accept(made, 2, 1_000)
    persist = disk.next_persist(1_000)
    assert persist is not None
    assert disk.writing_for_ms(1_125) == 125
    disk.stored(persist.mark)
    assert disk.writing_for_ms(1_126) == 0


def test_what_rests_on_a_state_waits_for_it_and_holds_nothing_else_up() -> None:
    outbox, message = Outbox(), Go("lb-0", 1)
    outbox.post("a", message, 2)
    outbox.post("b", message)
    outbox.post("c", message, 1)
    assert [each.to for each in outbox.take(1)] == ["b", "c"]
    assert outbox.take(1) == ()
    assert [each.to for each in outbox.take(3)] == ["a"]
