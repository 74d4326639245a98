"""The quorum process: the shell around `core`, and how this LB agrees with the others.

In: what other LBs say (`peers`), `state.view.` of health, the commands of `_command`,
SIGHUP, SIGTERM, the clock. Out: messages to other LBs, `state.table.` and `state.quorum.` on every
change and every 500 ms (the latter before half of the lease it tells of is over, so that a reader
who subtracts its age finds one left), the events `quorum.*`, `vip.*`, `table.committed.`,
`order.given.` and `process.started.`, and the state file.

**One turn of the loop:** read what has come, from peers first; look at the clock; then do what the
core says, in its order: persist, publish, claim, send. The file is written in a thread (`storage`),
so beats, and answers that promise nothing new, never wait for a disk; what depends on the file is
given out by the core when it is written.

An order is answered when the table that has it is committed. Its sender may repeat it, by the same
id, to this process or to the one after it: the table knows the ids of its orders.

It starts by taking the publisher's lock (a second copy waits there), and only then reads the state
file, since the copy before may have written it until its last moment. A quorum of one publishes a
stored table at once. Killed at any point, it loses nothing that it published; while it is gone, the
dataplane goes on forwarding by the last table, and masks by health's view what dies meanwhile. Told
to end, it first gives up what it holds, so that another LB need not wait for its silence.

**Several LBs.** The agreed table says who they are (`membership`), and the list of the file until
there is one. Both may write an LB otherwise: entries of one address are one, by the table's. Until
this machine's own entry is found (an interface may come later, a name be resolved later) the core
stands in nobody's way: it counts all entries as others, reaches none of them, and says what it
waits for.

An unreadable state directory or a full disk belongs to the machine, not to the file: said once in
the log and in `waiting_for`, tried again every second. So is a disk that has not answered for a
second, which is waited for.
"""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from bus import keys, topics
from bus.codec import Envelope, MalformedMessage, from_json, to_json
from bus.commands import CommandError, Later
from bus.events import QuorumEvent
from bus.keys import KeyDirectory
from bus.orders import LONGEST_TEXT, Asked
from bus.socket import monotonic_ms
from bus.states import (
    Applicant,
    DataplaneState,
    LocalView,
    NodeTable,
    QuorumState,
)
from bus.topics import Topic
from bus.words import ENTRY, MemberChange, Role
from conf import LbConfig, Paths, load_lb
from services import process
from services.machine import boot_id, own_address
from services.process import Bus, Loop
from services.quorum import realtime
from services.quorum.carrier import carriers
from services.quorum.claims import Claims, Told
from services.quorum.core import Quorum, Ready
from services.quorum.core_config import core_config, host_of, listed_in
from services.quorum.eligibility import Eligibility
from services.quorum.health_numbers import node_health
from services.quorum.holding import Circumstances, Holding
from services.quorum.peers import Peers
from services.quorum.storage import NewerFormatError, Storage
from services.quorum.waiting import Answer
from services.quorum.writing import Writing, load

REPUBLISH_MS = 500
LOOK_MS = 100
"""How often what people see is made anew, if neither role nor term nor table has changed."""
HANDOVER_MS = 1_500
"""For so long a handover is tried; whoever asks for one waits for two seconds."""
HANDING_OVER_MS = 10
WITHOUT_A_MAJORITY = "no majority is heard, and this LB held it last (on_quorum_loss)"
LATE_MS = 10
"""A turn later than this was late: beats may be waiting for it."""

_log = structlog.get_logger()


def main() -> None:
    """Console script `gale-quorum`."""
    what = "Gale's quorum process."
    process.launch("gale-quorum", what, load_lb, lambda paths: paths.lb_config, _run)


def _run(paths: Paths, config: LbConfig) -> None:
    try:
        QuorumProcess(paths, config).run()
    except NewerFormatError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


@dataclass(frozen=True, slots=True)
class Handover:
    """One that is under way."""

    answer: Later
    until_ms: int


class QuorumProcess:
    """Sockets, clock and disk, and the loop that hands them to the core."""

    def __init__(self, paths: Paths, config: LbConfig) -> None:
        self._config_path = paths.lb_config
        self._config = config
        self._unrealtime = realtime.claim()
        self._bus = Bus(paths.run_dir, topics.QUORUM, config.local.name)
        self._publisher, self._commands = self._bus.publisher, self._bus.commands
        self._subscriber = self._bus.subscriber
        storage = Storage(paths.state_dir, boot_id())
        stored, adopted = load(storage)
        self._loop = Loop()
        self._writing = Writing(storage, stored, self._loop.signals.wake)
        self._boot, self._seed = secrets.token_hex(8), secrets.randbits(64)
        now_ms = monotonic_ms()
        self._listed, self._own = listed_in(config), ""
        """The members by their entries in the file, and which one this LB is."""
        self._meant: dict[str, str] = {}  # by those, the entries of the table for the same LBs
        self._relisted = False  # under a core that goes by the list of its start
        self._core = self._new_core(now_ms)
        self._view: Envelope | None = None
        table = core_config(config).table
        self._claims = Claims(paths.bpf_dir, table, now_ms, alone=not self._listed)
        self._carriers = carriers(config.local)
        witness = config.quorum.witness
        self._eligibility = Eligibility(self._carriers, witness=witness)
        self._table: NodeTable | None = None
        self._owned: frozenset[str] = frozenset()
        """The VIPs that this table gives to this LB."""
        self._handover: Handover | None = None
        self._holding = Holding()
        self._leased: dict[str, int] = {}
        """What the core has allowed to claim last, each until when."""
        self._is_able = False
        """Whether nothing but a missing majority speaks against this LB as a holder."""
        self._published: QuorumState | None = None
        self._state_version = 0
        self._looked_at: tuple[object, ...] = ()
        self._look_ms = now_ms
        self._state_due_ms = self._table_due_ms = now_ms
        self._more = False
        """Whether peers have said more than one turn reads."""
        self._orders: dict[str, Later] = {}
        """By command, the answers to orders that are not agreed on yet."""
        self._bus.started(adopted)
        self._peers = Peers(
            self._bus.context,
            config.quorum.name,
            config.local.name,
            self._boot,
            self._loop.signals.wake,
            KeyDirectory(config.security.keys, (keys.LBS,)) if config.security.keys else None,
            partial(own_address, config.local.net_interface_private),
        )
        self._entries: tuple[str, ...] = ()
        self._expect_members()
        self._judge_by(config)
        for refused in self._unrealtime:
            _log.warning("the kernel does not allow", what=refused)

    def run(self) -> None:
        """Until SIGTERM."""
        self._loop.watch(*self._peers.sockets, *self._bus.sockets)
        ready: dict[Any, int] = dict.fromkeys((*self._peers.sockets, *self._bus.sockets), 0)
        while not self._loop.signals.stopping:
            self._step(monotonic_ms(), ready)
            ready = self._loop.wait(self._wait_ms(monotonic_ms()))
        self._resign(monotonic_ms())
        _log.info("stopped", process=topics.QUORUM)
        self._peers.close()
        self._bus.close()

    def _step(self, now_ms: int, ready: dict[Any, int]) -> None:
        """Drain the input, then look at the clock, then do what the core says.

        `ready` has the sockets that something has come in by. A turn comes with every beat and its
        answers, so the others are not asked.
        """
        late_ms = self._loop.late_ms(now_ms)
        if late_ms > LATE_MS:
            self._core.lagged(late_ms)
        self._settle(now_ms)
        if self._more or any(socket in ready for socket in self._peers.sockets):
            self._hear(now_ms)
        if self._publisher.poll_socket in ready:
            self._publisher.serve()
        if self._commands.socket in ready:
            self._commands.serve(self._command)
        if self._loop.signals.take_reload():
            self._reload()
        if self._subscriber.socket in ready:
            self._hear_sisters(now_ms)
        self._look_at_disk(now_ms)
        self._stand(now_ms)
        self._core.tick(now_ms)
        self._work_off(now_ms)
        self._expect_members()
        self._hold_on(now_ms)
        self._claims.tick(self._told, now_ms)
        self._publish_events(self._claims.take())
        self._publish_states(now_ms)

    def _hear_sisters(self, now_ms: int) -> None:
        """The other processes of this LB."""
        for envelope in self._subscriber.receive():
            if isinstance(envelope.data, LocalView):
                self._view = envelope
                self._report(now_ms)
            elif isinstance(envelope.data, DataplaneState):
                self._eligibility.dataplane(envelope.data)
            elif envelope.topic is Topic.VIP_CONTESTED:
                self._holding.contested(envelope.data.address)
        if any(head.topic is Topic.STATE_VIEW for head in self._subscriber.repeated):
            self._core.hear_health(now_ms)

    @property
    def _told(self) -> Told:
        told = Told(self._config.local.name, self._core.term)
        return replace(told, why=WITHOUT_A_MAJORITY) if self._holding.held else told

    def _report(self, now_ms: int) -> None:
        if self._view is not None:
            age_ms = max(0, now_ms - self._view.head.made_ms)
            self._core.report(self._view.boot, self._view.data, now_ms, age_ms)

    def _stand(self, now_ms: int) -> None:
        """Whether this LB may hold VIPs, as things are now."""
        for interface, carrier in self._carriers.items():
            self._eligibility.carrier(interface, up=carrier.is_up(), now_ms=now_ms)
        view = self._view.data if self._view is not None else None
        self._eligibility.nodes(view, self._table)
        verdict = self._eligibility.verdict(now_ms, holds=bool(self._claims.held))
        self._core.stand(verdict.why, verdict.fitness, now_ms)
        self._is_able = verdict.eligible
        if self._handover is not None:
            self._go_on_handing_over(self._handover, now_ms)

    # ------------------------------------------------------------------ the other LBs

    def _new_core(self, now_ms: int, own: str = "") -> Quorum:
        """`own` is this LB's entry. Empty in a cluster: not known yet, and it speaks to nobody."""
        config = core_config(self._config, own, self._others(own), self._meant)
        draw = random.SystemRandom().random
        stored = self._writing.stored
        return Quorum(config, stored, self._seed, now_ms, boot=self._boot, draw=draw)

    def _judge_by(self, config: LbConfig) -> None:
        numbers = node_health(config)
        self._peers.node_health = numbers
        enforce = config.quorum.enforce_single_configuration
        self._peers.admission.judge_by(numbers, enforce=enforce)

    def _others(self, own: str) -> tuple[str, ...]:
        """The file's other entries; those that are this machine are not, however it writes them."""
        if not own:
            return tuple(sorted(self._listed))
        mine = self._peers.aliases | {own}
        mine |= {entry for entry, meant in self._meant.items() if meant in mine}
        return tuple(sorted(self._listed.keys() - mine))

    def _expect_members(self) -> None:
        """Hear, and be connected to, those that the core goes by; the file lists who was first."""
        entries = self._core.entries if self._listed else ()
        if entries == self._entries:
            return
        self._entries = entries
        if entries and set(filter(None, entries)) != self._listed.keys():
            _log.info("the members are others than the file lists", members=entries)
        names = {str(each): each.key_name for each in self._config.quorum.addresses}
        places: dict[str, tuple[str, int]] = {}
        for entry in filter(None, entries):
            port = int(entry.rpartition(":")[2])
            places[entry] = self._listed.get(entry) or (host_of(entry), port)
        names = {entry: names.get(entry, host_of(entry)) for entry in places}
        self._peers.expect(places, names, self._listed)

    def _settle(self, now_ms: int) -> None:
        if not self._listed:
            return
        self._peers.settle(now_ms)
        is_new = self._peers.own != self._own or (self._relisted and not self._core.is_founded)
        if is_new and self._writing.is_done:
            self._own, self._meant, self._relisted = self._peers.own, self._peers.meant, False
            self._core = self._new_core(now_ms, self._own)
            self._report(now_ms)
        elif self._peers.meant != self._meant:
            self._meant = self._peers.meant
            self._reconfigure(now_ms)

    def _hear(self, now_ms: int) -> None:
        heard, drained = self._peers.receive(now_ms)
        self._more = not drained
        for entry, message in heard:
            self._core.receive(entry, message, now_ms)
        for refusal in self._peers.admission.take_untold():
            leader = self._core.state(now_ms).leader
            event = QuorumEvent(self._core.term, leader, refusal.peer, refusal.told)
            self._publisher.publish(Topic.QUORUM_PEER_REFUSED, event)
            _log.warning("refused what a peer says", peer=refusal.peer, reason=refusal.told)
        for found in self._peers.admission.take_differing():
            _log.warning("an LB judges nodes otherwise", peer=found.peer, difference=found.text)

    def _resign(self, now_ms: int) -> None:
        """This process ends: the others need not wait for it to fall silent."""
        if not self._listed:
            return
        with contextlib.suppress(ValueError):
            self._core.hand_over(now_ms)
        self._core.stand(("it is being stopped",), 0, now_ms)
        if (ready := self._core.take(now_ms)) is not None:
            self._claims.claim(ready.claims or {}, self._told, now_ms)
            self._publish_events(self._claims.take())
            self._send(ready)

    # ------------------------------------------------------------------ out

    def _work_off(self, now_ms: int) -> None:
        while (ready := self._core.take(now_ms)) is not None:
            if ready.persist is not None:
                self._writing.want(ready.persist, now_ms)
            if ready.claims is not None:  # before anybody hears what they rest on
                self._leased = ready.claims
                self._holding.leased(ready.claims)
                self._claim(now_ms)
            self._publish(ready)
            self._send(ready)
            for answer in ready.answers:
                self._answer(answer)

    def _claim(self, now_ms: int) -> None:
        until_ms = dict(self._leased)
        for vip, held_ms in self._holding.held.items():
            until_ms[vip] = max(until_ms.get(vip, 0), held_ms)
        self._claims.claim(until_ms, self._told, now_ms)

    def _hold_on(self, now_ms: int) -> None:
        """Without a majority: what this LB goes on to claim, if the file wants it to."""
        if not self._listed:
            return
        circumstances = Circumstances(
            enabled=self._config.quorum.on_quorum_loss == "hold",
            has_leader=self._core.has_leader,
            able=self._is_able,
            owned=self._owned,
        )
        if self._holding.look(circumstances, now_ms):
            self._claim(now_ms)

    def _send(self, ready: Ready) -> None:
        for each in ready.sends:
            self._peers.send(each.to, each.message)

    def _answer(self, answer: Answer) -> None:
        later = self._orders.pop(answer.id, None)
        if later is None:
            return
        if answer.refusal:
            later.error = answer.refusal
        else:
            later.result = {"agreed": True}
        self._commands.serve(self._command)

    def _look_at_disk(self, now_ms: int) -> None:
        news = self._writing.turn(now_ms)
        if news.mark is not None:
            self._core.stored(news.mark, now_ms)
        if news.trouble:
            if news.trouble != self._core.state(now_ms).waiting_for:
                _log.error("the table stands still: cannot write", path=news.trouble)
            self._core.stall(news.trouble)

    def _publish(self, ready: Ready) -> None:
        if ready.committed is not None:
            self._table = table = ready.committed.table
            name = self._config.local.name
            self._owned = frozenset(vip.address for vip in table.vip_owners if vip.owner == name)
            self._publisher.publish(Topic.STATE_TABLE, ready.committed)
        self._publish_events([*self._claims.take(), *ready.events])

    def _publish_events(self, events: Iterable[tuple[Topic, Any]]) -> None:
        for topic, event in events:
            self._publisher.publish(topic, event)
            _log.info(topic.value.rstrip("."), **_loggable(event))

    def _publish_states(self, now_ms: int) -> None:
        if now_ms >= self._table_due_ms:
            self._table_due_ms = now_ms + REPUBLISH_MS
            self._publisher.repeat(Topic.STATE_TABLE)
        looked_at = self._core.role, self._core.term, self._core.state_version
        if looked_at == self._looked_at and now_ms < min(self._look_ms, self._state_due_ms):
            return
        self._looked_at, self._look_ms = looked_at, now_ms + LOOK_MS
        state = self._state(now_ms)
        is_new = self._published is None or _lasting(state) != _lasting(self._published)
        if is_new or now_ms >= self._state_due_ms:
            if is_new or self._published is None:
                self._state_version += 1
                self._published = replace(state, version=self._state_version)
            self._publisher.publish(Topic.STATE_QUORUM, self._published)
            self._state_due_ms = now_ms + told_again_after_ms(state)

    def _state(self, now_ms: int) -> QuorumState:
        state = self._core.state(now_ms)
        refused = dict(self._peers.admission.refused)
        waiting_for = state.waiting_for
        if self._listed and self._peers.waiting_for:
            waiting_for = self._peers.waiting_for
        waiting_for = waiting_for or self._claims.waiting_for
        trouble = self._peers.admission.trouble
        members = tuple(
            replace(member, trouble=trouble[member.address])
            if member.address in trouble
            else member
            for member in state.members
        )
        applicants = self._peers.admission.applicants(now_ms) if self._listed else {}
        return replace(
            state,
            waiting_for=waiting_for,
            rejected=refused,
            members=members,
            applicants=tuple(Applicant(name, entry) for entry, name in applicants.items()),
        )

    def _wait_ms(self, now_ms: int) -> int:
        if self._more:
            return 0
        due_ms = min(self._state_due_ms, self._table_due_ms)
        moments = (
            self._core.next_due_ms(),
            self._claims.next_due_ms(),
            self._eligibility.next_due_ms(),
            self._holding.next_due_ms(),
            self._writing.next_due_ms(),
        )
        for next_ms in moments:
            if next_ms is not None:
                due_ms = min(due_ms, next_ms)
        if self._handover is not None:
            due_ms = min(due_ms, now_ms + HANDING_OVER_MS)
        if self._listed:
            due_ms = min(due_ms, self._peers.next_due_ms())
        return max(0, due_ms - now_ms)

    # ------------------------------------------------------------------ commands and signals

    def _command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any] | Later:
        if verb == "reload":
            return self._reload()
        if verb == "handover":
            return self._hand_over(monotonic_ms())
        if verb == "order":
            return self._order(arguments)
        if verb == "commit":
            return self._commit_staged(monotonic_ms())
        if verb == "recover":
            return self._recover(monotonic_ms())
        if verb == "member":
            return self._change_members(arguments)
        known = "reload, handover, order, commit, recover, member"
        raise CommandError(f"unknown command: {verb}; quorum knows: {known}")

    def _commit_staged(self, now_ms: int) -> dict[str, Any]:
        try:
            self._core.commit_staged(now_ms)
        except ValueError as error:
            raise CommandError(str(error)) from None
        return {"agreed": self._core.staged}

    def _recover(self, now_ms: int) -> dict[str, Any]:
        """The others are gone for good: from now on, until a restart, this is a quorum of one."""
        state = self._core.state(now_ms)
        heard = [each.name for each in state.members[1:] if each.alive]
        if not self._listed:
            raise CommandError("this LB decides alone already")
        if self._config.quorum.witness:
            raise CommandError("a witness only votes")
        if state.leader is not None or heard:
            there = state.leader or ", ".join(heard)
            raise CommandError(f"{there} is heard: nothing is lost that will not come back")
        if not self._writing.is_done:
            raise CommandError(f"the table is not on the disk: {state.waiting_for}")
        _log.warning("recovered: this LB decides alone", without=sorted(self._listed))
        self._listed = {}
        self._peers.expect({})
        self._core = self._new_core(now_ms, self._own)
        self._report(now_ms)
        return {"members": 1}

    def _change_members(self, arguments: dict[str, Any]) -> Later:
        """Answered when all go by the changed list; `member` is a name, a host, or an entry."""
        number, who = arguments.get("id"), arguments.get("member")
        now_ms = monotonic_ms()
        if not isinstance(number, str) or not 0 < len(number) <= LONGEST_TEXT:
            raise CommandError("not a change of the members: it has no id")
        try:
            change = MemberChange(arguments.get("change", ""))
            address = self._entry_of(str(who), change, now_ms)
            self._core.change_members(number, change, address, now_ms)
        except ValueError as error:
            raise CommandError(str(error)) from None
        return self._orders.setdefault(number, Later())

    def _entry_of(self, who: str, change: MemberChange, now_ms: int) -> str:
        """Raises ValueError, in words."""
        others = self._peers.admission.applicants(now_ms)
        if change is MemberChange.REMOVE:
            return self._core.entry_of(who, {})
        if re.fullmatch(ENTRY, who):
            return who
        return self._core.entry_of(who, dict.fromkeys(self._listed, "") | others)

    def _hand_over(self, now_ms: int) -> Later:
        """Give up the lead and every VIP; answered when another LB has them."""
        if not self._listed:
            raise CommandError("this LB decides alone: there is nobody to hand over to")
        if self._handover is None:
            self._handover = Handover(Later(), now_ms + HANDOVER_MS)
            self._eligibility.leaving = True
        return self._handover.answer

    def _go_on_handing_over(self, handover: Handover, now_ms: int) -> None:
        holds = ", ".join(sorted(self._owned))
        trouble = f"still holds {holds}: no other LB may" if holds else ""
        if self._core.role is Role.LEADER and not trouble:
            try:
                _log.info("handed over", to=self._core.hand_over(now_ms))
            except ValueError as error:
                trouble = str(error)
        leader = self._core.state(now_ms).leader
        elsewhere = leader not in (None, self._config.local.name)
        if not trouble and elsewhere and not self._claims.held:
            handover.answer.result = {"leader": leader}
        elif now_ms >= handover.until_ms:
            handover.answer.error = trouble or "no other LB has taken the lead"
        else:
            return
        self._eligibility.leaving = False
        self._handover = None
        self._commands.serve(self._command)

    def _order(self, arguments: dict[str, Any]) -> Later:
        number = arguments.get("id")
        try:
            asked = from_json(Asked, to_json(arguments))
        except MalformedMessage as error:
            raise CommandError(f"not an order: {error}") from None
        if not isinstance(number, str) or not 0 < len(number) <= LONGEST_TEXT:
            raise CommandError("not an order: it has no id")
        later = self._orders.setdefault(number, Later())
        self._core.order(number, asked, monotonic_ms())
        return later

    def _reload(self) -> dict[str, Any]:
        config, answer = process.reload_lb(self._config_path, self._config)
        if config is not None:
            self._config = config
            self._judge_by(config)
            self._relist(config)
            self._reconfigure(monotonic_ms())
            self._claims.configure(core_config(config).table, monotonic_ms())
        return answer

    def _relist(self, config: LbConfig) -> None:
        """The file may list other LBs than before; who decides alone does so until a restart."""
        listed = listed_in(config)
        if not self._listed or listed == self._listed:
            return
        self._listed, self._meant, self._entries = listed, {}, ()
        self._relisted = True
        self._expect_members()

    def _reconfigure(self, now_ms: int) -> None:
        others = self._others(self._own)
        self._core.reconfigure(core_config(self._config, self._own, others, self._meant), now_ms)


def told_again_after_ms(state: QuorumState) -> int:
    """Before half of the lease is over that it tells of."""
    return min(REPUBLISH_MS, state.lease_remaining_ms // 2 or REPUBLISH_MS)


def _lasting(state: QuorumState) -> QuorumState:
    """What of it does not pass by itself: what is renewed all the time is as it was, if told so."""
    members = tuple(replace(member, heard_ms=0) for member in state.members)
    has_lease = int(state.lease_remaining_ms > 0)
    return replace(state, version=0, lease_remaining_ms=has_lease, members=members)


def _loggable(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in type(event).__slots__}
