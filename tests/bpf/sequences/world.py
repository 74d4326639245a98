"""Hosts, the network between them and the load balancer, a forger, and their virtual time. Pure.

    clients ──up──► LB ──out──► nodes
            ◄─down─     ◄─back──

Each of the four links is a queue; nothing moves unless an event says so, and in which order, what
is lost, doubled or late is an event too (`World.play`). A segment older than `LATEST_S` is lost:
the longest life of a segment, which is shorter than any rest of a port.

A client has one connection at a time; a node has one for each source it hears from, and without one
it listens: a SYN begins one, everything else is answered with RST. A node's connection in TIME_WAIT
takes a SYN with newer numbers (RFC 9293, 3.10.7.4), an older one gets a challenge ACK.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.bpf.sequences.contract import (
    CLIENTS,
    NODES,
    SERVICE,
    SNAT,
    STRANGER,
    Balancer,
    Layout,
    Verdict,
)
from tests.bpf.sequences.endpoint import CLIENT, NODE, Endpoint, State, Traits, content
from tests.bpf.sequences.judge import (
    FORGED,
    NOBODY,
    Judge,
    Packet,
    Phase,
    Place,
    ViolationError,
    describe,
    reset_for,
)
from tests.bpf.sequences.segments import (
    ACK,
    FIN,
    RST,
    SPACE,
    SYN,
    Segment,
    ahead,
    frame,
)

Event = tuple[str | int, ...]
"""A method of `World` and its arguments."""
LINKS = ("up", "out", "back", "down")
LATEST_S = 7.0
FAR, WIDE, NEAR, EDGE, ECHO = range(5)
"""How a forger comes by a number: at random, as far from the right one as he says, near it, near
the end of the window, or the last acknowledgement that he has forged for the other side."""
_BLIND = (FAR, WIDE, ECHO)
FAR_AWAY = 1 << 21
"""Beyond any window here."""
_BEGINNING_S = 10_000.0
_NOTICED_S = 1.0
"""The table is aged in steps of at least this."""
_TURNS = 20_000
"""Of a network that heals: far more than all it takes."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What holds for a whole scenario."""

    seed: int
    layout: Layout
    client: Traits
    node: Traits
    numbers_by_clock: bool
    """First sequence numbers rise with time (RFC 6528), or else are anything."""


class World:
    def __init__(
        self,
        setup: Setup,
        balancer: Balancer,
        overlooked: frozenset[str] = frozenset(),
        tell: Callable[[str], None] | None = None,
        judge: type[Judge] = Judge,
    ) -> None:
        self.setup = setup
        self.now = _BEGINNING_S
        self.balancer = balancer
        self.judge = judge(setup.layout.ports, self, overlooked)
        self.clients: list[Endpoint | None] = [None] * len(CLIENTS)
        self.nodes: dict[Place, Endpoint] = {}
        self.links: dict[str, list[tuple[int, Packet]]] = {link: [] for link in LINKS}
        self.held: list[tuple[str, Packet]] = []
        self.refuses = False
        """The nodes' server is not there: a SYN is answered with RST."""
        self.packets = 0
        """Through the load balancer."""
        self._tell = tell
        self._made = self._queued = 0
        self._aged = self.now
        self._forged_ack = {CLIENT: 0, NODE: 0}
        self._must: list[tuple[int, Endpoint, Endpoint | None]] = []
        balancer.begin(setup.layout)

    def play(self, event: Event) -> None:
        """Have an event occur; where it does not apply, nothing happens."""
        if self._tell:
            self._tell(f"{self.now - _BEGINNING_S:9.2f}  {event}")
        name, *arguments = event
        getattr(self, f"on_{name}")(*arguments)

    # ------------------------------------------------------------------- what the oracle may ask

    def client_end(self, client: int) -> Endpoint | None:
        return _living(self.clients[client])

    def node_end(self, place: Place) -> Endpoint | None:
        return _living(self.nodes.get(place))

    def paired(self, client: int) -> Endpoint | None:
        """The node's end of the client's connection, if both have agreed on it."""
        end, place = self.client_end(client), self.judge.tracks[client].place
        other = self.node_end(place) if place else None
        if end is None or other is None or not end.is_synchronised:
            return None
        return other if other.serial == end.serial and end.irs == other.iss else None

    def ends(self) -> Iterator[tuple[Endpoint, int | Place]]:
        """All ends of connections, with whose they are."""
        for client, end in enumerate(self.clients):
            if end is not None:
                yield end, client
        for place, end in list(self.nodes.items()):
            yield end, place

    # ------------------------------------------------------------------- events: applications

    def on_open(self, client: int, size: int) -> None:
        """Connect, unless connected; TIME_WAIT is left for it."""
        end = self.client_end(client)
        if end is None or end.state is State.TIME_WAIT:
            end = self._endpoint(CLIENT, self._made + 1)
            self.clients[client] = end
            end.connect(size, self.now)
            self._collect(end, client)

    def on_send(self, side: int, client: int, size: int) -> None:
        self._use(side, client, lambda end: end.send(size, self.now))

    def on_close(self, side: int, client: int) -> None:
        self._use(side, client, lambda end: end.close(self.now))

    def on_abort(self, side: int, client: int) -> None:
        self._use(side, client, lambda end: end.abort())

    def on_probe(self, side: int, client: int) -> None:
        self._use(side, client, lambda end: end.probe())

    def on_crash(self, side: int, client: int) -> None:
        """That end forgets the connection without a word."""
        place = self.judge.tracks[client].place
        if side == CLIENT:
            self.clients[client] = None
        elif place:
            self.nodes.pop(place, None)

    def on_refuse(self, whether: int) -> None:
        self.refuses = bool(whether)

    def on_ring(self, first: int) -> None:
        self.balancer.ring(first)

    def _use(self, side: int, client: int, act: Callable[[Endpoint], None]) -> None:
        place = self.judge.tracks[client].place
        owner: int | Place | None = client if side == CLIENT else place
        end = self.client_end(client) if side == CLIENT else place and self.node_end(place)
        if end and owner is not None:
            act(end)
            self._collect(end, owner)

    def _endpoint(self, side: int, serial: int, above: int | None = None) -> Endpoint:
        self._made += 1
        chance = random.Random(f"{self.setup.seed} {self._made}")
        wraps = self._made <= 2 and chance.random() < 0.4
        iss = chance.randrange(SPACE - 400, SPACE) if wraps else chance.getrandbits(32)
        if self.setup.numbers_by_clock and side == CLIENT:
            iss = (random.Random(self.setup.seed).getrandbits(32) + int(self.now * 250_000)) % SPACE
            iss = (iss + 997 * self._made) % SPACE
        if above is not None:
            iss = (above + 65537 + chance.randrange(1000)) % SPACE
        traits = self.setup.client if side == CLIENT else self.setup.node
        return Endpoint(serial, self._made, side, iss, traits)

    # ------------------------------------------------------------------- events: time and network

    def on_wait(self, ms: int) -> None:
        self._advance(self.now + ms / 1000)

    def on_sleep(self, seconds: int) -> None:
        self._advance(self.now + seconds)

    def on_pump(self, count: int) -> None:
        """Let that many packets arrive, the oldest first."""
        for _ in range(count):
            heads = [(queue[0][0], link) for link, queue in self.links.items() if queue]
            if not heads:
                return
            self._deliver(min(heads)[1])

    def on_lose(self, link: str, index: int) -> None:
        if index < len(self.links[link]):
            del self.links[link][index]

    def on_copy(self, link: str, index: int) -> None:
        if index < len(self.links[link]):
            self._queue(link, self.links[link][index][1])

    def on_swap(self, link: str, index: int) -> None:
        """Others overtake it."""
        if index < len(self.links[link]):
            self._queue(link, self.links[link].pop(index)[1])

    def on_hold(self, link: str, index: int) -> None:
        """It is late, until it is released."""
        if index < len(self.links[link]):
            self.held.append((link, self.links[link].pop(index)[1]))

    def on_release(self, index: int) -> None:
        if index < len(self.held):
            self._queue(*self.held.pop(index))

    def on_settle(self) -> None:
        """All that is under way arrives, and what it provokes, until nothing more is due soon."""
        for _ in range(100):
            self._drain()
            soon = [due for end, _ in self.ends() if not end.is_idle and (due := end.due)]
            if not soon or min(soon) > self.now + 2.5:
                return
            self._advance(min(soon))

    def _drain(self) -> None:
        for _ in range(_TURNS):
            if not any(self.links.values()):
                return
            self.on_pump(1)
        raise ViolationError("no end", f"{_TURNS} packets and still more")

    def _advance(self, until: float) -> None:
        while True:
            due = [
                (moment, end.number, end, owner)
                for end, owner in self.ends()
                if (moment := end.due) is not None and moment <= until
            ]
            if not due:
                break
            moment, _, end, owner = min(due, key=lambda entry: entry[:2])
            self.now = max(self.now, moment)
            end.tick(self.now)
            self._collect(end, owner)
        self.now = until

    def _queue(self, link: str, packet: Packet) -> None:
        self._queued += 1
        self.links[link].append((self._queued, packet))

    def _collect(self, end: Endpoint, owner: int | Place) -> None:
        """Onto the link with all that it has to say."""
        out, end.out = end.out, []
        for segment in out:
            packet = Packet(segment, end.side, 0, end.serial, end.number, self.now, end.irs)
            if isinstance(owner, int):
                self._queue("up", replace(packet, client=owner))
            else:
                self._queue("back", replace(packet, place=owner))

    # ------------------------------------------------------------------- a packet arrives

    def _deliver(self, link: str) -> None:
        _, packet = self.links[link].pop(0)
        if packet.born < self.now - LATEST_S:
            return
        arrive = {"up": self._at_balancer, "back": self._at_balancer_again}
        arrive |= {"out": self._at_node, "down": self._at_client}
        arrive[link](packet)

    def _at_balancer(self, packet: Packet) -> None:
        self._age()
        sent = frame(CLIENTS[packet.client], SERVICE, packet.segment)
        outcome = self.balancer.request(sent)
        verdict, seen = self.judge.request(packet, sent, outcome)
        self._say("client", packet, verdict, seen, outcome.reason)
        if verdict is Verdict.FORWARDED:
            self._queue("out", seen)
        elif verdict is Verdict.ANSWERED:
            self._queue("down", seen)

    def _at_balancer_again(self, packet: Packet) -> None:
        self._age()
        node, port = packet.place
        sent = frame(NODES[node], (SNAT, port), packet.segment)
        outcome = self.balancer.reply(sent)
        verdict, seen = self.judge.reply(packet, sent, outcome)
        self._say("node", packet, verdict, seen, outcome.reason)
        if verdict is Verdict.FORWARDED:
            self._queue("down", seen)
        elif verdict is Verdict.ANSWERED:
            self._queue("out", seen)

    def _at_client(self, packet: Packet) -> None:
        end = self.client_end(packet.client)
        if end is None:
            answer = reset_for(packet.segment)
            if answer:
                reset = Packet(answer, CLIENT, packet.client, NOBODY, 0, self.now)
                self._queue("up", reset)
            return
        end.arrive(packet.segment, self.now)
        self._collect(end, packet.client)

    def _at_node(self, packet: Packet) -> None:
        end, segment, place = self.node_end(packet.place), packet.segment, packet.place
        above = None
        is_syn = segment.flags & (SYN | ACK | RST | FIN) == SYN
        if end and end.state is State.TIME_WAIT and is_syn and ahead(segment.seq, end.rcv_nxt) > 0:
            above, end = end.nxt, None
        if end is None and is_syn and not self.refuses:
            serial = packet.serial if packet.serial >= 0 else -(100 + self._made)
            end = self._endpoint(NODE, serial, above)
            self.nodes[place] = end
            end.accept(segment, self.now)
        elif end is None:
            answer = None if segment.flags & SYN and not is_syn else reset_for(segment)
            if answer:
                reset = Packet(answer, NODE, packet.client, NOBODY, 0, self.now, place=place)
                self._queue("back", reset)
            return
        else:
            end.arrive(segment, self.now)
        self._collect(end, place)

    def _age(self) -> None:
        if self.now - self._aged >= _NOTICED_S:
            self.balancer.age(self.now - self._aged)
            self._aged = self.now
        self.packets += 1

    def _say(
        self, sender: str, packet: Packet, verdict: Verdict, seen: Packet, reason: str
    ) -> None:
        if self._tell:
            who = {FORGED: "forged", NOBODY: "no connection"}.get(packet.serial)
            became = f"{verdict.value} {reason}"
            if verdict is Verdict.FORWARDED:
                track = self.judge.tracks[seen.client]
                became += f" ({seen.place}; {describe(track, self.now)})"
            tuple_ = f"client {packet.client}" if sender == "client" else f"node at {packet.place}"
            self._tell(
                f"{'':11}{tuple_}, {who or f'connection {packet.serial}'}: "
                f"{packet.segment} → {became}"
            )

    # ------------------------------------------------------------------- events: the forger

    def on_forge(
        self,
        side: int,
        client: int,
        flags: int,
        seq_way: int,
        seq_number: int,
        ack_way: int,
        ack_number: int,
        size: int,
    ) -> None:
        """A segment in the name of that side. Of `seq` and `ack`: how the number is come by, and
        what is added to it. What a receiver could take for genuine is not sent: no luck at
        guessing.
        """
        place = self.judge.tracks[client].place
        is_open = self.judge.tracks[client].kept > Phase.OPENING and self.paired(client)
        if side == NODE and not is_open:
            return
        near = self.client_end(client)
        far: Endpoint | None = self.node_end(place) if place else None
        sender, receiver = (near, far) if side == CLIENT else (far, near)
        right_seq, right_ack = (receiver.rcv_nxt, receiver.nxt) if receiver else (0, 0)
        segment = Segment(
            self._guess(seq_way, seq_number, right_seq, receiver, side),
            self._guess(ack_way, ack_number, right_ack, receiver, side),
            flags,
            1000,
            content(1, 2, 0, size),
        )
        known = [sender.nxt, sender.una] if sender else []
        known.append(self.judge.tracks[client].acked[1 - side] or 0)
        if receiver and not _is_fair(segment, seq_way, ack_way, receiver, known):
            return
        if side == NODE and flags & SYN and self.judge.may_answer_syn(client, segment):
            return
        if flags & ACK:
            self._forged_ack[side] = segment.ack
        packet = Packet(segment, side, client, FORGED, 0, self.now)
        if side == CLIENT:
            self._at_balancer(packet)
        elif place:
            self._at_balancer_again(replace(packet, place=place))

    def _guess(
        self, way: int, number: int, right: int, receiver: Endpoint | None, side: int
    ) -> int:
        if way == FAR:
            return number
        if way == ECHO:
            return self._forged_ack[1 - side]
        if way == EDGE and receiver:
            return (right + receiver.window + number) % SPACE
        return (right + number) % SPACE

    # ------------------------------------------------------------------- events: how it ends

    def on_inspect(self) -> None:
        """The table holds what it must and may."""
        self._age_exactly()
        self.judge.check_table(self.balancer)

    def on_finish(self, first: int) -> None:
        """The network heals, and all applications come to their ends; `first`: who closes first."""
        self._heal()
        for client in range(len(self.clients)):
            self._must_finish(client)
        for side in (first, 1 - first):
            for end, _ in self.ends():
                if end.side == side and end.state is not State.CLOSED:
                    end.send(70, self.now)
            self._run_out()
            for end, owner in self.ends():
                if end.side == side and end.state is not State.CLOSED:
                    end.close(self.now)
                    self._collect(end, owner)
            self._run_out()
        self._check_finished()

    def on_return(self, client: int) -> None:
        """The client connects from the same port, and nothing is lost: that must work."""
        self._heal()
        if self.judge.may_lack_ports(client):
            others = [t.gone_by for i, t in enumerate(self.judge.tracks) if i != client]
            self._forget_strangers(client)
            self._advance(max(self.now, *others) + 1)
            self._age_exactly()
        end = self.client_end(client)
        if end is not None and end.state is not State.TIME_WAIT:
            self.clients[client] = None
        self.on_open(client, 100)
        end = self.clients[client]
        assert end is not None
        self._must.append((client, end, None))
        self._run_out()
        for side, size in ((NODE, 150), (CLIENT, 30)):
            self.on_send(side, client, size)
            self._run_out()
            self.on_close(side, client)
        self._run_out()
        self._check_finished()

    def on_silence(self) -> None:
        """Nobody says a word any more: all flows must end in time, and a stranger be served."""
        self._forget_all()
        for deadline in sorted(track.gone_by for track in self.judge.tracks):
            self.now = max(self.now, deadline + 1)
            self._age_exactly()
            self.judge.check_table(self.balancer)
        live = self.balancer.live_flows()
        if live:
            raise ViolationError("outlived its deadline", ", ".join(str(flow) for flow in live))
        self.on_open(STRANGER, 0)
        self.on_pump(1)

    def on_guard(self) -> None:
        """Nobody says a word, and shortly before a port may be another's, a stranger wants it."""
        self._forget_all()
        until = max(track.kept_until for track in self.judge.tracks[:STRANGER])
        self.now = max(self.now, until - 0.5)
        self._age_exactly()
        self.judge.check_table(self.balancer)
        self.on_open(STRANGER + 1, 0)
        self.on_pump(1)

    def _heal(self) -> None:
        """Nothing is late or lost from now on; but what those have said who are no more, is."""
        self.refuses = False
        self.held.clear()
        living = {end.number for end, _ in self.ends() if end.state is not State.CLOSED}
        for link, queue in self.links.items():
            self.links[link] = [entry for entry in queue if entry[1].number in living]
        for end, _ in self.ends():
            end.encourage(self.now)

    def _forget_all(self) -> None:
        self.clients = [None] * len(CLIENTS)
        self.nodes.clear()
        self.held.clear()
        for queue in self.links.values():
            queue.clear()

    def _forget_strangers(self, but: int) -> None:
        """All clients but one, and all that is under way, are gone."""
        kept = self.clients[but]
        place = self.judge.tracks[but].place
        node = self.nodes.get(place) if place else None
        self._forget_all()
        self.clients[but] = kept
        if place and node:
            self.nodes[place] = node

    def _must_finish(self, client: int) -> None:
        """Note a connection that has no reason to fail from now on."""
        end, track, other = self.client_end(client), self.judge.tracks[client], self.paired(client)
        if end is None or track.has_lapsed or self.now >= track.kept_until:
            return
        both_talk = other is not None and not (end.closing and other.closing)
        if both_talk or (end.state is State.SYN_SENT and not end.closing):
            self._must.append((client, end, other))

    def _check_finished(self) -> None:
        must, self._must = self._must, []
        for client, end, other in must:
            track = self.judge.tracks[client]
            if other is None:
                other = self._other_end(end)
            if track.has_lapsed or track.gave_way:
                continue
            if other is None:
                raise ViolationError("not finished", f"client {client} never reached a node")
            for one, two in ((end, other), (other, end)):
                wanted = content(one.serial, one.side, 0, one.wanted)
                if one.was_reset or bytes(two.received) != wanted:
                    raise ViolationError(
                        "not finished",
                        f"client {client}: {one.state.name} has sent {one.wanted} bytes, "
                        f"{two.state.name} has {len(two.received)}; {describe(track, self.now)}",
                    )

    def _other_end(self, end: Endpoint) -> Endpoint | None:
        for other in self.nodes.values():
            if other.serial == end.serial and other.iss == end.irs:
                return other
        return None

    def _run_out(self) -> None:
        """Until nothing is under way or owed."""
        for end, owner in self.ends():
            self._collect(end, owner)
        for _ in range(_TURNS):
            self._drain()
            due = [due for end, _ in self.ends() if not end.is_idle and (due := end.due)]
            if not due:
                return
            self._advance(min(due))
        raise ViolationError("no end", f"{_TURNS} turns and still something to do")

    def _age_exactly(self) -> None:
        self.balancer.age(self.now - self._aged)
        self._aged = self.now


def _living(end: Endpoint | None) -> Endpoint | None:
    return None if end is None or end.state is State.CLOSED else end


def _is_fair(
    segment: Segment, seq_way: int, ack_way: int, receiver: Endpoint, known: list[int]
) -> bool:
    """Whether one may know as little as a forger and still send this. `known`: more numbers that
    only those on the way can know.
    """
    known = [receiver.rcv_nxt, *known]
    if seq_way in _BLIND and any(_is_near(segment.seq, number) for number in known):
        return False
    if segment.flags & RST:
        return segment.seq not in known
    if not segment.flags & ACK or segment.flags & (SYN | ACK) == SYN:
        return True
    if ack_way in _BLIND or segment.flags & SYN:
        return not _is_near(segment.ack, receiver.nxt)
    return seq_way in _BLIND and receiver.is_synchronised


def _is_near(number: int, other: int) -> bool:
    return abs(ahead(number, other)) <= FAR_AWAY
