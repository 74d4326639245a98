"""One seed: played, and if it fails, made short and written down.

A failure is believed when the same events fail twice more. (Time that really passed ages the flow
table too: where the machine stood still for seconds, that may be the reason.)

`shortened` leaves out events as long as the scenario still breaks the same promise: first halves,
then quarters, at last each alone (ddmin of Zeller and Hildebrandt, 2002).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bpf.sequences.contract import Balancer
from tests.bpf.sequences.generator import Generator, setup_of
from tests.bpf.sequences.judge import ViolationError
from tests.bpf.sequences.world import Event, Setup, World


@dataclass(frozen=True, slots=True)
class Failure:
    seed: int
    kind: str
    text: str
    events: tuple[Event, ...]

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.text}"


@dataclass(frozen=True, slots=True)
class Played:
    packets: int
    failure: Failure | None


def play_seed(seed: int, balancer: Balancer, overlooked: frozenset[str] = frozenset()) -> Played:
    """Draw and play a scenario."""
    setup = setup_of(seed)
    world = World(setup, balancer, overlooked)
    generator = Generator(world)
    events: list[Event] = []
    try:
        for event in generator.begin():
            events.append(event)
            world.play(event)
        draws = [*[generator.step] * generator.steps, generator.end, generator.afterwards]
        for draw in draws:
            for event in draw():
                events.append(event)
                world.play(event)
    except ViolationError:
        twice = [replay(setup, events, balancer, overlooked) for _ in range(2)]
        again = twice[1]
        if again is not None and twice[0] is not None:
            failure = Failure(seed, again.kind, str(again), tuple(events))
            return Played(world.packets, failure)
    return Played(world.packets, None)


def replay(
    setup: Setup,
    events: Sequence[Event],
    balancer: Balancer,
    overlooked: frozenset[str] = frozenset(),
    tell: list[str] | None = None,
) -> ViolationError | None:
    world = World(setup, balancer, overlooked, tell.append if tell is not None else None)
    try:
        for event in events:
            world.play(event)
    except ViolationError as violation:
        return violation
    return None


def shortened(
    failure: Failure, balancer: Balancer, overlooked: frozenset[str] = frozenset()
) -> Failure:
    """The same failure with as few events as it takes."""
    setup = setup_of(failure.seed)
    events, parts = failure.events, 2
    while len(events) >= 2:
        size = max(1, len(events) // parts)
        for start in range(0, len(events), size):
            fewer = events[:start] + events[start + size :]
            seen = replay(setup, fewer, balancer, overlooked)
            if seen is not None and seen.kind == failure.kind:
                events, parts = fewer, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(events))
    seen = replay(setup, events, balancer, overlooked)
    return Failure(failure.seed, failure.kind, str(seen or failure.text), events)


def transcript(
    failure: Failure, balancer: Balancer, overlooked: frozenset[str] = frozenset()
) -> str:
    """What happened, packet by packet."""
    setup = setup_of(failure.seed)
    lines: list[str] = []
    seen = replay(setup, failure.events, balancer, overlooked, lines)
    head = [f"seed {failure.seed}", f"{setup.layout}", f"client {setup.client}"]
    head += [f"node   {setup.node}", ""]
    return "\n".join([*head, *lines, "", f"{'':11}✗ {seen or failure.text}"])
