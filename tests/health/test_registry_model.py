"""The registry against arbitrary histories: agents that live, fail, leave, die and come back, while
the process that holds the registry is paused and restarted. Each serves two services, one of which
falls sick and recovers for itself. What must hold is worked out here from
what really happened, by a rule or two, not by the registry's own reasoning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bus.events import NodeEvent
from bus.node_protocol import (
    Refused,
    Sick,
    Welcome,
)
from bus.topics import Topic
from bus.words import (
    NodeState,
    ServingStatus,
)
from tests.health.rig import (
    NOT_SERVING,
    SERVING,
    SHUTTING_DOWN,
    TIMEOUT_MS,
    Agent,
    Rig,
    offered,
)
from tests.health.rig import (
    POLICY as ONE,
)

POLICY = replace(ONE, services=(offered("well", 1), offered("frail", 2)))
STEP_MS = 10
SETTLED_MS = 500
"""A node that serves steadily and is heard this long is UP: three checks of 50 ms, with room."""


@dataclass(eq=False)
class Machine:
    """A node's machine: its agent, and the truth about it."""

    agent: Agent
    alive: bool = False
    status: ServingStatus = SERVING
    sick: bool = False
    """Whether `frail` is not served there."""
    told: bool | None = None
    """What the newest connection was told of that."""
    read_sick: bool = False
    spared: bool = False
    """Whether `well` was taken from it for its silence, while `frail` could not be."""
    frail_since_ms: int = 0
    frail_failures: int = 0
    frail_banned_until_ms: int = 0
    next_beat_ms: int = 0
    sent_ms: int = 0
    """When it truly last sent anything."""
    steady_since_ms: int = 0
    good_run: int = 0
    """Good checks in a row that the registry was handed in time."""
    last_read: ServingStatus | None = None
    failures: int = 0
    up_since_ms: int | None = None
    banned_until_ms: int = 0
    queue: list[tuple[list[bytes], ServingStatus, bool, int]] = field(default_factory=list)


class Histories(RuleBasedStateMachine):
    @initialize(count=st.integers(1, 4), least=st.sampled_from([0, 50, 100]))
    def start(self, count: int, least: int) -> None:
        self.least = least
        self.rig = Rig(replace(POLICY, min_healthy_percent=least))
        self.paused_since_ms: int | None = None
        self.seen_events = self.looked_at = 0
        self.taken_back = False
        self.machines = [
            Machine(Agent(self.rig, f"node-{i}", f"10.81.0.{20 + i}")) for i in range(count)
        ]
        for machine in self.machines:
            self.come_up(machine)

    # ------------------------------------------------------------- the world

    def come_up(self, machine: Machine) -> None:
        machine.alive = True
        machine.status = SERVING
        machine.told = None
        if machine.agent.connection:
            machine.agent.restart()
        else:
            machine.agent.hello()
        self.settle(machine)
        self.send(machine)

    def settle(self, machine: Machine) -> None:
        machine.steady_since_ms = machine.frail_since_ms = self.rig.now_ms

    def send(self, machine: Machine) -> None:
        sick = machine.sick and machine.status is not NOT_SERVING
        news = ((Sick("it fell", ("frail",)),) if sick else ()) if sick != machine.told else None
        status = NOT_SERVING if sick and machine.status is SERVING else machine.status
        frames = machine.agent.make_beat(status, sick=news)
        machine.told = sick
        machine.sent_ms = self.rig.now_ms
        machine.queue.append((frames, machine.status, sick, self.rig.now_ms))
        if self.paused_since_ms is None:
            self.read(machine)

    def read(self, machine: Machine) -> None:
        for frames, status, sick, sent_ms in machine.queue:
            machine.last_read, machine.read_sick = status, sick
            if status is NOT_SERVING:
                machine.good_run = 0
            elif status is SERVING and self.rig.now_ms - sent_ms < TIMEOUT_MS:
                machine.good_run += 1
            machine.agent.deliver(frames)
            self.check_events()
        machine.queue.clear()
        last = next(iter(machine.agent.messages()[-1:]), None)
        if isinstance(last, Refused) and last.retry_ms == 0 and machine.alive:
            machine.agent.hello()
            machine.told = None
        interval_ms = last.interval_ms if isinstance(last, Welcome) else TIMEOUT_MS // 2
        machine.next_beat_ms = min(machine.next_beat_ms, self.rig.now_ms + interval_ms)

    def interval_ms(self, machine: Machine) -> int:
        welcomes = [m for m in machine.agent.messages() if isinstance(m, Welcome)]
        return welcomes[-1].interval_ms if welcomes else TIMEOUT_MS // 2

    def pass_time(self, duration_ms: int) -> None:
        for _ in range(duration_ms // STEP_MS):
            self.rig.now_ms += STEP_MS
            for machine in self.machines:
                if machine.alive and self.rig.now_ms >= machine.next_beat_ms:
                    machine.next_beat_ms = self.rig.now_ms + self.interval_ms(machine)
                    self.send(machine)
            if self.paused_since_ms is None:
                self.rig.tick()
                self.check_events()

    # ------------------------------------------------------------- rules

    @rule(duration_ms=st.integers(STEP_MS, 3 * TIMEOUT_MS))
    def wait(self, duration_ms: int) -> None:
        self.pass_time(duration_ms)

    @rule(duration_ms=st.sampled_from((SETTLED_MS, TIMEOUT_MS, 5 * TIMEOUT_MS)))
    def wait_a_round_time(self, duration_ms: int) -> None:
        self.pass_time(duration_ms)

    @rule()
    @precondition(lambda self: self.paused_since_ms is None)
    def wait_for_more_than_a_ban(self) -> None:
        self.pass_time(POLICY.black_list_expiry_ms + TIMEOUT_MS)

    @rule(index=st.integers(0, 3), status=st.sampled_from(ServingStatus))
    def change_status(self, index: int, status: ServingStatus) -> None:
        machine = self.machines[index % len(self.machines)]
        if machine.alive and machine.status is not status:
            machine.status = status
            self.settle(machine)
            self.send(machine)

    @rule(index=st.integers(0, 3))
    def fall_sick_or_recover(self, index: int) -> None:
        machine = self.machines[index % len(self.machines)]
        if machine.alive:
            machine.sick = not machine.sick
            machine.frail_since_ms = self.rig.now_ms
            self.send(machine)

    @rule(index=st.integers(0, 3))
    def die(self, index: int) -> None:
        self.machines[index % len(self.machines)].alive = False

    @rule(index=st.integers(0, 3))
    @precondition(lambda self: self.paused_since_ms is None)
    def come_back(self, index: int) -> None:
        machine = self.machines[index % len(self.machines)]
        if not machine.alive:
            self.come_up(machine)

    @rule()
    @precondition(lambda self: self.paused_since_ms is None)
    def pause(self) -> None:
        self.paused_since_ms = self.rig.now_ms

    @rule(lag_is_noticed_first=st.booleans())
    @precondition(lambda self: self.paused_since_ms is not None)
    def resume(self, lag_is_noticed_first: bool) -> None:
        assert self.paused_since_ms is not None
        lag_ms = self.rig.now_ms - self.paused_since_ms
        self.paused_since_ms = None
        if lag_is_noticed_first:
            self.rig.registry.lagged(lag_ms, self.rig.now_ms)
        for machine in self.machines:
            self.read(machine)
            self.settle(machine)
        if not lag_is_noticed_first:
            self.rig.registry.lagged(lag_ms, self.rig.now_ms)
        self.rig.tick()
        self.check_events()

    @rule()
    @precondition(lambda self: self.paused_since_ms is None)
    def restart_process(self) -> None:
        self.rig.restart()
        for machine in self.machines:
            machine.good_run = 0
            if machine.up_since_ms is not None:
                self.leave_up(machine)
                machine.up_since_ms = self.rig.now_ms
            if machine.alive:
                machine.agent.connect()
                machine.agent.hello()
                machine.told = None
                self.settle(machine)
                self.send(machine)

    # ------------------------------------------------------------- what must hold

    def check_events(self) -> None:
        machines = {machine.agent.id: machine for machine in self.machines}
        for topic, event in self.rig.events[self.seen_events :]:
            if event.service:
                self.check_service_event(machines[event.id], topic, event)
            else:
                self.check_event(machines[event.id], topic, event)
        self.seen_events = len(self.rig.events)

    def leave_up(self, machine: Machine) -> None:
        if machine.up_since_ms is not None:
            served_ms = self.rig.now_ms - machine.up_since_ms
            faded = served_ms // POLICY.black_list_expiry_ms
            machine.failures = max(0, machine.failures - faded)
        machine.up_since_ms = None

    def check_who_is_left(self, gone: Machine) -> None:
        """Silence alone has taken a node: enough others are routed to. (Several may go at once.)"""
        known = [each for each in self.machines if self.rig.knows(each.agent.id)]
        ever_up = [each for each in known if Topic.NODE_UP in self.rig.topics(each.agent.id)]
        takes = (NodeState.UP, NodeState.SUSPECT)
        left = sum(each.agent.state in takes for each in known if each is not gone)
        assert 100 * left >= self.least * len(ever_up)

    @property
    def together(self) -> bool:
        """Whether failures have been taken back in this history."""
        for _, event in self.rig.events[self.looked_at :]:
            self.taken_back |= "failed together" in event.reason
        self.looked_at = len(self.rig.events)
        return self.taken_back

    @property
    def most_banned(self) -> int:
        return max(1, len(self.machines) // 2)

    def check_event(self, machine: Machine, topic: Topic, event: NodeEvent) -> None:
        now_ms = self.rig.now_ms
        self.leave_up(machine)
        if topic is Topic.NODE_UP:
            machine.up_since_ms = now_ms
            assert now_ms >= machine.banned_until_ms
            assert now_ms - machine.sent_ms < TIMEOUT_MS, "a dead node was revived"
            if event.previous is NodeState.PROBATION:
                assert machine.good_run >= POLICY.checks_before_routing
        elif topic is Topic.NODE_DOWN:
            machine.good_run = 0
            if event.reason.startswith("not serving"):
                assert machine.last_read is NOT_SERVING
            elif event.previous is NodeState.UP:
                assert now_ms - machine.sent_ms >= TIMEOUT_MS, "a living node was taken down"
            heard = not event.reason.startswith("not heard")
            # What fell silent together with others has not failed; on its own word everybody has.
            own = event.reason.startswith("not serving")
            failed = event.previous is NodeState.UP and heard
            # Nor has what stopped serving together, and that may come out later.
            if not self.together:
                assert machine.failures <= event.fails + (0 if own else 1)
                assert not own or event.fails == machine.failures + failed
            assert event.fails <= machine.failures + failed
            machine.failures = event.fails
            if not own and event.previous is NodeState.UP:
                self.check_who_is_left(machine)
        elif topic is Topic.NODE_DRAINING:
            assert machine.last_read is SHUTTING_DOWN
        elif topic is Topic.NODE_BANNED:
            assert machine.failures >= POLICY.black_list_after_fails
            machine.banned_until_ms = now_ms + POLICY.black_list_expiry_ms
        elif topic is Topic.NODE_PARDONED:
            assert now_ms >= machine.banned_until_ms or event.reason.startswith("pardoned: ")
            machine.banned_until_ms = now_ms
            machine.failures = event.fails

    def check_service_event(self, machine: Machine, topic: Topic, event: NodeEvent) -> None:
        now_ms = self.rig.now_ms
        if topic is Topic.NODE_DOWN and not event.reason.startswith("not serving"):
            assert now_ms - machine.sent_ms >= TIMEOUT_MS
            assert machine.agent.state is NodeState.SUSPECT
            machine.spared |= event.service == "well"
            return
        if event.service == "well":
            assert topic is Topic.NODE_UP
            assert machine.spared
            machine.spared = False
            return
        if topic is Topic.NODE_UP:
            assert not machine.read_sick
            assert now_ms >= machine.frail_banned_until_ms
            # The node may be leaving: then its beats count for the service, and not for the node.
            leaves = machine.last_read is SHUTTING_DOWN
            assert leaves or machine.good_run >= POLICY.checks_before_routing
        elif topic is Topic.NODE_DOWN:
            assert machine.read_sick
            machine.frail_failures += event.previous is NodeState.UP
            assert event.fails <= machine.frail_failures
        elif topic is Topic.NODE_BANNED:
            assert event.fails >= POLICY.black_list_after_fails
            machine.frail_banned_until_ms = now_ms + POLICY.black_list_expiry_ms
        else:
            assert topic is Topic.NODE_PARDONED
            early = event.reason.startswith("pardoned: ")
            assert now_ms >= machine.frail_banned_until_ms or early
            machine.frail_banned_until_ms = min(machine.frail_banned_until_ms, now_ms)

    @invariant()
    def a_sick_service_is_out_and_the_other_one_is_as_the_node_is(self) -> None:
        for machine in self.machines:
            if not self.rig.knows(machine.agent.id):
                continue
            if not machine.spared:
                assert machine.agent.state_at("well") is machine.agent.state
            banned = self.rig.now_ms < machine.frail_banned_until_ms
            if machine.read_sick or banned:
                at_frail = machine.agent.state_at("frail")
                assert at_frail not in (NodeState.UP, NodeState.DRAINING)

    @invariant()
    def a_service_that_is_well_for_long_is_routed_to(self) -> None:
        if self.paused_since_ms is not None:
            return
        for machine in self.machines:
            since_ms = max(machine.frail_since_ms, machine.steady_since_ms)
            # A ban of a service ends with the first beat after it.
            since_ms = max(since_ms, machine.frail_banned_until_ms + TIMEOUT_MS // 2)
            since_ms = max(since_ms, machine.banned_until_ms)
            well = machine.alive and machine.status is SERVING and not machine.sick
            if well and self.rig.now_ms - since_ms >= 2 * SETTLED_MS:
                assert machine.agent.state_at("frail") is NodeState.UP

    @invariant()
    def bans_hold(self) -> None:
        for machine in self.machines:
            if self.rig.now_ms < machine.banned_until_ms:
                assert machine.agent.state is NodeState.BANNED
        banned = sum(self.rig.now_ms < machine.banned_until_ms for machine in self.machines)
        assert banned <= self.most_banned
        for machine in self.machines:
            # Who has failed often enough is banned, or was spared when it failed last.
            due = machine.failures > POLICY.black_list_after_fails
            assert not due or len(self.machines) > 1

    @invariant()
    def who_serves_steadily_is_up(self) -> None:
        if self.paused_since_ms is not None:
            return
        for machine in self.machines:
            steady_ms = self.rig.now_ms - machine.steady_since_ms
            good = machine.alive and machine.status is SERVING and steady_ms >= 2 * SETTLED_MS
            pardoned_ms = self.rig.now_ms - machine.banned_until_ms
            if good and pardoned_ms >= 2 * SETTLED_MS:
                assert machine.agent.state is NodeState.UP

    @invariant()
    def who_is_dead_is_not_up(self) -> None:
        """Dead and silent for two timeouts and every pause since: no hold lasts that long."""
        if self.paused_since_ms is not None:
            return
        for machine in self.machines:
            silent_ms = self.rig.now_ms - max(machine.sent_ms, machine.steady_since_ms)
            # One that never was UP is forgotten by then.
            known = self.rig.knows(machine.agent.id)
            if not machine.alive and silent_ms > 20 * TIMEOUT_MS and known:
                if self.least and machine.agent.state is NodeState.SUSPECT:
                    continue
                assert machine.agent.state in (NodeState.DOWN, NodeState.BANNED)
                assert self.rig.observe(machine.agent.id).silent

    @invariant()
    def who_beats_is_not_silent(self) -> None:
        for machine in self.machines:
            if not self.rig.knows(machine.agent.id):
                continue
            observed = self.rig.observe(machine.agent.id)
            assert not observed.silent or observed.state in (NodeState.DOWN, NodeState.BANNED)
            if self.paused_since_ms is None and self.rig.now_ms - machine.sent_ms < TIMEOUT_MS:
                assert not observed.silent


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, print_blob=True
)
# How long two hundred histories take says more of the machine than of the registry.
TestHistories.pytestmark = [pytest.mark.timeout(900)]  # type: ignore[attr-defined]
