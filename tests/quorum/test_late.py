"""An LB whose health process is late has no say in how nodes are."""

from __future__ import annotations

from dataclasses import replace

from bus.words import NodeState
from services.quorum.reports import OLD_VIEW_MS
from tests.quorum.cluster import Cluster
from tests.quorum.test_cluster import led
from tests.quorum.views import seen, view

UP, DOWN = NodeState.UP, NodeState.DOWN


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
