"""Orders: what they do to nodes, how they follow one another, how they are agreed and answered."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from bus.events import OrderEvent
from bus.orders import Asked, Order, OrderKind
from bus.peer_protocol import OrderAsked
from bus.states import NodeTable, NodeView, ServiceState
from bus.topics import Topic
from bus.words import NodeState
from services.quorum.composition import QuorumConfig
from services.quorum.core import Quorum
from services.quorum.durable import BLANK, HardState
from services.quorum.orders import RECORD_MS, RULES, Desk, following
from services.quorum.storage import Storage
from services.quorum.table import Report, aged, bootstrap, merge
from services.quorum.waiting import WAIT_MS, Answer
from tests.quorum.views import ECHO, WEB, quorum_config, seen, table_config, view, work_off

UP, SUSPECT, DRAINING = NodeState.UP, NodeState.SUSPECT, NodeState.DRAINING
DOWN, BANNED = NodeState.DOWN, NodeState.BANNED
DRAIN, ENABLE, BAN = OrderKind.DRAIN, OrderKind.ENABLE, OrderKind.BAN
PARDON, WEIGHT = OrderKind.PARDON, OrderKind.WEIGHT
NODE = "n@10.81.0.20"


def asked(kind: OrderKind, node: str = NODE, **more: Any) -> Asked:
    return Asked(node, kind, "ada", **more)


def order(kind: OrderKind, *, remaining_ms: int | None = None, **more: Any) -> Order:
    return Order(f"id-{kind}", asked(kind, **more), 5, remaining_ms)


def table_of(*orders: Order, node: NodeView | None = None) -> NodeTable:
    """What the LBs agree on when each of them sees the node as given, by default UP."""
    report = Report(view(node or seen("n", UP, weight=3)), settled=True, age_ms=0)
    return merge(bootstrap(1, 7), {"lb-0": report}, table_config(), ["lb-0"], term=1, orders=orders)


def state_under(kind: OrderKind, state: NodeState, remaining_ms: int | None = None) -> NodeState:
    before = table_of(node=seen("n", UP))
    report = Report(view(seen("n", state)), settled=True, age_ms=0)
    orders = (order(kind, remaining_ms=remaining_ms),)
    after = merge(before, {"lb-0": report}, table_config(), ["lb-0"], term=1, orders=orders)
    return after.nodes[0].state


@pytest.mark.parametrize(
    ("kind", "remaining_ms", "becomes"),
    [
        (DRAIN, None, (DRAINING, DRAINING, DRAINING, DOWN, BANNED)),
        (DRAIN, 1, (DRAINING, DRAINING, DRAINING, DOWN, BANNED)),
        (DRAIN, 0, (DOWN, DOWN, DOWN, DOWN, BANNED)),
        (BAN, None, (BANNED, BANNED, BANNED, BANNED, BANNED)),
        (ENABLE, 1, (UP, SUSPECT, DRAINING, DOWN, BANNED)),
        (PARDON, 1, (UP, SUSPECT, DRAINING, DOWN, BANNED)),
    ],
)
def test_what_becomes_of_each_state(
    kind: OrderKind, remaining_ms: int | None, becomes: tuple[NodeState, ...]
) -> None:
    states = (UP, SUSPECT, DRAINING, DOWN, BANNED)
    assert tuple(state_under(kind, state, remaining_ms) for state in states) == becomes


def test_a_drain_whose_deadline_is_over_ends_the_nodes_flows() -> None:
    assert not table_of(order(DRAIN, remaining_ms=1)).nodes[0].silent
    assert table_of(order(DRAIN, remaining_ms=0)).nodes[0].silent
    assert not table_of(order(BAN)).nodes[0].silent


def test_a_weight_of_an_operators_goes_before_the_agents() -> None:
    assert table_of(order(WEIGHT, weight=9)).nodes[0].weight == 9
    assert table_of(order(WEIGHT, weight=0)).nodes[0].weight == 0
    assert table_of(order(WEIGHT)).nodes[0].weight == 3


def test_a_service_that_stands_apart_does_so_under_an_order_too() -> None:
    services = (*seen("n", UP).services, replace(seen("n", UP).services[0], name="echo"))
    sick = replace(seen("n", UP), services=services, apart=(ServiceState("echo", DOWN),))
    drained = table_of(order(DRAIN), node=sick).nodes[0]
    assert (drained.state, drained.apart) == (DRAINING, (ServiceState("echo", DOWN),))
    assert table_of(order(BAN), node=sick).nodes[0].apart == ()


def test_when_an_order_is_over_the_node_is_as_the_lbs_see_it_even_if_none_reports() -> None:
    drained = table_of(order(BAN), order(WEIGHT, weight=9))
    freed = merge(drained, {}, table_config(), ["lb-0"], term=1, orders=())
    assert freed.nodes == table_of().nodes
    assert freed.beneath == ()
    assert freed.epoch == drained.epoch + 1


def test_an_order_stands_while_reports_come_and_while_none_do() -> None:
    drained = table_of(order(DRAIN))
    beat = Report(view(seen("n", UP, weight=3), version=2), settled=True, age_ms=0)
    assert merge(drained, {"lb-0": beat}, table_config(), ["lb-0"], term=1) == drained
    assert merge(drained, {}, table_config(), ["lb-0"], term=1) == drained


def test_an_order_waits_for_its_node_to_come_back() -> None:
    drained = table_of(order(DRAIN))
    gone = Report(view(version=2), settled=True, age_ms=0)
    without = merge(drained, {"lb-0": gone}, table_config(), ["lb-0"], term=1)
    assert without.nodes == ()
    back = Report(view(seen("n", UP, weight=3), version=3), settled=True, age_ms=0)
    again = merge(without, {"lb-0": back}, table_config(), ["lb-0"], term=1)
    assert again.nodes[0].state is DRAINING


def test_time_passes_for_orders_that_end_and_is_no_content() -> None:
    drained = table_of(order(DRAIN, remaining_ms=1_000), order(WEIGHT, weight=2))
    later = aged(drained, 400)
    assert [each.remaining_ms for each in later.orders] == [600, None]
    report = Report(view(seen("n", UP, weight=3), version=2), settled=True, age_ms=0)
    merged = merge(later, {"lb-0": report}, table_config(), ["lb-0"], term=1)
    assert merged.epoch == drained.epoch
    assert [each.remaining_ms for each in aged(drained, 5_000).orders] == [0, None]


# --------------------------------------------------------------------------- one after another


@pytest.mark.parametrize(
    ("before", "given", "stand"),
    [
        ((DRAIN,), ENABLE, {ENABLE}),
        ((BAN,), ENABLE, {ENABLE}),
        ((DRAIN,), BAN, {BAN}),
        ((BAN,), DRAIN, {DRAIN}),
        ((BAN,), PARDON, {PARDON}),
        ((DRAIN,), PARDON, {DRAIN, PARDON}),
        ((PARDON,), BAN, {BAN}),
        ((DRAIN, WEIGHT), ENABLE, {WEIGHT, ENABLE}),
        ((WEIGHT,), PARDON, {WEIGHT, PARDON}),
    ],
)
def test_how_orders_follow_one_another(
    before: tuple[OrderKind, ...], given: OrderKind, stand: set[OrderKind]
) -> None:
    orders: tuple[Order, ...] = ()
    for kind in (*before, given):
        orders = following(orders, order(kind))
    assert {each.asked.kind for each in orders} == stand


def test_orders_of_other_nodes_do_not_matter() -> None:
    other = Order("other", asked(DRAIN, "m@10.81.0.21"), 5, None)
    assert following((other,), order(ENABLE)) == (other, order(ENABLE))


def test_every_kind_has_a_rule() -> None:
    assert set(RULES) == set(OrderKind)


# --------------------------------------------------------------------------- one LB


def leader(*nodes: NodeView, disk: list[HardState] | None = None) -> Quorum:
    core = Quorum(quorum_config(), BLANK, 7, 0)
    work_off(core, 0, disk)
    core.report("boot-1", view(*(nodes or (seen("n", UP),))), 1)
    work_off(core, 1, disk)
    return core


def give(
    core: Quorum, now_ms: int, kind: OrderKind, number: str = "1", **more: Any
) -> list[Answer]:
    """Ask for an order and do all that follows at once; the answers."""
    core.order(number, asked(kind, **more), now_ms)
    return [answer for ready in work_off(core, now_ms) for answer in ready.answers]


def states(core: Quorum, now_ms: int) -> list[NodeState]:
    committed = core.committed(now_ms)
    assert committed is not None
    return [node.state for node in committed.table.nodes]


def test_an_order_is_answered_when_it_is_committed_and_told_once() -> None:
    disk: list[HardState] = []
    core = leader(disk=disk)
    core.order("1", asked(DRAIN, why="new disks"), 10)
    persisted = core.take(10)
    assert persisted is not None
    assert persisted.persist is not None
    assert not persisted.answers
    assert persisted.persist.state.table is not None
    assert [each.id for each in persisted.persist.state.table.orders] == ["1"]
    core.stored(persisted.persist.mark, 10)
    done = core.take(10)
    assert done is not None
    assert done.answers == (Answer("1", None, ""),)
    told = [event for topic, event in done.events if topic is Topic.ORDER_GIVEN]
    assert told == [OrderEvent(NODE, "n", DRAIN, "ada", "new disks", None, None)]
    assert states(core, 10) == [DRAINING]
    core.report("boot-1", view(seen("n", UP), version=2), 20)
    assert not work_off(core, 20)
    assert states(core, 20) == [DRAINING]


def test_the_same_command_is_not_carried_out_twice() -> None:
    core = leader()
    assert give(core, 10, DRAIN, within_ms=1_000)[0].refusal == ""
    assert give(core, 11, ENABLE, "2")[0].refusal == ""
    give(core, 500, DRAIN, "3", within_ms=1_000)
    committed = core.committed(500)
    assert give(core, 600, DRAIN, "3", within_ms=1_000) == [Answer("3", None, "")]
    after = core.committed(600)
    assert committed is not None
    assert after is not None
    assert after.table.epoch == committed.table.epoch
    (drain,) = after.table.orders
    assert drain.remaining_ms == 900


def test_an_order_for_nobody_is_refused_and_nothing_changes() -> None:
    core = leader()
    before = core.committed(10)
    answers = give(core, 10, DRAIN, node="x@10.0.0.1")
    assert answers == [Answer("1", None, "no node has the id x@10.0.0.1")]
    after = core.committed(10)
    assert before is not None
    assert after is not None
    assert after.table == before.table


def test_a_node_on_probation_can_be_drained_before_it_ever_serves() -> None:
    core = leader(seen("n", NodeState.PROBATION))
    assert give(core, 10, DRAIN)[0].refusal == ""
    core.report("boot-1", view(seen("n", UP), version=2), 20)
    work_off(core, 20)
    assert states(core, 20) == [DRAINING]


def test_two_orders_at_once_are_both_answered() -> None:
    core = leader()
    core.order("1", asked(DRAIN), 10)
    core.order("2", asked(ENABLE), 10)
    answers = [answer for ready in work_off(core, 10) for answer in ready.answers]
    assert answers == [Answer("1", None, ""), Answer("2", None, "")]
    assert states(core, 10) == [UP]


def test_at_its_deadline_a_drained_node_is_down() -> None:
    core = leader()
    give(core, 10, DRAIN, within_ms=1_000)
    due_ms = core.next_due_ms()
    assert due_ms is not None
    core.tick(1_009)
    work_off(core, 1_009)
    assert states(core, 1_009) == [DRAINING]
    core.tick(1_010)
    work_off(core, 1_010)
    assert states(core, 1_010) == [DOWN]
    core.tick(1_011)
    assert (core.next_due_ms() or 10**9) > 1_011
    give(core, 2_000, ENABLE, "2")
    assert states(core, 2_000) == [UP]


def test_a_deadline_wakes_the_core_in_time() -> None:
    core = leader()
    now_ms = 2 * 1_000 + 1  # settled: nothing else is due
    core.tick(now_ms)
    work_off(core, now_ms)
    give(core, now_ms, DRAIN, within_ms=1_000)
    assert core.next_due_ms() == now_ms + 1_000


def test_a_deadline_of_a_node_that_is_down_anyway_does_not_wake_the_core_for_ever() -> None:
    core = leader()
    give(core, 10, DRAIN, within_ms=1_000)
    core.report("boot-1", view(seen("n", DOWN), version=2), 20)
    work_off(core, 20)
    for now_ms in (1_010, 5_000):
        core.tick(now_ms)
        work_off(core, now_ms)
    assert (core.next_due_ms() or 10**9) > 5_000


def test_what_is_kept_for_the_record_goes_after_a_while() -> None:
    core = leader()
    give(core, 10, ENABLE)
    committed = core.committed(10)
    assert committed is not None
    assert [each.asked.kind for each in committed.table.orders] == [ENABLE]
    core.tick(10 + RECORD_MS)
    work_off(core, 10 + RECORD_MS)
    committed = core.committed(10 + RECORD_MS)
    assert committed is not None
    assert committed.table.orders == ()


def test_orders_survive_a_restart_by_way_of_the_disk(tmp_path: Any) -> None:
    disk: list[HardState] = []
    core = leader(disk=disk)
    core.order("1", asked(DRAIN, within_ms=60_000), 10)
    work_off(core, 10, disk)
    storage = Storage(tmp_path, "machine-boot")
    storage.save(disk[-1], 10)
    stored, complaint = storage.load(10_010)
    assert complaint == ""
    again = Quorum(quorum_config(), stored, 7, 10_010)
    work_off(again, 10_010)
    assert states(again, 10_010) == [DRAINING]
    committed = again.committed(10_010)
    assert committed is not None
    assert committed.table.orders[0].remaining_ms == 50_000
    again.report("boot-2", view(seen("n", UP)), 10_020)
    assert not [event for ready in work_off(again, 10_020) for event in ready.events]
    assert states(again, 10_020) == [DRAINING]


def test_a_reload_undoes_no_order() -> None:
    core = leader()
    give(core, 10, BAN)
    core.reconfigure(replace(quorum_config(), table=table_config()), 20)
    more = replace(table_config(), services=(WEB, ECHO))
    core.reconfigure(quorum_config(table=more), 30)
    work_off(core, 30)
    assert states(core, 30) == [BANNED]


def test_while_nothing_is_agreed_an_order_is_refused_after_a_while() -> None:
    core = Quorum(quorum_config(), BLANK, 7, 0)
    work_off(core, 0)
    core.order("1", asked(DRAIN), 10)
    assert not [answer for ready in work_off(core, 10) for answer in ready.answers]
    core.tick(10 + WAIT_MS)
    (answer,) = [each for ready in work_off(core, 10 + WAIT_MS) for each in ready.answers]
    assert "have not agreed" in answer.refusal


# --------------------------------------------------------------------------- several LBs


class Cluster:
    """Three cores whose messages arrive at once, unless they are lost."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.names = ("lb-0", "lb-1", "lb-2")
        self.lost: set[type] = set()
        self.answers: dict[str, list[Answer]] = {name: [] for name in self.names}
        self.told: list[tuple[str, OrderEvent]] = []
        self.cores = {name: self._core(name) for name in self.names}
        self.run(3_000)
        for core in self.cores.values():
            core.report("boot", view(seen("n", UP)), self.now_ms)
        self.run(500)

    def _core(self, name: str) -> Quorum:
        others = tuple(each for each in self.names if each != name)
        config: QuorumConfig = replace(quorum_config(name=name), address=name, others=others)
        draw = 0.2 * self.names.index(name)
        return Quorum(config, BLANK, 7, 0, boot=name, draw=lambda: draw)

    def run(self, length_ms: int) -> None:
        for _ in range(length_ms // 5):
            self.now_ms += 5
            for core in self.cores.values():
                core.tick(self.now_ms)
            self.settle()

    def settle(self) -> None:
        waiting: deque[tuple[str, str, Any]] = deque()
        while True:
            for name, core in self.cores.items():
                waiting += [(name, *sent) for sent in self._work_off(name, core)]
            if not waiting:
                return
            sender, to, message = waiting.popleft()
            if type(message) not in self.lost:
                self.cores[to].receive(sender, message, self.now_ms)

    def _work_off(self, name: str, core: Quorum) -> list[tuple[str, Any]]:
        sends: list[tuple[str, Any]] = []
        while (ready := core.take(self.now_ms)) is not None:
            if ready.persist is not None:
                core.stored(ready.persist.mark, self.now_ms)
            events = [event for _, event in ready.events if isinstance(event, OrderEvent)]
            self.told += [(name, event) for event in events]
            sends += [(each.to, each.message) for each in ready.sends]
            self.answers[name] += ready.answers
        return sends

    @property
    def leader(self) -> str:
        (name,) = {core.state(self.now_ms).leader for core in self.cores.values()}
        assert name is not None
        return name

    @property
    def follower(self) -> str:
        return next(name for name in self.names if name != self.leader)

    def states(self) -> list[list[NodeState]]:
        return [states(core, self.now_ms) for core in self.cores.values()]


def test_a_follower_passes_an_order_on_and_all_go_by_it() -> None:
    cluster = Cluster()
    name = cluster.follower
    cluster.cores[name].order("1", asked(DRAIN), cluster.now_ms)
    cluster.run(100)
    assert cluster.answers[name] == [Answer("1", None, "")]
    assert cluster.states() == [[DRAINING]] * 3
    assert sorted(each for each, _ in cluster.told) == ["lb-0", "lb-1", "lb-2"]


def test_a_follower_is_told_why_not() -> None:
    cluster = Cluster()
    name = cluster.follower
    cluster.cores[name].order("1", asked(DRAIN, "x@10.0.0.1"), cluster.now_ms)
    cluster.run(100)
    assert cluster.answers[name] == [Answer("1", None, "no node has the id x@10.0.0.1")]


def test_an_order_that_was_lost_on_its_way_is_passed_on_again() -> None:
    cluster = Cluster()
    name = cluster.follower
    cluster.lost = {OrderAsked}
    cluster.cores[name].order("1", asked(BAN), cluster.now_ms)
    cluster.run(300)
    assert cluster.answers[name] == []
    cluster.lost = set()
    cluster.run(300)
    assert cluster.answers[name] == [Answer("1", None, "")]
    assert len(cluster.told) == 3


def test_an_order_outlives_the_leader_that_took_it() -> None:
    cluster = Cluster()
    leads = cluster.leader
    cluster.cores[cluster.follower].order("1", asked(DRAIN), cluster.now_ms)
    cluster.run(100)
    del cluster.cores[leads]
    left = list(cluster.cores.values())
    for _ in range(400):
        cluster.now_ms += 5
        for core in left:
            core.tick(cluster.now_ms)
        _settle_without(cluster, leads)
    assert cluster.leader != leads
    assert cluster.states() == [[DRAINING]] * 2
    assert len(cluster.told) == 3


def _settle_without(cluster: Cluster, gone: str) -> None:
    for name, core in cluster.cores.items():
        for to, message in cluster._work_off(name, core):
            if to != gone:
                cluster.cores[to].receive(name, message, cluster.now_ms)


def test_an_order_without_a_majority_is_refused_after_a_while() -> None:
    cluster = Cluster()
    alone = cluster.cores[cluster.follower]
    name = cluster.follower
    cluster.cores = {name: alone}
    alone.order("1", asked(DRAIN), cluster.now_ms)
    for _ in range(WAIT_MS // 5 + 1):
        cluster.now_ms += 5
        alone.tick(cluster.now_ms)
        cluster._work_off(name, alone)
    (answer,) = cluster.answers[name]
    assert "have not agreed" in answer.refusal


# --------------------------------------------------------------------------- the desk


def test_what_a_former_leader_wrote_is_written_again_by_the_next() -> None:
    desk = Desk()
    desk.waiting.ask("1", asked(DRAIN), None, 0)
    (given,) = desk.next_orders(bootstrap(1, 7), [NODE])
    assert desk.next_orders(bootstrap(1, 7), [NODE]) == ()
    desk.waiting.lead_ended()
    assert desk.next_orders(bootstrap(1, 7), [NODE]) == (given,)


def test_words_that_make_no_order() -> None:
    for wrong in (
        {"kind": BAN, "weight": 3},
        {"kind": ENABLE, "within_ms": 3},
        {"kind": DRAIN, "why": "two\nlines"},
        {"kind": DRAIN, "node": ""},
    ):
        with pytest.raises(ValueError, match=r"order|takes"):
            asked(**wrong)
