"""From a seed to a scenario: its setup, its faults, and events drawn one by one. Pure.

Which faults occur at all is drawn first (`FAULTS`, each in two of five scenarios), then each event
by weight. Single events hardly ever line up to what takes five of them in order; so some draws are
plots, which are several events at once. What was drawn is kept as a list, which `World.play` plays
again without a generator.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.bpf.sequences.contract import CLIENTS, STRANGER, Layout
from tests.bpf.sequences.endpoint import CLIENT, NODE, Traits
from tests.bpf.sequences.segments import ACK, FIN, PSH, RST, SYN
from tests.bpf.sequences.world import ECHO, EDGE, FAR, LINKS, NEAR, WIDE, Event, Setup, World

FAULTS = (
    "lose",
    "copy",
    "swap",
    "late",
    "forge_client",
    "forge_node",
    "strangers",
    "crash",
    "abort",
    "refuse",
    "probe",
    "sleep",
    "ring",
    "second",
)
_CHANCE = 0.4
_SLEEPS_S = (3, 11, 30, 61, 241, 250, 3600, 7300, 7450)
_FORGED_FLAGS = (
    RST,
    RST,
    RST | ACK,
    SYN,
    SYN,
    SYN | ACK,
    FIN | ACK,
    FIN | ACK,
    ACK,
    ACK | PSH,
    ACK | PSH,
    FIN,
    0,
    SYN | FIN,
    SYN | RST,
    FIN | RST | ACK,
)
_OFFSETS = (-65536, -100, -61, -60, -2, -1, 0, 1, 2, 59, 60, 61, 100, 1000, 30000)

Draw = Callable[[], list[Event]]


def setup_of(seed: int) -> Setup:
    chance = random.Random(f"setup {seed}")
    layout = Layout(
        nodes=chance.choice((1, 1, 2, 3)),
        ports=chance.choice((1, 1, 1, 2, 4, 1000)),
        request_hook=chance.choice(("xdp_public", "xdp_public", "tc_public")),
        reply_hook=chance.choice(("tc_private", "tc_private", "xdp_reply")),
    )
    fast_open = chance.random() < 0.3
    return Setup(
        seed, layout, _traits(chance, fast_open), _traits(chance, fast_open), chance.random() < 0.6
    )


def _traits(chance: random.Random, fast_open: bool) -> Traits:
    window = chance.choice((200, 1000, 30000, 65535, 200_000, 1_000_000))
    scales = [scale for scale in (0, 4, 7, 12, 12) if window >> scale >= 100]
    return Traits(
        window=window,
        scale=chance.choice((None, *scales)),
        segment=chance.choice((20, 60, 1000)),
        delays_acks=chance.random() < 0.7,
        fast_open=fast_open and chance.random() < 0.8,
    )


class Generator:
    """Draws events for a world that plays them as they come."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = random.Random(f"events {world.setup.seed}")
        self.faults = [fault for fault in FAULTS if self._chance.random() < _CHANCE]
        self.steps = self._chance.choice((10, 25, 50, 80))
        clients = [0]
        clients += [1] if "second" in self.faults else []
        clients += list(range(STRANGER, len(CLIENTS))) if "strangers" in self.faults else []
        self._clients = clients
        self._weighted = self._choices()

    def begin(self) -> list[Event]:
        """A client's connection, mostly with a network that does no harm yet."""
        events: list[Event] = [("open", 0, self._chance.choice((0, 0, 30, 100)))]
        if self._chance.random() < 0.7:
            events.append(("settle",))
        return events

    def step(self) -> list[Event]:
        draws, weights = self._weighted
        return self._chance.choices(draws, weights)[0]()

    def end(self) -> list[Event]:
        """What must hold of any history."""
        draw = self._chance.random
        events: list[Event] = []
        if draw() < 0.5:
            events.append(("inspect",))
        if draw() < 0.6:
            events.append(("finish", self._side()))
        if draw() < 0.3:
            events.append(("sleep", self._chance.choice((2, 11, 40, 61, 241))))
        if draw() < 0.6:
            events.append(("return", 0))
            if draw() < 0.4:
                events.append(("return", 0))
        events.append((self._chance.choice(("silence", "silence", "guard")),))
        return events

    def afterwards(self) -> list[Event]:
        """A RST that may have ended a connection, and did not: so it lives on, however idle.

        Of the number that it takes the sender must have more under way than is acknowledged. This
        came later than all else, and is drawn apart: what else a seed draws stays as it was.
        """
        chance = random.Random(f"afterwards {self._world.setup.seed}")
        if not {"forge_client", "forge_node"} & set(self.faults) or chance.random() > 0.2:
            return []
        side = chance.choice((CLIENT, NODE))
        reset: Event = ("forge", side, 0, RST, NEAR, chance.randint(1, 19), NEAR, 0, 0)
        events: list[Event] = [("crash", CLIENT, 0), ("crash", NODE, 0), ("open", 0, 0)]
        events += [("settle",), ("send", side, 0, 20), ("pump", 1), reset, ("settle",)]
        if chance.random() < 0.8:
            events += [("send", side, 0, 10), ("settle",)]
        events.append(("sleep", chance.choice((250, 3600, 7300))))
        return [*events, ("inspect",), ("send", chance.choice((CLIENT, NODE)), 0, 40), ("settle",)]

    def _choices(self) -> tuple[list[Draw], list[float]]:
        pick, number = self._chance.choice, self._chance.randint
        singles: list[tuple[float, str, Callable[[], Event]]] = [
            (12, "", lambda: ("pump", number(1, 6))),
            (3, "", lambda: ("settle",)),
            (5, "", lambda: ("send", self._side(), self._client(), self._size())),
            (4, "", lambda: ("open", self._client(), pick((0, 0, 50)))),
            (1.5, "", lambda: ("close", self._side(), self._client())),
            (3, "", lambda: ("wait", pick((10, 50, 300, 1100, 2500)))),
            (2, "lose", lambda: ("lose", *self._queued())),
            (2, "copy", lambda: ("copy", *self._queued())),
            (2, "swap", lambda: ("swap", *self._queued())),
            (2, "late", lambda: ("hold", *self._queued())),
            (1.5, "late", lambda: ("release", number(0, 2))),
            (6, "forge_client", lambda: self._forgery(CLIENT)),
            (5, "forge_node", lambda: self._forgery(NODE)),
            (1, "crash", lambda: ("crash", self._side(), self._client())),
            (1, "abort", lambda: ("abort", self._side(), self._client())),
            (0.7, "refuse", lambda: ("refuse", number(0, 1))),
            (2, "probe", lambda: ("probe", self._side(), self._client())),
            (1.5, "sleep", lambda: ("sleep", pick(_SLEEPS_S))),
            (0.7, "ring", lambda: ("ring", number(0, 2))),
        ]
        plots: list[tuple[float, str, Draw]] = [
            (1, "forge_client", lambda: self._forged_then_idle(CLIENT)),
            (1, "forge_node", lambda: self._forged_then_idle(NODE)),
            (1, "forge_client", lambda: self._forged_then_ended(CLIENT)),
            (1, "forge_node", lambda: self._forged_then_ended(NODE)),
            (0.7, "forge_client", lambda: self._forged_wide(CLIENT)),
            (0.7, "forge_node", lambda: self._forged_wide(NODE)),
            (0.5, "forge_client", self._forged_opening),
            (0.7, "", self._closed_unheard),
            (0.7, "", self._sent_then_closed),
            (1, "", self._closed_then_opened),
            (0.7, "crash", self._lost_then_opened),
            (0.5, "lose", self._first_ack_lost),
        ]
        table = [*((w, f, self._alone(draw)) for w, f, draw in singles), *plots]
        chosen = [(draw, weight) for weight, fault, draw in table if fault in ("", *self.faults)]
        return [draw for draw, _ in chosen], [weight for _, weight in chosen]

    def _alone(self, draw: Callable[[], Event]) -> Draw:
        return lambda: [draw()]

    # ------------------------------------------------------------------- plots

    def _forged_then_idle(self, side: int) -> list[Event]:
        """What is forged in the name of that side must not shorten an idle connection's life."""
        forged = [self._forgery(side) for _ in range(self._chance.randint(1, 3))]
        events: list[Event] = [("open", 0, 0), ("settle",), *forged]
        if self._chance.random() < 0.5:
            events += [("send", side, 0, 10), ("settle",)]
        events.append(("sleep", self._chance.choice((11, 61, 220, 241, 3600, 7300))))
        return [*events, ("inspect",), ("send", self._side(), 0, 40), ("settle",)]

    def _forged_then_ended(self, side: int) -> list[Event]:
        """Nor must it hinder the connection's end from being seen."""
        forged = [self._forgery(side) for _ in range(self._chance.randint(1, 3))]
        events: list[Event] = [("open", 0, 0), ("settle",), *forged]
        if self._chance.random() < 0.6:
            events += [("abort", self._side(), 0), ("pump", 4), ("sleep", 16)]
        else:
            first = self._side()
            events += [("close", first, 0), ("settle",), ("close", 1 - first, 0), ("settle",)]
            events.append(("sleep", self._chance.choice((40, 66))))
        return [*events, ("inspect",)]

    def _forged_wide(self, side: int) -> list[Event]:
        """Both numbers lie within a window that is much wider than any that was offered."""
        seq, ack = (1 << self._chance.randint(22, 27) for _ in range(2))
        forged: Event = ("forge", side, 0, FIN | ACK, WIDE, seq, WIDE, -ack, 0)
        events: list[Event] = [("crash", CLIENT, 0), ("crash", NODE, 0), ("open", 0, 0)]
        return [*events, ("settle",), forged, ("sleep", 250), ("inspect",)]

    def _sent_then_closed(self) -> list[Event]:
        """More than an unscaled window may be under way."""
        first = self._side()
        events: list[Event] = [("open", 0, 0), ("settle",), ("send", self._side(), 0, 4000)]
        events += [("settle",), ("close", first, 0), ("settle",), ("close", 1 - first, 0)]
        return [*events, ("settle",), ("sleep", 66), ("inspect",)]

    def _closed_unheard(self) -> list[Event]:
        """Two FINs, of which one at least is not acknowledged: both ends may send them again."""
        first = self._side()
        events: list[Event] = [("open", 0, 0), ("settle",), ("close", first, 0)]
        if self._chance.random() < 0.5:
            events.append(("settle",))
        events += [("close", 1 - first, 0), ("pump", 2)]
        return [*events, ("sleep", self._chance.choice((70, 200))), ("inspect",)]

    def _forged_opening(self) -> list[Event]:
        """A SYN and an acknowledgement of what its sender has never seen."""
        client, guess = self._chance.choice((0, 1, 1)), self._chance.getrandbits
        syn: Event = ("forge", CLIENT, client, SYN, FAR, guess(32), FAR, 0, 0)
        ack: Event = ("forge", CLIENT, client, ACK, FAR, guess(32), FAR, guess(32), 0)
        return [syn, ("pump", self._chance.randint(0, 4)), ack, ("sleep", 250), ("inspect",)]

    def _closed_then_opened(self) -> list[Event]:
        """The same client is back while its port rests, or after."""
        first = self._side()
        between = self._chance.choice((0, 1, 30, 50, 70))
        events: list[Event] = [("close", first, 0), ("settle",), ("close", 1 - first, 0)]
        return [*events, ("settle",), ("sleep", between), ("open", 0, 20), ("settle",)]

    def _lost_then_opened(self) -> list[Event]:
        """The client knows nothing of the connection that its node still has."""
        between = self._chance.choice((0, 3, 61, 3600))
        return [("crash", CLIENT, 0), ("sleep", between), ("open", 0, 0), ("settle",)]

    def _first_ack_lost(self) -> list[Event]:
        """With Fast Open the node may speak before it: the next one acknowledges more."""
        events: list[Event] = [("crash", CLIENT, 0), ("crash", NODE, 0), ("open", 0, 40)]
        events += [("pump", 2), ("send", NODE, 0, 50), ("pump", self._chance.randint(2, 3))]
        return [*events, ("lose", "up", 0), ("pump", 4)]

    # ------------------------------------------------------------------- parts of events

    def _size(self) -> int:
        return self._chance.choice((1, 20, 61, 150, 150, 4000))

    def _side(self) -> int:
        return self._chance.choice((CLIENT, NODE))

    def _client(self) -> int:
        return self._chance.choice(self._clients) if self._chance.random() < 0.5 else 0

    def _queued(self) -> tuple[str, int]:
        filled = [link for link in LINKS if self._world.links[link]]
        link = self._chance.choice(filled or LINKS)
        return link, self._chance.randrange(max(1, len(self._world.links[link])))

    def _forgery(self, side: int) -> Event:
        client = self._chance.choice((0, 0, 0, 1)) if "second" in self.faults else 0
        flags = self._chance.choice(_FORGED_FLAGS)
        size = self._chance.choice((0, 0, 1, 50)) if flags & (PSH | FIN | SYN) else 0
        return ("forge", side, client, flags, *self._number(), *self._number(), size)

    def _number(self) -> tuple[int, int]:
        how = self._chance.choice((FAR, WIDE, WIDE, NEAR, EDGE, ECHO))
        if how == FAR:
            return how, self._chance.getrandbits(32)
        if how == WIDE:
            return how, self._chance.choice((-1, 1)) << self._chance.randint(22, 30)
        return how, self._chance.choice(_OFFSETS)
