"""When a beat was sent, by a clock that nobody has set."""

from __future__ import annotations

from bus.words import NodeState
from services.health.clock_offset import WINDOW_MS, ClockOffset
from tests.health.rig import INTERVAL_MS, Agent, Rig

UP = NodeState.UP


def test_the_offset_follows_clocks_that_drift_apart() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for beat in range(4 * 3600 * 2):  # four hours of a clock that is slow by 500 ppm: 7.2 s
        rig.now_ms += INTERVAL_MS
        if beat % 8 == 0:
            agent.clock_offset_ms -= 2
        agent.beat()
        rig.tick()
        assert rig.observe(agent.id).observed_ms <= 70
    assert agent.state is UP


def test_a_pause_across_windows_of_the_offset_forgets_nothing() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    queued = agent.make_beat()
    rig.now_ms += 200_000
    agent.deliver(queued)
    assert rig.observe(agent.id).observed_ms == 200_000
    rig.now_ms += 10
    agent.beat()
    assert rig.observe(agent.id).observed_ms == 0


def test_a_beat_counts_from_when_it_was_sent_as_the_quickest_one_tells() -> None:
    clock = ClockOffset("boot")
    assert clock.sent_on_our_clock(500, 1_030) == 1_030, "nothing better is known"
    assert clock.sent_on_our_clock(600, 1_110) == 1_110
    assert clock.sent_on_our_clock(700, 1_290) == 1_210, "it took 80 ms longer than the quickest"


def test_the_quickest_beat_is_forgotten_after_two_windows_and_not_before() -> None:
    clock = ClockOffset("boot")
    clock.sent_on_our_clock(0, 1_000)
    now_ms = 1_000 + WINDOW_MS
    assert clock.sent_on_our_clock(WINDOW_MS, now_ms + 50) == now_ms
    now_ms += WINDOW_MS
    assert clock.sent_on_our_clock(2 * WINDOW_MS, now_ms + 50) == now_ms + 50
