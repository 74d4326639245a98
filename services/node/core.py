"""The agent: one session with each LB, what the local checks say, and what follows. Pure.

**A session** (one for each LB of the file) goes through `SESSION_STEPS`:

    ABSENT ──connected──► GREETING ──welcome──► ADMITTED: a heartbeat every interval_ms of the LB
                            │  ▲  ◄──"say hello"──┘
                            ▼  │ when retry_ms is over
                          REFUSED ──welcome (the ban was lifted)──► ADMITTED

and back to ABSENT when its connection goes, which only the connection itself can tell: why there is
none (`unreached`) is often found out when there is one again, and then says nothing. Hello is
repeated while nobody answers; an LB that answers no hello for `PATIENCE_HELLOS` gets a new
connection. An LB speaks only when something changes, so one that has been quiet for long is greeted
again: its welcome shows that it still listens. An LB's restart closes the connection, and the next
one starts with a hello; should beats reach an LB that does not know us, it says so and is greeted
at once.

**What a beat says.** The worst of the local checks, and which services those are about: an LB
takes a sick service from its rings, and no other. Only when all are sick, when the operator has
stopped the node, or when its machine cannot be prepared, it is said of the node as a whole. Nothing
is sent before each check has had its first result: an agent that is restarted must not report as
bad what it has not looked at. A service that an LB adds later counts as sick until it has been
checked. A change goes to every LB at once, not with the next regular beat. Which services are sick
is said when it is news to an LB, and again in the first beat after each of its welcomes.

**What the operator wants** is the node's `Activity`, with `ACTIVITY_STEPS`:

    RUNNING ◄──start──► DRAINING ──drain_ms──► STOPPED        any of them ──SIGTERM──► LEAVING
                                                              LEAVING ──► ENDED

DRAINING says SHUTTING_DOWN: no new flow, old ones go on, no failure. STOPPED says NOT_SERVING,
which after draining is no failure either. LEAVING says SHUTTING_DOWN, waits until each LB has
answered that it drains (or `LEAVE_LIMIT_MS`), lets that take effect (`LEAVE_SETTLE_MS`), and ends;
but while flows are open that end with the agent's preparations, not before `DRAIN_MS`. A stopped
node starts as RUNNING when its agent is started anew.

**Direct return.** What the machine must have for modes L2 and L3 (direct.py) is prepared elsewhere,
and told by `prepared`. A node that would lose its packets does not serve; one whose preparation is
still under way says nothing new. For which modes it is prepared goes to every LB at once, and again
in the first beat after each welcome; an LB that changes a service's mode waits for it.

Inputs are methods with the time (milliseconds of a monotonic clock, which also stamps the beats);
outputs collect in `take_output()`: messages, connections to be made anew, lines for the log.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from bus.codec import MalformedMessage
from bus.node_protocol import (
    NODE_VERSION,
    Heartbeat,
    Hello,
    NodeMessage,
    OfferedService,
    Prepared,
    Refused,
    Sick,
    Welcome,
    decode_node,
)
from bus.states import NodeService
from bus.words import (
    Mode,
    NodeState,
    Protocol,
    ServingStatus,
    one_line,
)
from services.node.direct import NOTHING_NEEDED, Need, prepared_for

DEFAULT_CHECK_MS = 500
HELLO_RETRY_MS = 1_000
HELLO_SPACING_MS = 100
PATIENCE_HELLOS = 5
QUIET_MS = 10_000
"""The least silence of an LB after which it is greeted again; ten checks_timeouts if longer."""
DRAIN_MS = 10_000
LONGEST_DRAIN_MS = 3_600_000
LEAVE_SETTLE_MS = 500
LEAVE_LIMIT_MS = 3_000
USUAL_PORT = 7070
MOST_REASONS = 64
"""Of sick services, in one beat; the others have one between them."""


class CheckKind(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    HTTP = "http"


class Phase(StrEnum):
    ABSENT = "absent"
    GREETING = "greeting"
    ADMITTED = "admitted"
    REFUSED = "refused"


class Activity(StrEnum):
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    LEAVING = "leaving"
    ENDED = "ended"


_TAKES_FLOWS = frozenset({NodeState.UP, NodeState.SUSPECT, NodeState.PROBATION})

SESSION_STEPS: frozenset[tuple[Phase, Phase]] = frozenset(
    {
        (Phase.ABSENT, Phase.GREETING),
        (Phase.GREETING, Phase.ADMITTED),
        (Phase.GREETING, Phase.REFUSED),
        (Phase.GREETING, Phase.ABSENT),
        (Phase.ADMITTED, Phase.GREETING),
        (Phase.ADMITTED, Phase.REFUSED),
        (Phase.ADMITTED, Phase.ABSENT),
        (Phase.REFUSED, Phase.GREETING),
        (Phase.REFUSED, Phase.ADMITTED),
        (Phase.REFUSED, Phase.ABSENT),
    }
)

ACTIVITY_STEPS: frozenset[tuple[Activity, Activity]] = frozenset(
    {
        (Activity.RUNNING, Activity.DRAINING),
        (Activity.DRAINING, Activity.RUNNING),
        (Activity.DRAINING, Activity.STOPPED),
        (Activity.STOPPED, Activity.RUNNING),
        (Activity.RUNNING, Activity.LEAVING),
        (Activity.DRAINING, Activity.LEAVING),
        (Activity.STOPPED, Activity.LEAVING),
        (Activity.LEAVING, Activity.ENDED),
    }
)


class IllegalStepError(Exception):
    """A step that neither table has: a mistake in this module."""


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """One local check: of a service, on a port of this machine."""

    service: str
    port: int
    kind: CheckKind = CheckKind.TCP
    path: str = "/"
    interval_ms: int = DEFAULT_CHECK_MS
    timeout_ms: int = DEFAULT_CHECK_MS
    fronts: tuple[tuple[str, int], ...] = ()
    """VIP and port, where clients' packets come unchanged (modes L2 and L3): where they are this
    machine's, these are checked instead."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What the file says. No named checks: every service that the LBs offer, checked by TCP."""

    name: str
    weight: int
    lbs: tuple[str, ...]
    named: tuple[CheckPlan, ...]
    backup: bool = False

    def hello(self, boot: str) -> Hello:
        services = tuple(NodeService(plan.service, plan.port) for plan in self.named)
        return Hello(NODE_VERSION, self.name, boot, self.weight, services, self.backup)


class Send(NamedTuple):
    lb: str
    message: NodeMessage


@dataclass(slots=True)
class Output:
    messages: list[Send] = field(default_factory=list)
    reconnect: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Session:
    lb: str
    phase: Phase = Phase.ABSENT
    reason: str = "not connected yet"
    welcome: Welcome | None = None
    due_ms: int = 0
    """GREETING: the next hello. ADMITTED: the next beat. REFUSED: when to try again."""
    hellos: int = 0
    """Hellos since the LB was last heard."""
    hello_ms: int | None = None
    heard_ms: int | None = None
    seq: int = 0
    prepared: tuple[Prepared, ...] | None = None
    """What this LB was told of that; None: nothing since it last spoke."""
    sick: tuple[Sick, ...] | None = None
    """Likewise."""


@dataclass(slots=True)
class _Check:
    plan: CheckPlan
    good: bool | None = None
    before: bool | None = None
    """What the same service's last check found, which was another one."""
    reason: str = "not checked yet"
    since_ms: int = 0
    good_total: int = 0
    bad_total: int = 0

    @property
    def verdict(self) -> bool | None:
        """None: nobody has looked at this service yet."""
        return self.before if self.good is None else self.good


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What beats say; `status` None: nothing yet."""

    status: ServingStatus | None = None
    reason: str = ""
    sick: tuple[Sick, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for each in self.sick for name in each.services)


class Agent:
    def __init__(self, config: AgentConfig, boot: str, now_ms: int) -> None:
        self.boot = boot
        self.activity = Activity.RUNNING
        self.load = 0.0
        self.rejected: Counter[str] = Counter()
        self._config = config
        self._sessions = {lb: _Session(lb) for lb in config.lbs}
        self._checks: dict[str, _Check] = {}
        self._said = _Verdict()
        self._activity_since_ms = now_ms
        self._drain_ms = DRAIN_MS
        self._settled_ms: int | None = None
        """LEAVING: since when every LB drains."""
        self.open_flows = 0
        """LEAVING: connections that would break if the agent took back what it prepared."""
        self._is_prepared = True
        self._hindrance = ""
        self._done = NOTHING_NEEDED
        self._output = Output()
        self._plan_checks()

    # ----------------------------------------------------------------- connections

    def connected(self, lb: str, now_ms: int) -> None:
        """A connection to the LB stands: say hello."""
        session = self._sessions.get(lb)
        if session is None:
            return
        if session.phase is not Phase.ABSENT:
            self._step(session, Phase.ABSENT, "connected anew")
        session.hellos = 0
        self._greet(session, now_ms)

    def disconnected(self, lb: str, reason: str) -> None:
        """The connection to the LB is gone, for that reason."""
        session = self._sessions.get(lb)
        if session is not None and session.phase is not Phase.ABSENT:
            self._step(session, Phase.ABSENT, reason)
            self._log(session)
        else:
            self.unreached(lb, reason)

    def unreached(self, lb: str, reason: str) -> None:
        """Why there is no connection to the LB, if there is none; may be told again and again."""
        session = self._sessions.get(lb)
        if session is None or session.phase is not Phase.ABSENT or session.reason == reason:
            return
        session.reason = reason
        self._log(session)

    def receive(self, lb: str, frames: list[bytes], now_ms: int) -> None:
        """A message of the LB."""
        session = self._sessions.get(lb)
        if session is None or session.phase is Phase.ABSENT:
            return
        try:
            message = decode_node(frames)
        except MalformedMessage:
            self.rejected["malformed"] += 1
            return
        if isinstance(message, Welcome) and message.interval_ms > 0:
            self._welcome(session, message, now_ms)
        elif isinstance(message, Refused):
            self._refused(session, message, now_ms)
        else:
            self.rejected["unexpected_kind"] += 1

    def _greet(self, session: _Session, now_ms: int) -> None:
        if session.phase is not Phase.GREETING:
            self._step(session, Phase.GREETING, "said hello")
        session.due_ms = now_ms + HELLO_RETRY_MS
        self._hello(session, now_ms)

    def _hello(self, session: _Session, now_ms: int) -> None:
        session.hellos += 1
        session.hello_ms = now_ms
        self._send(session, self._config.hello(self.boot))

    def _welcome(self, session: _Session, welcome: Welcome, now_ms: int) -> None:
        former, session.welcome = session.welcome, welcome
        session.prepared = session.sick = None
        session.heard_ms = now_ms
        session.hellos = 0
        if session.phase is not Phase.ADMITTED:
            self._step(session, Phase.ADMITTED, "")
            session.due_ms = now_ms
        session.due_ms = min(session.due_ms, now_ms + welcome.interval_ms)
        if former is None or former.services != welcome.services:
            self._plan_checks()
            self._judge(now_ms)
            missing = self._not_offered(welcome)
            if missing:
                names = ", ".join(missing)
                self._output.log.append(f"{session.lb} has no service {names}")
        if former is None or former.state is not welcome.state:
            state = welcome.state.value
            self._output.log.append(f"{session.lb} ({welcome.lb}): this node is {state}")

    def _refused(self, session: _Session, refused: Refused, now_ms: int) -> None:
        session.heard_ms = now_ms
        session.hellos = 0
        if refused.retry_ms <= 0:
            self._step_to_greeting(session, now_ms)
            return
        reason = one_line(refused.reason)
        known = session.reason == reason
        if session.phase is not Phase.REFUSED:
            self._step(session, Phase.REFUSED, reason)
        session.reason = reason
        session.due_ms = now_ms + refused.retry_ms
        if not known:
            self._log(session)

    def _step_to_greeting(self, session: _Session, now_ms: int) -> None:
        """The LB asks for a hello; one that is under way is enough for several who ask."""
        if session.hello_ms is not None and now_ms - session.hello_ms < HELLO_SPACING_MS:
            if session.phase is not Phase.GREETING:
                self._step(session, Phase.GREETING, "said hello")
            session.due_ms = session.hello_ms + HELLO_SPACING_MS
        else:
            self._greet(session, now_ms)

    def unsent(self, lb: str) -> None:
        """What was to go to the LB last did not: it is to be told again all that was news."""
        session = self._sessions.get(lb)
        if session is not None:
            session.prepared = session.sick = None

    # ----------------------------------------------------------------- checks

    def plans(self) -> tuple[CheckPlan, ...]:
        """What the shell is to check."""
        return tuple(check.plan for check in self._checks.values())

    def checked(self, plan: CheckPlan, good: bool, reason: str, now_ms: int) -> None:
        """One check has ended; one of a plan that is no longer wanted says nothing."""
        check = self._checks.get(plan.service)
        if check is None or check.plan != plan:
            return
        if good is not check.good:
            check.since_ms = now_ms
            self._output.log.append(f"{plan.service}: {reason}")
        check.good, check.reason = good, reason
        check.good_total += good
        check.bad_total += not good
        self._judge(now_ms)

    def offers(self) -> tuple[OfferedService, ...]:
        """What the LBs have said to this day, those that cannot be reached included."""
        welcomes = [s.welcome for s in self._sessions.values() if s.welcome is not None]
        return tuple(offer for welcome in welcomes for offer in welcome.services)

    @property
    def heard_all(self) -> bool:
        """Whether each LB has said what it offers."""
        return all(session.welcome is not None for session in self._sessions.values())

    def prepared(
        self, done: bool, hindrance: str, now_ms: int, *, with_what: Need = NOTHING_NEEDED
    ) -> None:
        """How the machine's preparation stands; `hindrance`: why it fails.

        `with_what`: what of that which is needed is there.
        """
        if with_what != self._done:
            self._done = with_what
            for session in self._sessions.values():
                if session.phase is Phase.ADMITTED and self._is_news(session):
                    session.due_ms = now_ms
        if (done, hindrance) != (self._is_prepared, self._hindrance):
            if hindrance:
                self._output.log.append(f"not prepared: {hindrance}")
            self._is_prepared, self._hindrance = done, hindrance
            self._judge(now_ms)

    def _prepared_for(self, session: _Session) -> tuple[Prepared, ...]:
        served = frozenset(plan.service for plan in self._config.named)
        offers = session.welcome.services if session.welcome is not None else ()
        return prepared_for(offers, served, self._done)

    def _is_news(self, session: _Session) -> bool:
        return session.prepared != self._prepared_for(session)

    def _plan_checks(self) -> None:
        plans = {plan.service: plan for plan in self._config.named}
        if not plans:
            for session in self._sessions.values():
                for offer in session.welcome.services if session.welcome is not None else ():
                    udp = offer.protocol is Protocol.UDP
                    kind = CheckKind.UDP if udp else CheckKind.TCP
                    plan = CheckPlan(offer.name, offer.node_port, kind)
                    plans.setdefault(offer.name, plan)
        fronts = self._fronts()
        plans = {name: replace(p, fronts=fronts.get(name, ())) for name, p in plans.items()}
        former = self._checks
        self._checks = {name: _check_of(plan, former.get(name)) for name, plan in plans.items()}

    def _fronts(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """By service that is answered directly, what its clients speak to, whichever LB they use.

        All ports of a range are one server's, so the first one stands for them.
        """
        found: dict[str, set[tuple[str, int]]] = {}
        for offer in self.offers():
            if offer.mode is not Mode.L4 and offer.vip is not None:
                found.setdefault(offer.name, set()).add((offer.vip, offer.port))
        return {name: tuple(sorted(fronts)) for name, fronts in found.items()}

    def _not_offered(self, welcome: Welcome) -> list[str]:
        offered = {service.name for service in welcome.services}
        return [plan.service for plan in self._config.named if plan.service not in offered]

    def _judge(self, now_ms: int) -> None:
        """Work out what beats say from now on; a change of it goes out at once."""
        said, self._said = self._said, self._what_beats_say()
        changed = (self._said.status, self._said.names) != (said.status, said.names)
        if changed and self._said.status is not None:
            for session in self._sessions.values():
                if session.phase is Phase.ADMITTED:
                    session.due_ms = now_ms

    def _what_beats_say(self) -> _Verdict:
        if self.activity is Activity.STOPPED:
            return _Verdict(ServingStatus.NOT_SERVING, "stopped by the operator")
        checks = self._checks.values()
        bad = [check for check in checks if check.verdict is False]
        unknown = [check for check in checks if check.verdict is None]
        texts = [f"{check.plan.service}: {check.reason}" for check in bad]
        if self._hindrance:
            texts.append(f"not prepared: {self._hindrance}")
        if self._hindrance or (bad and len(bad) == len(checks)):
            return _Verdict(ServingStatus.NOT_SERVING, one_line("; ".join(texts)))
        if self.activity is not Activity.RUNNING:
            status = ServingStatus.SHUTTING_DOWN
            return _Verdict(status, self.activity.value, _sick([*bad, *unknown]))
        if self._said.status is None and (not checks or unknown or not self._is_prepared):
            return _Verdict()
        if not checks or (not bad and not self._is_prepared):
            # Not known yet: go on with what was known before.
            new = [check for check in unknown if check.plan.service not in self._said.names]
            return replace(self._said, sick=(*self._said.sick, *_sick(new)))
        sick = _sick([*bad, *unknown])
        if bad:
            return _Verdict(ServingStatus.NOT_SERVING, one_line("; ".join(texts)), sick)
        return _Verdict(ServingStatus.SERVING, "", sick)

    # ----------------------------------------------------------------- the operator

    def start(self, now_ms: int) -> None:
        """Serve (again)."""
        if self.activity in (Activity.DRAINING, Activity.STOPPED):
            self._turn(Activity.RUNNING, now_ms)

    def stop(self, drain_ms: int, now_ms: int) -> None:
        """Drain for `drain_ms`, then serve no more until `start`."""
        if self.activity is Activity.RUNNING:
            self._drain_ms = min(max(0, drain_ms), LONGEST_DRAIN_MS)
            self._turn(Activity.DRAINING, now_ms)

    def leave(self, now_ms: int) -> None:
        """The process is to end: let the LBs drain this node first."""
        if self.activity not in (Activity.LEAVING, Activity.ENDED):
            stopped = self.activity is Activity.STOPPED
            self._turn(Activity.LEAVING, now_ms)
            if stopped:  # which the LBs know already
                self._turn(Activity.ENDED, now_ms)

    def configure(self, config: AgentConfig, now_ms: int) -> None:
        """Go by another file from now on."""
        former, self._config = self._config, config
        self._sessions = {lb: self._sessions.get(lb) or _Session(lb) for lb in config.lbs}
        self._plan_checks()
        self._judge(now_ms)
        if former.hello(self.boot) != config.hello(self.boot):
            for session in self._sessions.values():
                if session.phase is not Phase.ABSENT:
                    self._greet(session, now_ms)

    # ----------------------------------------------------------------- time

    def tick(self, now_ms: int) -> None:
        """Do what is due."""
        for session in self._sessions.values():
            if session.phase is Phase.ADMITTED:
                self._tick_admitted(session, now_ms)
            elif session.phase is not Phase.ABSENT and now_ms >= session.due_ms:
                self._tick_waiting(session, now_ms)
        # Only now, so that SHUTTING_DOWN has been said however short the time to drain is.
        if self.activity is Activity.DRAINING and now_ms >= self._drained_ms:
            self._turn(Activity.STOPPED, now_ms)
        if self.activity is Activity.LEAVING:
            self._tick_leaving(now_ms)

    def next_due_ms(self) -> int | None:
        """When `tick` has something to do; None: never, as things stand."""
        moments = [s.due_ms for s in self._sessions.values() if self._has_due(s)]
        moments += [self._ask_again_ms(s) for s in self._sessions.values() if self._is_in(s)]
        if self.activity is Activity.DRAINING:
            moments.append(self._drained_ms)
        elif self.activity is Activity.LEAVING:
            limit_ms = DRAIN_MS if self.open_flows else LEAVE_LIMIT_MS
            moments.append(self._activity_since_ms + limit_ms)
            if self._settled_ms is not None and not self.open_flows:
                moments.append(self._settled_ms + LEAVE_SETTLE_MS)
        return min(moments, default=None)

    def _has_due(self, session: _Session) -> bool:
        if session.phase is Phase.ADMITTED:
            return self._said.status is not None
        return session.phase is not Phase.ABSENT

    @staticmethod
    def _is_in(session: _Session) -> bool:
        return session.phase is Phase.ADMITTED

    @property
    def _drained_ms(self) -> int:
        return self._activity_since_ms + self._drain_ms

    def _ask_again_ms(self, session: _Session) -> int:
        """When an LB that says nothing is greeted, for the first time or again."""
        assert session.welcome is not None
        assert session.heard_ms is not None
        quiet_ms = max(QUIET_MS, 10 * session.welcome.checks_timeout_ms)
        return session.heard_ms + quiet_ms + session.hellos * HELLO_RETRY_MS

    def _tick_admitted(self, session: _Session, now_ms: int) -> None:
        said = self._said
        if said.status is not None and now_ms >= session.due_ms:
            assert session.welcome is not None
            session.seq += 1
            session.due_ms = now_ms + session.welcome.interval_ms
            prepared = self._prepared_for(session)
            news = prepared if prepared != session.prepared else None
            session.prepared = prepared
            sick = said.sick if said.sick != session.sick else None
            session.sick = said.sick
            beat = Heartbeat(session.seq, now_ms, said.status, self.load, said.reason, news, sick)
            self._send(session, beat)
        if now_ms >= self._ask_again_ms(session):
            if session.hellos >= PATIENCE_HELLOS:
                self._give_up(session)
            else:
                self._hello(session, now_ms)

    def _tick_waiting(self, session: _Session, now_ms: int) -> None:
        if session.phase is Phase.GREETING and session.hellos >= PATIENCE_HELLOS:
            self._give_up(session)
        else:
            self._greet(session, now_ms)

    def _give_up(self, session: _Session) -> None:
        port = session.lb.rpartition(":")[2]
        reason = (
            f"no answer to {session.hellos} hellos: is {port} the load balancer's"
            f" local.node_port ({USUAL_PORT} by default)?"
        )
        self._step(session, Phase.ABSENT, reason)
        self._output.reconnect.append(session.lb)
        self._log(session)

    def _tick_leaving(self, now_ms: int) -> None:
        admitted = [s for s in self._sessions.values() if s.phase is Phase.ADMITTED]
        told = all(s.welcome is not None and s.welcome.state not in _TAKES_FLOWS for s in admitted)
        if told and self._settled_ms is None:
            self._settled_ms = now_ms
        late = now_ms >= self._activity_since_ms + LEAVE_LIMIT_MS
        settled = self._settled_ms is not None and now_ms >= self._settled_ms + LEAVE_SETTLE_MS
        must_wait = self.open_flows and now_ms < self._activity_since_ms + DRAIN_MS
        if (late or settled or not admitted) and not must_wait:
            self._turn(Activity.ENDED, now_ms)

    # ----------------------------------------------------------------- steps

    def _step(self, session: _Session, phase: Phase, reason: str) -> None:
        if (session.phase, phase) not in SESSION_STEPS:
            raise IllegalStepError(f"{session.lb}: {session.phase} to {phase} ({reason})")
        session.phase = phase
        session.reason = reason

    def _turn(self, activity: Activity, now_ms: int) -> None:
        if (self.activity, activity) not in ACTIVITY_STEPS:
            raise IllegalStepError(f"{self.activity} to {activity}")
        self.activity = activity
        self._activity_since_ms = now_ms
        if (
            activity is Activity.RUNNING
        ):  # what was said till now was the operator's, not the checks'
            self._said = _Verdict()
        self._output.log.append(f"this node is {activity.value}")
        self._judge(now_ms)

    def _send(self, session: _Session, message: NodeMessage) -> None:
        self._output.messages.append(Send(session.lb, message))

    def _log(self, session: _Session) -> None:
        self._output.log.append(f"{session.lb}: {session.reason}")

    # ----------------------------------------------------------------- what comes out

    def take_output(self) -> Output:
        """What has come up since the last call."""
        output, self._output = self._output, Output()
        return output

    def status(self, now_ms: int) -> dict[str, Any]:
        """All of the above, for `GET /status`."""
        return {
            "name": self._config.name,
            "boot": self.boot,
            "weight": self._config.weight,
            "activity": self.activity.value,
            "status": self._said.status.value if self._said.status is not None else None,
            "reason": self._said.reason,
            "load": self.load,
            "services": [self._service_status(c, now_ms) for c in self._checks.values()],
            "load_balancers": [self._session_status(s, now_ms) for s in self._sessions.values()],
            "rejected": dict(self.rejected),
        }

    def _service_status(self, check: _Check, now_ms: int) -> dict[str, Any]:
        return {
            "name": check.plan.service,
            "port": check.plan.port,
            "check": check.plan.kind.value,
            "good": check.good,
            "reason": check.reason,
            "since_ms": now_ms - check.since_ms if check.good is not None else None,
            "good_total": check.good_total,
            "bad_total": check.bad_total,
        }

    def _session_status(self, session: _Session, now_ms: int) -> dict[str, Any]:
        welcome = session.welcome if session.phase is Phase.ADMITTED else None
        return {
            "address": session.lb,
            "name": session.welcome.lb if session.welcome is not None else None,
            "phase": session.phase.value,
            "reason": session.reason,
            "node_id": welcome.node_id if welcome is not None else None,
            "state": welcome.state.value if welcome is not None else None,
            "interval_ms": welcome.interval_ms if welcome is not None else None,
            "heard_ms": now_ms - session.heard_ms if session.heard_ms is not None else None,
            "not_offered": self._not_offered(welcome) if welcome is not None else [],
        }


def _check_of(plan: CheckPlan, former: _Check | None) -> _Check:
    """The check that is running, if it is the same; otherwise a new one of a service that may be
    known already.
    """
    if former is None:
        return _Check(plan)
    return former if former.plan == plan else _Check(plan, before=former.verdict)


def _sick(checks: list[_Check]) -> tuple[Sick, ...]:
    """The services of these checks by reason, in an order of their own."""
    by_reason: dict[str, list[str]] = {}
    for check in checks:
        reason = one_line(check.reason)
        if reason not in by_reason and len(by_reason) >= MOST_REASONS:
            reason = "not serving"
        by_reason.setdefault(reason, []).append(check.plan.service)
    return tuple(Sick(reason, tuple(sorted(names))) for reason, names in sorted(by_reason.items()))
