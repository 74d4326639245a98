"""The agent's core: sessions, what beats say, and what the operator wants."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from bus.node_protocol import (
    Heartbeat,
    Hello,
    NodeMessage,
    OfferedService,
    Prepared,
    Refused,
    Sick,
    Welcome,
    encode_node,
)
from bus.states import NodeService
from bus.words import (
    LONGEST_REASON,
    Encapsulation,
    Mode,
    NodeState,
    Protocol,
    ServingStatus,
)
from services.health.listener import LARGEST_FRAME
from services.node.core import (
    ACTIVITY_STEPS,
    DRAIN_MS,
    HELLO_RETRY_MS,
    LEAVE_LIMIT_MS,
    LEAVE_SETTLE_MS,
    LONGEST_DRAIN_MS,
    PATIENCE_HELLOS,
    SESSION_STEPS,
    Activity,
    Agent,
    AgentConfig,
    CheckKind,
    CheckPlan,
    IllegalStepError,
    Phase,
    _Session,
)
from services.node.direct import NOTHING_NEEDED, Need

SERVING = ServingStatus.SERVING
NOT_SERVING = ServingStatus.NOT_SERVING
SHUTTING_DOWN = ServingStatus.SHUTTING_DOWN
LB = "10.81.0.10:7070"
OTHER = "10.81.0.11:7070"
INTERVAL_MS = 500


def offer(name: str, port: int, protocol: Protocol = Protocol.TCP) -> OfferedService:
    return OfferedService(name, None, port, protocol, Mode.L4, port, Encapsulation.IPIP)


def welcome(
    state: NodeState = NodeState.UP,
    interval_ms: int = INTERVAL_MS,
    services: tuple[OfferedService, ...] = (offer("default", 8080),),
) -> Welcome:
    return Welcome("lb-0", "node-0@10.81.0.20", 1000, interval_ms, state, services)


@dataclass
class Rig:
    lbs: tuple[str, ...] = (LB,)
    named: tuple[CheckPlan, ...] = ()
    now_ms: int = 1_000
    sent: list[tuple[str, NodeMessage]] = field(default_factory=list)
    reconnects: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = AgentConfig("node-0", 1, self.lbs, self.named)
        self.agent = Agent(config, "boot", self.now_ms)

    def collect(self) -> None:
        self.agent.tick(self.now_ms)
        output = self.agent.take_output()
        self.sent += output.messages
        self.reconnects += output.reconnect
        self.log += output.log

    def connect(self, lb: str = LB) -> None:
        self.agent.connected(lb, self.now_ms)
        self.collect()

    def hear(self, message: NodeMessage, lb: str = LB) -> None:
        self.agent.receive(lb, encode_node(message), self.now_ms)
        self.collect()

    def check(self, good: bool = True, name: str = "default") -> None:
        plan = next(plan for plan in self.agent.plans() if plan.service == name)
        self.agent.checked(plan, good, "as it is", self.now_ms)
        self.collect()

    def wait(self, duration_ms: int) -> None:
        end_ms = self.now_ms + duration_ms
        while (due_ms := self.agent.next_due_ms()) is not None and due_ms <= end_ms:
            self.now_ms = max(self.now_ms, due_ms)
            self.collect()
        self.now_ms = end_ms
        self.collect()

    def admit(self) -> None:
        for lb in self.lbs:
            self.connect(lb)
            self.hear(welcome(), lb)
        self.check()
        self.sent.clear()

    def beats(self, lb: str = LB) -> list[Heartbeat]:
        return [m for to, m in self.sent if to == lb and isinstance(m, Heartbeat)]

    def hellos(self, lb: str = LB) -> list[Hello]:
        return [m for to, m in self.sent if to == lb and isinstance(m, Hello)]

    def activity(self) -> Activity:
        return self.agent.activity

    def phase(self, lb: str = LB) -> str:
        sessions = self.agent.status(self.now_ms)["load_balancers"]
        return str(next(s["phase"] for s in sessions if s["address"] == lb))


# ----------------------------------------------------------------- sessions


def test_a_connection_is_greeted_and_beats_begin_when_welcomed_and_checked() -> None:
    rig = Rig()
    rig.connect()
    assert rig.sent == [(LB, Hello(1, "node-0", "boot", 1, ()))]
    rig.hear(welcome())
    assert rig.beats() == [], "nothing is said of what was not looked at"
    rig.check()
    assert rig.beats() == [Heartbeat(1, 1_000, SERVING, 0.0, "", (), ())]


def test_beats_go_out_at_the_interval_the_lb_asks_for_now() -> None:
    rig = Rig()
    rig.admit()
    rig.wait(2_000)
    assert [beat.sent_ms for beat in rig.beats()] == [1_500, 2_000, 2_500, 3_000]
    rig.sent.clear()
    rig.hear(welcome(NodeState.PROBATION, 50))
    rig.wait(200)
    assert [beat.sent_ms for beat in rig.beats()] == [3_050, 3_100, 3_150, 3_200]


def test_numbers_of_beats_only_rise_whatever_becomes_of_the_connection() -> None:
    rig = Rig()
    rig.admit()
    for _ in range(3):
        rig.wait(600)
        rig.agent.disconnected(LB, "lost")
        rig.wait(600)
        rig.connect()
        rig.hear(welcome())
    numbers = [beat.seq for beat in rig.beats()]
    assert numbers == sorted(set(numbers))


def test_no_beat_without_a_connection() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.disconnected(LB, "lost")
    rig.wait(10_000)
    assert rig.sent == []
    assert rig.phase() == "absent"


def test_a_hello_is_repeated_and_then_the_connection_made_anew() -> None:
    rig = Rig()
    rig.connect()
    rig.wait(HELLO_RETRY_MS * (PATIENCE_HELLOS - 1))
    assert len(rig.hellos()) == PATIENCE_HELLOS
    assert rig.reconnects == []
    rig.wait(HELLO_RETRY_MS)
    assert rig.reconnects == [LB]
    assert "is 7070 the load balancer's local.node_port" in rig.log[-1]
    rig.connect()
    rig.hear(welcome())
    assert rig.phase() == "admitted"


def test_an_lb_that_does_not_know_us_is_greeted_at_once_and_once() -> None:
    rig = Rig()
    rig.admit()
    rig.wait(1_000)
    for _ in range(4):
        rig.hear(Refused("say hello first", 0))
    assert len(rig.hellos()) == 1
    rig.hear(welcome())
    assert rig.phase() == "admitted"


def test_a_refusal_is_honoured_to_the_millisecond() -> None:
    rig = Rig()
    rig.admit()
    rig.hear(Refused("banned after 3 failures", 30_000))
    rig.wait(29_999)
    assert rig.sent == []
    assert rig.log[-1].endswith("banned after 3 failures")
    rig.wait(1)
    assert len(rig.hellos()) == 1
    rig.hear(Refused("banned after 3 failures", 30_000))
    rig.wait(1_000)
    rig.hear(welcome(NodeState.DOWN))
    assert rig.phase() == "admitted", "the ban was lifted"


def test_what_an_lb_gives_as_its_reason_is_one_line_here() -> None:
    rig = Rig()
    rig.admit()
    rig.hear(Refused("no\n\x1b[2Jroom", 30_000))
    assert rig.log[-1] == f"{LB}: no [2Jroom"


def test_an_lb_that_is_quiet_is_greeted_again_and_given_up_if_it_does_not_answer() -> None:
    rig = Rig()
    rig.admit()
    rig.wait(10_000)
    assert len(rig.hellos()) == 1
    rig.hear(welcome())
    rig.wait(9_999)
    assert len(rig.hellos()) == 1
    rig.wait(1 + PATIENCE_HELLOS * HELLO_RETRY_MS)
    assert rig.reconnects == [LB]


def test_each_lb_has_a_session_of_its_own() -> None:
    rig = Rig(lbs=(LB, OTHER))
    rig.admit()
    rig.hear(Refused("no", 1_000_000), OTHER)
    rig.sent.clear()
    rig.wait(1_000)
    assert (len(rig.beats(LB)), len(rig.beats(OTHER))) == (2, 0)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"welcome"],
        [b"welcome", b"{}"],
        [b"noise", b"{}"],
        encode_node(welcome(interval_ms=0)),
        encode_node(Heartbeat(1, 1, SERVING, 0, "")),
    ],
)
def test_what_an_lb_should_not_say_changes_nothing(frames: list[bytes]) -> None:
    rig = Rig()
    rig.admit()
    before = rig.agent.status(rig.now_ms)
    rig.agent.receive(LB, frames, rig.now_ms)
    after = rig.agent.status(rig.now_ms)
    assert sum(after.pop("rejected").values()) == 1
    before.pop("rejected")
    assert after == before


# ----------------------------------------------------------------- checks


def test_without_named_services_all_that_is_offered_is_checked_by_its_protocol() -> None:
    rig = Rig()
    rig.connect()
    rig.hear(welcome(services=(offer("web", 80), offer("dns", 53, Protocol.UDP))))
    assert rig.agent.plans() == (
        CheckPlan("web", 80, CheckKind.TCP),
        CheckPlan("dns", 53, CheckKind.UDP),
    )


def test_named_services_are_checked_as_named_and_told_to_the_lb() -> None:
    plan = CheckPlan("web", 8888, CheckKind.HTTP, "/healthz", 200, 100)
    rig = Rig(named=(plan,))
    assert rig.agent.plans() == (plan,)
    rig.connect()
    assert rig.hellos()[0].services == (NodeService("web", 8888),)
    rig.hear(welcome())
    assert rig.agent.plans() == (plan,)
    assert f"{LB} has no service web" in rig.log
    assert rig.agent.status(0)["load_balancers"][0]["not_offered"] == ["web"]


def test_a_change_goes_to_every_lb_at_once_and_the_same_again_does_not() -> None:
    rig = Rig(lbs=(LB, OTHER))
    rig.admit()
    rig.wait(100)
    rig.check(good=False)
    rig.check(good=False)
    for lb in (LB, OTHER):
        assert [(beat.sent_ms, beat.status) for beat in rig.beats(lb)] == [(1_100, NOT_SERVING)]
    assert rig.beats()[0].reason == "default: as it is"


def test_of_two_services_the_one_that_fails_is_named() -> None:
    rig = Rig()
    rig.connect()
    rig.hear(welcome(services=(offer("a", 1), offer("b", 2))))
    rig.check(name="a")
    assert rig.beats() == []
    rig.check(name="b")
    assert (rig.beats()[-1].status, rig.beats()[-1].sick) == (SERVING, ())
    rig.check(good=False, name="b")
    assert rig.beats()[-1].status is NOT_SERVING, "for an LB that knows of no more than that"
    assert rig.beats()[-1].sick == (Sick("as it is", ("b",)),)
    rig.check(good=True, name="a")
    rig.wait(INTERVAL_MS)
    assert (rig.beats()[-1].status, rig.beats()[-1].sick) == (NOT_SERVING, None)
    rig.check(good=False, name="a")
    assert (rig.beats()[-1].status, rig.beats()[-1].sick) == (NOT_SERVING, ())
    rig.check(good=True, name="a")
    rig.check(good=True, name="b")
    assert (rig.beats()[-1].status, rig.beats()[-1].sick) == (SERVING, ())


def test_one_that_starts_and_finds_a_service_sick_waits_for_what_the_others_are() -> None:
    rig = Rig()
    rig.connect()
    rig.hear(welcome(services=(offer("a", 1), offer("b", 2))))
    rig.check(good=False, name="b")
    assert rig.beats() == []
    rig.check(name="a")
    assert rig.beats()[-1].sick == (Sick("as it is", ("b",)),)


def test_what_is_sick_is_said_again_after_each_welcome_and_when_it_was_not_sent() -> None:
    rig = Rig()
    rig.admit()
    rig.hear(welcome(services=(offer("default", 8080), offer("b", 2))))
    rig.check(good=False, name="b")
    sick = (Sick("as it is", ("b",)),)
    rig.wait(2 * INTERVAL_MS)
    assert [beat.sick for beat in rig.beats()[-3:]] == [sick, None, None]
    rig.hear(welcome(services=(offer("default", 8080), offer("b", 2))))
    rig.wait(2 * INTERVAL_MS)
    assert [beat.sick for beat in rig.beats()[-2:]] == [sick, None]
    rig.agent.unsent(LB)
    rig.wait(2 * INTERVAL_MS)
    assert [beat.sick for beat in rig.beats()[-2:]] == [sick, None]


def test_a_node_that_drains_says_so_though_one_of_its_services_is_sick() -> None:
    rig = Rig()
    rig.connect()
    rig.hear(welcome(services=(offer("a", 1), offer("b", 2))))
    rig.check(name="a")
    rig.check(good=False, name="b")
    rig.agent.stop(5_000, rig.now_ms)
    rig.collect()
    assert (rig.beats()[-1].status, rig.beats()[-1].sick) == (SHUTTING_DOWN, None)
    rig.check(good=False, name="a")
    assert (rig.beats()[-1].status, rig.beats()[-1].sick) == (NOT_SERVING, ())


def test_very_many_sick_services_fit_into_a_beat() -> None:
    names = [f"{number:0>64}" for number in range(1_000)]
    rig = Rig()
    rig.connect()
    rig.hear(welcome(services=tuple(offer(name, 1) for name in [*names, "well"])))
    plans = {plan.service: plan for plan in rig.agent.plans()}
    for number, name in enumerate(names):
        rig.agent.checked(plans[name], False, f"{number:x>400}", rig.now_ms)
    rig.check(name="well")
    (beat,) = rig.beats()
    assert sum(len(each.services) for each in beat.sick or ()) == 1_000
    assert len(encode_node(beat)[1]) < LARGEST_FRAME


def test_a_new_service_counts_from_its_first_result() -> None:
    rig = Rig()
    rig.admit()
    rig.hear(welcome(services=(offer("default", 8080), offer("new", 9))))
    rig.check(name="default")
    rig.wait(INTERVAL_MS)
    assert {beat.status for beat in rig.beats()} == {SERVING}
    assert rig.beats()[0].sick == (Sick("not checked yet", ("new",)),)
    rig.check(good=False, name="new")
    assert rig.beats()[-1].status is NOT_SERVING
    rig.check(good=True, name="new")
    assert (rig.beats()[-1].status, rig.beats()[-1].sick) == (SERVING, ())


def test_a_service_whose_check_changes_is_what_it_was_until_that_has_a_result() -> None:
    rig = Rig()
    rig.admit()
    rig.hear(welcome(services=(offer("default", 8081),)))
    rig.wait(INTERVAL_MS)
    assert {beat.status for beat in rig.beats()} == {SERVING}
    assert all(not beat.sick for beat in rig.beats())


def test_the_result_of_a_check_that_is_no_longer_wanted_says_nothing() -> None:
    rig = Rig()
    rig.admit()
    old = rig.agent.plans()[0]
    rig.hear(welcome(services=(offer("default", 9999),)))
    rig.agent.checked(old, False, "closed", rig.now_ms)
    rig.collect()
    assert rig.agent.status(rig.now_ms)["status"] == "serving"


# ----------------------------------------------------------------- the operator


def test_stop_drains_first_and_start_serves_again() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.stop(DRAIN_MS, rig.now_ms)
    rig.collect()
    assert [beat.status for beat in rig.beats()] == [SHUTTING_DOWN]
    rig.wait(DRAIN_MS - 1)
    assert {beat.status for beat in rig.beats()} == {SHUTTING_DOWN}
    rig.wait(1)
    assert (rig.beats()[-1].status, rig.beats()[-1].reason) == (
        NOT_SERVING,
        "stopped by the operator",
    )
    rig.check()
    rig.agent.start(rig.now_ms)
    rig.collect()
    assert rig.beats()[-1].status is SERVING


def test_a_drain_has_a_longest_time() -> None:
    rig = Rig()
    rig.agent.stop(10**12, rig.now_ms)
    assert rig.agent.next_due_ms() == rig.now_ms + LONGEST_DRAIN_MS


def test_start_calls_a_drain_off() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.stop(DRAIN_MS, rig.now_ms)
    rig.wait(1_000)
    rig.agent.start(rig.now_ms)
    rig.wait(DRAIN_MS)
    assert rig.beats()[-1].status is SERVING


def test_a_start_before_anything_was_checked_promises_nothing() -> None:
    rig = Rig()
    rig.agent.stop(0, rig.now_ms)
    rig.wait(1)
    rig.agent.start(rig.now_ms)
    rig.connect()
    rig.hear(welcome())
    assert rig.beats() == []
    rig.check()
    assert [beat.status for beat in rig.beats()] == [SERVING]


def test_stop_and_start_may_be_said_twice() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.start(rig.now_ms)
    rig.agent.stop(1_000, rig.now_ms)
    rig.wait(900)
    rig.agent.stop(1_000, rig.now_ms)
    rig.wait(100)
    assert rig.activity() is Activity.STOPPED


def test_a_server_that_dies_while_draining_is_said() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.stop(DRAIN_MS, rig.now_ms)
    rig.check(good=False)
    assert rig.beats()[-1].status is NOT_SERVING


def test_leaving_waits_until_every_lb_drains_and_that_has_settled() -> None:
    rig = Rig(lbs=(LB, OTHER))
    rig.admit()
    rig.agent.leave(rig.now_ms)
    rig.collect()
    assert rig.beats(LB)[-1].status is rig.beats(OTHER)[-1].status is SHUTTING_DOWN
    rig.wait(100)
    rig.hear(welcome(NodeState.DRAINING), LB)
    rig.wait(LEAVE_SETTLE_MS)
    assert rig.activity() is Activity.LEAVING
    rig.hear(welcome(NodeState.DRAINING), OTHER)
    rig.wait(LEAVE_SETTLE_MS - 1)
    assert rig.activity() is Activity.LEAVING
    rig.wait(1)
    assert rig.activity() is Activity.ENDED


def test_leaving_does_not_wait_for_ever() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.leave(rig.now_ms)
    rig.wait(LEAVE_LIMIT_MS - 1)
    assert rig.activity() is Activity.LEAVING
    rig.wait(1)
    assert rig.activity() is Activity.ENDED


def test_leaving_waits_for_connections_that_would_break() -> None:
    for lasting_ms in (LEAVE_LIMIT_MS + 1_000, DRAIN_MS + 1_000):
        rig = Rig()
        rig.admit()
        rig.agent.leave(rig.now_ms)
        rig.agent.open_flows = 1
        rig.collect()
        rig.hear(welcome(NodeState.DRAINING))
        rig.wait(min(lasting_ms, DRAIN_MS) - 1)
        assert rig.activity() is Activity.LEAVING
        assert rig.beats()[-1].status is SHUTTING_DOWN
        rig.agent.open_flows = int(lasting_ms > DRAIN_MS)
        rig.wait(1)
        assert rig.activity() is Activity.ENDED


def test_who_is_admitted_nowhere_leaves_at_once() -> None:
    rig = Rig()
    rig.agent.leave(rig.now_ms)
    rig.collect()
    assert rig.activity() is Activity.ENDED


def test_who_was_stopped_leaves_at_once() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.stop(0, rig.now_ms)
    rig.wait(1)
    rig.agent.leave(rig.now_ms)
    assert rig.activity() is Activity.ENDED


# ----------------------------------------------------------------- direct return


def test_what_the_lbs_offer_outlives_their_connections() -> None:
    rig = Rig(lbs=(LB, OTHER))
    rig.connect()
    assert (rig.agent.offers(), rig.agent.heard_all) == ((), False)
    rig.hear(welcome())
    assert (rig.agent.offers(), rig.agent.heard_all) == ((offer("default", 8080),), False)
    rig.agent.disconnected(LB, "gone")
    assert rig.agent.offers() == (offer("default", 8080),)
    rig.connect(OTHER)
    rig.hear(welcome(), OTHER)
    assert rig.agent.heard_all
    rig.agent.configure(AgentConfig("node-0", 1, (LB,), ()), rig.now_ms)
    assert rig.agent.offers() == (offer("default", 8080),)


def test_nothing_is_said_before_the_machine_is_prepared() -> None:
    rig = Rig()
    rig.connect()
    rig.hear(welcome())
    rig.agent.prepared(False, "", rig.now_ms)
    rig.check()
    rig.wait(INTERVAL_MS)
    assert rig.beats() == []
    rig.agent.prepared(True, "", rig.now_ms)
    rig.collect()
    assert rig.beats()[-1].status is SERVING


def test_who_serves_goes_on_while_more_is_prepared() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.prepared(False, "", rig.now_ms)
    rig.wait(INTERVAL_MS)
    assert rig.beats()[-1].status is SERVING


def test_who_cannot_be_prepared_does_not_serve() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.prepared(True, "no room on lo", rig.now_ms)
    rig.collect()
    assert (rig.beats()[-1].status, rig.beats()[-1].reason) == (
        NOT_SERVING, "not prepared: no room on lo",
    )  # fmt: skip
    rig.agent.prepared(True, "", rig.now_ms)
    rig.collect()
    assert rig.beats()[-1].status is SERVING


def test_what_a_compiler_says_is_told_in_one_printable_line() -> None:
    """An LB refuses a beat with any other text, so the node would fall silent."""
    rig = Rig()
    rig.admit()
    rig.agent.prepared(True, "unwrap.c:89: error\n\topen_packet(\x1b[31m)\n" * 20, rig.now_ms)
    rig.collect()
    reason = rig.beats()[-1].reason
    assert reason.startswith("not prepared: unwrap.c:89: error open_packet( [31m) unwrap.c")
    assert reason.isprintable()
    assert len(reason) <= LONGEST_REASON


VIP = "10.80.0.100"
ON_LO = Need(frozenset({VIP}))
UNWRAPPED = Need(frozenset({VIP}), frozenset({VIP}), 20)
IN_L3 = (Prepared((Mode.L2, Mode.L3), ("default",)),)


def direct(mode: Mode) -> Welcome:
    offered = replace(offer("default", 8080), vip=VIP, mode=mode)
    return welcome(services=(offered, offer("other", 9_000)))


def test_for_which_modes_it_is_prepared_is_said_at_once_and_once() -> None:
    rig = Rig(lbs=(LB, OTHER))
    rig.admit()
    rig.wait(INTERVAL_MS // 2)
    for lb in (LB, OTHER):
        rig.hear(direct(Mode.L3), lb)
    rig.agent.prepared(False, "", rig.now_ms)
    rig.sent.clear()
    rig.agent.prepared(True, "", rig.now_ms, with_what=UNWRAPPED)
    rig.collect()
    for lb in (LB, OTHER):
        assert [(b.sent_ms, b.prepared) for b in rig.beats(lb)] == [(rig.now_ms, IN_L3)]
    rig.agent.prepared(True, "", rig.now_ms, with_what=UNWRAPPED)
    rig.wait(3 * INTERVAL_MS)
    assert [beat.prepared for beat in rig.beats()] == [IN_L3, None, None, None]
    rig.sent.clear()
    rig.agent.prepared(True, "", rig.now_ms, with_what=NOTHING_NEEDED)
    rig.collect()
    assert [(b.sent_ms, b.prepared) for b in rig.beats()] == [(rig.now_ms, ())]


def test_an_lb_that_speaks_is_told_again_for_what_it_is_prepared() -> None:
    """It may have been started anew meanwhile, or have lost what was said."""
    rig = Rig()
    rig.admit()
    rig.agent.prepared(True, "", rig.now_ms, with_what=UNWRAPPED)
    rig.hear(direct(Mode.L3))
    rig.wait(2 * INTERVAL_MS)
    assert [beat.prepared for beat in rig.beats()] == [IN_L3, None, None]
    rig.hear(Refused("say hello first", 0))
    rig.hear(direct(Mode.L3))
    rig.wait(2 * INTERVAL_MS)
    assert [beat.prepared for beat in rig.beats()][3] == IN_L3


def test_each_lb_is_told_of_its_own_vips_and_of_what_is_served() -> None:
    rig = Rig(lbs=(LB, OTHER), named=(CheckPlan("default", 8080),))
    rig.admit()
    rig.agent.prepared(True, "", rig.now_ms, with_what=ON_LO)
    rig.hear(direct(Mode.L2))
    another = replace(offer("default", 8080), vip="10.80.0.101", mode=Mode.L2)
    unserved = replace(offer("unserved", 9_000), vip=VIP, mode=Mode.L2)
    rig.hear(welcome(services=(another, unserved)), OTHER)
    rig.wait(INTERVAL_MS)
    assert rig.beats()[0].prepared == (Prepared((Mode.L2,), ("default",)),)
    assert rig.beats(OTHER)[0].prepared == ()


# ----------------------------------------------------------------- configuration


def test_another_file_adds_and_removes_lbs_and_is_told_to_those_that_stay() -> None:
    rig = Rig()
    rig.admit()
    plan = CheckPlan("default", 8888)
    rig.agent.configure(AgentConfig("node-0", 5, (LB, OTHER), (plan,)), rig.now_ms)
    rig.collect()
    assert rig.hellos(LB)[-1] == Hello(1, "node-0", "boot", 5, (NodeService("default", 8888),))
    rig.connect(OTHER)
    assert len(rig.hellos(OTHER)) == 1
    rig.agent.configure(AgentConfig("node-0", 5, (OTHER,), (plan,)), rig.now_ms)
    rig.hear(welcome(), LB)
    assert [s["address"] for s in rig.agent.status(0)["load_balancers"]] == [OTHER]


def test_the_same_file_again_is_not_told() -> None:
    rig = Rig()
    rig.admit()
    rig.agent.configure(AgentConfig("node-0", 1, (LB,), ()), rig.now_ms)
    rig.collect()
    assert rig.sent == []
    assert rig.phase() == "admitted"


# ----------------------------------------------------------------- the tables


def test_every_step_that_the_tables_lack_raises() -> None:
    for before in Phase:
        for after in Phase:
            session = _Session(LB, before)
            if (before, after) in SESSION_STEPS:
                Rig().agent._step(session, after, "")
            else:
                with pytest.raises(IllegalStepError):
                    Rig().agent._step(session, after, "")


def test_every_turn_that_the_tables_lack_raises() -> None:
    for before in Activity:
        for after in Activity:
            agent = Rig().agent
            agent.activity = before
            if (before, after) in ACTIVITY_STEPS:
                agent._turn(after, 0)
            else:
                with pytest.raises(IllegalStepError):
                    agent._turn(after, 0)


def test_where_clients_are_answered_directly_the_vips_of_all_lbs_are_checked() -> None:
    def direct(vip: str, mode: Mode) -> OfferedService:
        return replace(offer("default", 8080), vip=vip, mode=mode, port=80)

    rig = Rig(lbs=(LB, OTHER), named=(CheckPlan("default", 8080),))
    for lb, vip, mode in ((LB, "10.80.0.10", Mode.L3), (OTHER, "10.80.0.11", Mode.L2)):
        rig.agent.connected(lb, rig.now_ms)
        rig.agent.receive(lb, encode_node(welcome(services=(direct(vip, mode),))), rig.now_ms)
    (plan,) = rig.agent.plans()
    assert plan.fronts == (("10.80.0.10", 80), ("10.80.0.11", 80))
    no_more = welcome(services=(direct("10.80.0.11", Mode.L4),))
    rig.agent.receive(OTHER, encode_node(no_more), rig.now_ms)
    (plan,) = rig.agent.plans()
    assert plan.fronts == (("10.80.0.10", 80),)
