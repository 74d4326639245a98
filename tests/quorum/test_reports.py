"""What LBs report: when it is believed, whose counts, and when it is sent again."""

from __future__ import annotations

from dataclasses import replace

from bus.peer_protocol import ViewReport
from bus.words import NodeState
from services.quorum.reports import OLD_VIEW_MS, RESEND_MS, OwnView, Reports
from tests.quorum.cluster import Cluster, led
from tests.quorum.views import seen, view

UP, DOWN = NodeState.UP, NodeState.DOWN
NOBODY: frozenset[str] = frozenset()


def reports(settle_ms: int = 2_000) -> Reports:
    return Reports(OwnView("lb-0", alone=False), settle_ms)


def test_a_view_that_is_repeated_or_was_overtaken_is_not_taken() -> None:
    made = reports()
    assert made.take("lb-1", "b", view(seen("a", UP), version=5), 10, 8)
    for version in (5, 4):
        assert not made.take("lb-1", "b", view(version=version), 11, 11)
    assert made.newest("lb-1") == ("b", 5)
    assert made.counting(NOBODY, NOBODY, 20)["lb-1"].age_ms == 12
    assert made.take("lb-1", "again", view(version=1), 12, 12), "another start counts anew"
    assert made.newest("lb-2") is None


def test_each_boot_settles_for_itself() -> None:
    made = reports()
    made.take("lb-1", "b", view(), 0, 0)
    made.take("lb-2", "b", view(), 500, 500)
    assert made.next_due_ms() == 2_000
    assert not made.settle(1_999)
    assert made.settle(2_000)
    assert not made.settle(2_000)
    settled = {lb: each.settled for lb, each in made.counting(NOBODY, NOBODY, 2_000).items()}
    assert settled == {"lb-1": True, "lb-2": False}
    made.take("lb-1", "again", view(), 2_100, 2_100)
    assert made.next_due_ms() == 2_500
    assert made.settle(2_500)
    assert made.next_due_ms() == 4_100


def test_the_silent_never_count_and_the_late_only_where_all_are() -> None:
    made = reports()
    for lb in ("lb-0", "lb-1", "lb-2"):
        made.take(lb, "b", view(seen(lb, UP)), 0, 0)
    assert set(made.counting(frozenset({"lb-2"}), frozenset({"lb-0"}), 9)) == {"lb-1"}
    late = frozenset({"lb-0", "lb-1"})
    assert set(made.counting(frozenset({"lb-2"}), late, 9)) == {"lb-0", "lb-1"}
    made.forget("lb-1")
    assert set(made.known_nodes()) == {"lb-0@10.81.0.20", "lb-2@10.81.0.20"}


def test_an_lb_knows_that_it_is_late() -> None:
    own = OwnView("lb-0", alone=False)
    assert not own.is_late(9_000), "nothing was heard that could be"
    own.report("b", view(), 0, 0)
    assert not own.is_late(OLD_VIEW_MS - 1)
    assert own.is_late(OLD_VIEW_MS)
    own.hear(OLD_VIEW_MS)
    assert not own.is_late(OLD_VIEW_MS)
    own.report("b", replace(view(version=2), late=True), OLD_VIEW_MS, OLD_VIEW_MS)
    assert own.is_late(OLD_VIEW_MS)
    alone = OwnView("lb-0", alone=True)
    alone.report("b", replace(view(), late=True), 0, 0)
    assert not alone.is_late(0), "there is nobody whose view might be a better one"


def test_a_view_goes_until_the_leader_has_it() -> None:
    own = OwnView("lb-0", alone=False)
    assert own.to_send(None, 0) is None
    own.report("b", view(version=3), 10, 8)
    assert own.to_send(None, 10) == ViewReport("lb-0", "b", view(version=3), 2)
    assert own.to_send(("b", 2), 10 + RESEND_MS - 1) is None, "it is on its way"
    again = own.to_send(("b", 2), 10 + RESEND_MS)
    assert again == ViewReport("lb-0", "b", view(version=3), 2 + RESEND_MS)
    assert own.to_send(("b", 3), 500) is None
    assert own.to_send(None, 11 + RESEND_MS) is not None, "a leader that has none waits for none"
    assert own.report("b", view(version=4), 501, 501)
    assert not own.report("b", view(version=4), 502, 502)
    assert own.to_send(("b", 3), 502) is not None, "a new one waits for nothing"


# --------------------------------------------------------------------------- together


def state_of_a(made: Cluster) -> NodeState:
    (name, *_) = made.cores
    held = made.cores[name].committed(made.now_ms)
    assert held is not None
    return held.table.nodes[0].state


def repeat(made: Cluster, *names: str, for_ms: int) -> None:
    """The health processes of these say again and again that nothing is new."""
    for _ in range(for_ms // 500):
        for name in names:
            made.cores[name].hear_health(made.now_ms)
        made.run(500)


def test_one_that_was_held_up_decides_nothing_until_it_has_had_time() -> None:
    made = led("lb-0", "lb-1")
    late = replace(view(seen("a", UP), version=2), late=True)
    made.see(("lb-1", view(seen("a", DOWN), version=2)))
    made.run(100)
    assert state_of_a(made) is UP, "one of two does not speak for both"
    made.see(("lb-0", late))
    made.run(100)
    assert state_of_a(made) is DOWN, "but for itself, if the other cannot know"
    for core in made.cores.values():
        members = {each.name: each.late for each in core.state(made.now_ms).members}
        assert members == {"lb-0": True, "lb-1": False}
    made.see(("lb-0", view(seen("a", UP), version=3)), ("lb-1", view(seen("a", UP), version=3)))
    made.run(100)
    assert state_of_a(made) is UP


def test_one_whose_health_is_silent_decides_nothing() -> None:
    made = led("lb-0", "lb-1")
    repeat(made, "lb-0", "lb-1", for_ms=2 * OLD_VIEW_MS)
    made.see(("lb-1", view(seen("a", DOWN), version=2)))
    repeat(made, "lb-1", for_ms=OLD_VIEW_MS - 1_000)
    assert state_of_a(made) is UP
    repeat(made, "lb-1", for_ms=1_500)
    assert state_of_a(made) is DOWN
    made.cores["lb-0"].hear_health(made.now_ms)
    made.run(500)
    assert state_of_a(made) is DOWN, "a draw changes nothing"


def test_where_all_are_late_all_count() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    late = replace(view(seen("a", DOWN), version=2), late=True)
    made.see(*((name, late) for name in made.cores))
    made.run(100)
    assert state_of_a(made) is DOWN
