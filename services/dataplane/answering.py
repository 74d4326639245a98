"""What the dataplane process answers when it is asked: `flows`, `trace`, `plan` and `capture`.

None of them changes what is forwarded. Whoever asks waits for the loop's turns: a listing and a
look into the future go through the flow table a few milliseconds at a time (`flows.turns`), and a
trace waits for its programs. What can't be answered is refused in words (`CommandError`): wrong
arguments, a process that does not forward yet, too many questions at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bus.commands import CommandError, Later
from bus.socket import monotonic_ms
from bus.states import LocalView, NodeTable
from services.dataplane.flows.listing import Rows, Seated, list_flows
from services.dataplane.foresight import (
    FlowCounts,
    WrongChangeError,
    count_flows,
    foresee,
    read_change,
)
from services.dataplane.forwarding import Forwarding
from services.dataplane.maps import KernelState, LocalFacts
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import make_plan
from services.dataplane.trace import WrongQuestion, read_question
from services.dataplane.tracing import Scene

FLOWS_LISTED, MOST_FLOWS_LISTED = 100, 10_000
MOST_LISTINGS = 8
"""At once; whoever asks then is to ask again."""


@dataclass(frozen=True, slots=True)
class Present:
    """What the process has at this moment."""

    lb: str
    forwarding: Forwarding
    table: NodeTable | None
    view: LocalView | None
    held: KernelState
    names: Mapping[int, Seated]
    """Whose seats are or were, as long as flows may name them."""
    next_hops: Mapping[str, NextHop | None]
    facts: LocalFacts


class Answering:
    """Commands, and what they need of the process."""

    def __init__(self, present: Callable[[], Present]) -> None:
        """`present`: raises `CommandError`, in words, while nothing is forwarded."""
        self._present = present

    def command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any] | Later:
        match verb:
            case "flows":
                return self._list_flows(arguments)
            case "trace":
                return self._trace(arguments)
            case "plan":
                return self._foresee(arguments)
            case "capture" | "capture_renew" | "capture_end":
                return self._capture(verb, arguments)
            case _:
                raise CommandError(f"the dataplane knows no command {verb!r}")

    def _list_flows(self, arguments: dict[str, Any]) -> Later:
        present = self._present()
        forwarding, names = present.forwarding, present.names
        if len(forwarding.questions) >= MOST_LISTINGS:
            raise CommandError(f"{MOST_LISTINGS} listings of flows are under way: ask again")
        node, service = arguments.get("node"), arguments.get("service")
        limit = arguments.get("limit") or FLOWS_LISTED
        if not isinstance(limit, int) or limit < 1:
            raise CommandError(f"limit: {limit!r} is not a number of flows")
        wanted = None
        if node or service:
            wanted = frozenset(
                number
                for number, seated in names.items()
                if node in (None, "", seated.node) and service in (None, "", seated.service)
            )
        later = Later()

        def answer(found: tuple[Rows, int] | None) -> None:
            if found is None:
                later.error = "the programs are being attached again: ask again"
            else:
                later.result = {"flows": found[0], "total": found[1]}

        blocks = ((block.records, block.now) for block in forwarding.tables.blocks())
        timeouts, limit = forwarding.settings.timeout, min(limit, MOST_FLOWS_LISTED)
        listing = list_flows(blocks, wanted, dict(names), timeouts, limit)
        forwarding.questions.ask(listing, answer)
        return later

    def _trace(self, arguments: dict[str, Any]) -> Later:
        forwarding = self._present().forwarding
        try:
            question = read_question(arguments)
        except WrongQuestion as wrong:
            raise CommandError(str(wrong)) from None
        return forwarding.tracing.ask(question)

    def _capture(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        forwarding, now_ms = self._present().forwarding, monotonic_ms()
        match verb:
            case "capture":
                return forwarding.capturing.begin(arguments, forwarding.machine, now_ms)
            case "capture_renew":
                return forwarding.capturing.renew(arguments, now_ms)
            case _:
                return forwarding.capturing.end(arguments, now_ms)

    def _foresee(self, arguments: dict[str, Any]) -> Later:
        """What a change of the table would do; nothing of it is carried out."""
        present = self._present()
        forwarding, table = present.forwarding, present.table
        if table is None:
            raise CommandError("not forwarding yet: waiting for the agreed table")
        if len(forwarding.questions) >= MOST_LISTINGS:
            raise CommandError(f"{MOST_LISTINGS} passes over the flows are under way: ask again")
        try:
            wanted = read_change(arguments).applied(table)
        except WrongChangeError as wrong:
            raise CommandError(str(wrong)) from None
        census, now_ms = forwarding.census, monotonic_ms()
        held, view, hops, facts = present.held, present.view, present.next_hops, present.facts
        before, after = (
            make_plan(held, each, view, hops, facts, census, now_ms) for each in (table, wanted)
        )
        later = Later()

        def answer(flows: FlowCounts | None) -> None:
            if flows is None:
                later.error = "the programs are being attached again: ask again"
            else:
                later.result = foresee(before, after, table, wanted, flows)

        passing = count_flows(block.records for block in forwarding.tables.blocks())
        forwarding.questions.ask(passing, answer)
        return later


def scene(present: Present) -> Scene:
    """What a trace goes by."""
    forwarding = present.forwarding
    plan = forwarding.programs.plan
    by_xdp = [each.program for each in forwarding.hooks if each.attached]
    return Scene(
        lb=present.lb,
        settings=forwarding.settings,
        kernel=present.held,
        names=present.names,
        services={number: name for name, number in present.held.ids.items()},
        public=plan.public,
        private=plan.private,
        by_xdp=frozenset(program for program in by_xdp if program.startswith("xdp")),
    )
