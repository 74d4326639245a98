"""What the LBs report of the nodes: the newest view of each, and what the leader has of ours. Pure.

`Reports` keeps, by the name of an LB, the view that its health process gave last. A leader merges
them into the next table; every LB keeps what it is sent, so that whoever leads next has it.

**Settled.** A health process that has just started knows no node for some milliseconds. It is
believed where it names a node, and not where it is silent, until it has talked for `settle_ms`
(`2 * checks_timeout`) since its boot was first heard: then its own grace is over. Without reports
(the health process is down) the nodes stay as they are.

**Whose report counts** (`counting`): of those that are heard, all but the late ones, unless all are
late. An LB is late whose health process has been silent for `OLD_VIEW_MS`, or says that it was held
up (`LocalView.late`). It knows that itself (`OwnView.is_late`) and says so with every answer to the
leader.

`OwnView` is this LB's own report: it goes to the leader when it is new, and again every `RESEND_MS`
until a beat says that the leader has it. A view is known by the boot of its health process and its
version: one that is repeated, or was overtaken on its way, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bus.peer_protocol import ViewReport
from bus.states import LocalView
from services.quorum.table import Report

RESEND_MS = 100
"""A view that the leader has not acknowledged for so long is sent again."""
OLD_VIEW_MS = 2_000
"""A health process that has said nothing for so long, though it repeats itself twice a second,
speaks for nobody."""


@dataclass(slots=True)
class _Own:
    """A view, and what the leader has of it."""

    boot: str
    view: LocalView
    made_ms: int
    heard_ms: int
    """When the health process was heard last."""
    sent_ms: int | None = None


class OwnView:
    """How this LB's own health process sees its nodes."""

    def __init__(self, name: str, *, alone: bool) -> None:
        """`alone`: in a quorum of one there is nobody whose view might be a better one."""
        self._name, self._alone = name, alone
        self._own: _Own | None = None

    def report(self, boot: str, view: LocalView, now_ms: int, made_ms: int) -> bool:
        """It saw them like this at `made_ms`; whether that is new."""
        own = self._own
        is_new = own is None or own.boot != boot or view.version > own.view.version
        if is_new:
            self._own = _Own(boot, view, made_ms, now_ms)
        return is_new

    def hear(self, now_ms: int) -> None:
        """It has said that its last view holds."""
        if self._own is not None:
            self._own.heard_ms = now_ms

    def is_late(self, now_ms: int) -> bool:
        """Whether what it said last is not to be relied on."""
        own = self._own
        if own is None or self._alone:
            return False
        return own.view.late or now_ms >= own.heard_ms + OLD_VIEW_MS

    def to_send(self, seen: tuple[str, int] | None, now_ms: int) -> ViewReport | None:
        """For the leader, which has the view `seen` of this LB (None: none, as far as is known),
        if that is not the newest one; the caller sends it.
        """
        own = self._own
        if own is None or seen == (own.boot, own.view.version):
            return None
        if seen is not None and own.sent_ms is not None and now_ms < own.sent_ms + RESEND_MS:
            return None
        own.sent_ms = now_ms
        return ViewReport(self._name, own.boot, own.view, now_ms - own.made_ms)


@dataclass(slots=True)
class _Heard:
    """The newest view of one LB, and since when its publisher has been talking."""

    boot: str
    first_ms: int
    newest_ms: int
    view: LocalView
    settled: bool


class Reports:
    """By LB, what it saw last; and of this LB, what the leader has of that."""

    def __init__(self, own: OwnView, settle_ms: int) -> None:
        self.own = own
        self.settle_ms = settle_ms
        """For so long a health process is not believed where it is silent."""
        self._heard: dict[str, _Heard] = {}

    def take(self, lb: str, boot: str, view: LocalView, now_ms: int, made_ms: int) -> bool:
        """`lb` saw its nodes like this at `made_ms`; whether that is new."""
        heard = self._heard.get(lb)
        if heard is None or heard.boot != boot:
            self._heard[lb] = _Heard(boot, now_ms, made_ms, view, settled=False)
        elif view.version > heard.view.version:
            heard.view, heard.newest_ms = view, made_ms
        else:
            return False
        return True

    def forget(self, lb: str) -> None:
        """It is no member any more: what it saw counts for nothing."""
        self._heard.pop(lb, None)

    def settle(self, now_ms: int) -> bool:
        """It is `now_ms`; whether some health process has been talking for long enough by now."""
        settled = [
            heard
            for heard in self._heard.values()
            if not heard.settled and now_ms >= heard.first_ms + self.settle_ms
        ]
        for heard in settled:
            heard.settled = True
        return bool(settled)

    def next_due_ms(self) -> int | None:
        """When `settle` has something to do."""
        due = (h.first_ms + self.settle_ms for h in self._heard.values() if not h.settled)
        return min(due, default=None)

    def any_heard(self) -> bool:
        return bool(self._heard)

    def newest(self, lb: str) -> tuple[str, int] | None:
        """Boot and version of the newest view of it: what tells it that it need not repeat that."""
        heard = self._heard.get(lb)
        return (heard.boot, heard.view.version) if heard is not None else None

    def counting(
        self, silent: frozenset[str], late: frozenset[str], now_ms: int
    ) -> dict[str, Report]:
        """The reports that the next table is made of."""
        reports = {
            lb: Report(heard.view, heard.settled, now_ms - heard.newest_ms)
            for lb, heard in self._heard.items()
            if lb not in silent
        }
        return {lb: report for lb, report in reports.items() if lb not in late} or reports

    def known_nodes(self) -> Iterator[str]:
        """The ids that anybody names, some of them more than once."""
        for heard in self._heard.values():
            yield from (node.id for node in heard.view.nodes)
