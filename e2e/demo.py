"""`make demo`: real requests through a real lab, while everything that decides is killed.

1. The lab comes up: three LBs, three nodes, a client.
2. The client sends over 10,000 HTTP requests, each on a new connection, while each of the four
   processes of the VIP's holder is SIGKILLed three times. Promised: none fails, each node answers
   its third.
3. The VIP's holder is lost as if it had no power any more (demo_holder.py). Promised: another one
   claims the VIP within half a second, and every open connection goes on.
4. By `gale`, a node is drained and enabled, another one banned and pardoned, and one service of a
   third is stopped (demo_nodes.py). Promised: no request fails, no open connection ends, and the
   sick service takes no other with it.
5. A node's server is killed. Promised: requests fail for no longer than one check interval (500 ms)
   and 100 ms, and the node answers again once its server is back and has passed its checks.

It ends by itself in about a minute. The exit code is 0 only if every promise held. With `--keep`
(`make demo KEEP=1`) the lab stays up, for you to look around in.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from e2e.demo_holder import Holder, Loss
from e2e.demo_nodes import Nodes
from e2e.failover import the_holder
from e2e.hosts import (
    Hosts,
    LabHosts,
    lab_hosts,
    pid_of,
    send_signal,
    serves_again,
    service_states,
    traffic,
    wait_for,
)
from e2e.lab import LabError, Plan
from e2e.traffic import Summary, Traffic

PROCESSES = ("dataplane", "health", "quorum", "api")
ROUNDS = 3
BETWEEN_KILLS_S = 2.5
LBS = 3
RATE = 290
LEAST_REQUESTS = 10_000
SHARE_TOLERANCE = 0.1
FAILING_MS = 600
GAP_MS = 500
RIG_LAG_MS = 100
ATTEMPTS = 3
NOTES_SHOWN = 8


@dataclass
class Board:
    """What is shown while it runs."""

    hosts: LabHosts
    requests: Traffic | None = None
    kills: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PROCESSES})
    """Per process, after how many seconds it served again, kill by kill."""
    notes: list[str] = field(default_factory=list)
    log: Console | None = None
    """Without a terminal nothing is redrawn: what happens is printed, line by line."""

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.log is not None:
            seen = Summary(list(self.requests.results) if self.requests else [])
            counts = f"{len(seen.results):6d} requests, {len(seen.failures)} failed: "
            self.log.print(counts + text, highlight=False, soft_wrap=True)

    def __rich__(self) -> Group:
        seen = Summary(list(self.requests.results) if self.requests else [])
        counts = Text.assemble(
            ("requests ", "dim"),
            f"{len(seen.results):6d}   ",
            ("failed ", "dim"),
            (f"{len(seen.failures)}", "bold red" if seen.failures else "bold green"),
            ("   longest gap ", "dim"),
            f"{seen.longest_gap_ms:.0f} ms",
        )
        notes = Text("\n".join(self.notes[-NOTES_SHOWN:]), style="dim")
        return Group(counts, self._nodes(seen), self._processes(), notes)

    def _nodes(self, seen: Summary) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 1))
        for name, share in seen.shares(self.hosts.nodes).items():
            table.add_row(name, Text("█" * round(share * 60), style="cyan"), f"{share:.1%}")
        return table

    def _processes(self) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 1))
        for name, times in self.kills.items():
            again = ", ".join(f"{seconds:.1f} s" for seconds in times)
            table.add_row(f"gale:{name}", f"killed {len(times)}×", f"served again after {again}")
        return table


@dataclass(frozen=True)
class Promise:
    """One line of the summary."""

    text: str
    measured: str
    held: bool


def run(board: Board) -> list[Promise]:
    """The whole show; what was promised, and what came of it.

    A client that was held up itself may fail for that alone: its failures are looked at again.
    """
    for _ in range(ATTEMPTS):
        control = control_phase(board)
        if not control.failures or control.largest_lag_ms <= RIG_LAG_MS:
            break
        board.note(f"the client itself lagged {control.largest_lag_ms:.0f} ms; once more")
    promises = control_promises(board.hosts, control, board)
    return [
        *promises,
        *holder_promises(board),
        *node_promises(board),
        *server_promises(board),
    ]


def control_phase(board: Board) -> Summary:
    board.kills = {name: [] for name in PROCESSES}
    board.requests = traffic(board.hosts, RATE)
    try:
        kill_everything_that_decides(board)
        wait_for(
            lambda: len(requests_of(board).results) >= LEAST_REQUESTS, "the requests", timeout_s=60
        )
    finally:
        seen = requests_of(board).stop()
    return seen


def requests_of(board: Board) -> Traffic:
    assert board.requests is not None
    return board.requests


def kill_everything_that_decides(board: Board) -> None:
    for _ in range(ROUNDS):
        for process in PROCESSES:
            lb = the_holder(board.hosts)
            pid = send_signal(board.hosts, lb, f"gale:{process}", "KILL")
            killed_at = time.monotonic()
            board.note(f"SIGKILL of gale:{process} on {lb} (pid {pid})")
            again = partial(serves_again, board.hosts, lb, process, pid, killed_at)
            wait_for(again, f"{process} to serve again")
            seconds = time.monotonic() - killed_at
            board.kills[process].append(seconds)
            new_pid = pid_of(board.hosts, lb, f"gale:{process}")
            board.note(f"gale:{process} serves again after {seconds:.1f} s (pid {new_pid})")
            time.sleep(max(0.0, BETWEEN_KILLS_S - seconds))


def control_promises(hosts: Hosts, seen: Summary, board: Board) -> list[Promise]:
    third = 1 / len(hosts.nodes)
    shares = seen.shares(hosts.nodes)
    even = all(abs(share - third) <= SHARE_TOLERANCE * third for share in shares.values())
    errors = ", ".join(f"{count} {error}" for error, count in seen.errors.items())
    kills = sum(len(times) for times in board.kills.values())
    return [
        Promise(
            f"at least {LEAST_REQUESTS:,} requests, each on a new connection",
            f"{len(seen.results):,}, slowest {seen.slowest_ms:.0f} ms, "
            f"longest gap {seen.longest_gap_ms:.0f} ms",
            len(seen.results) >= LEAST_REQUESTS,
        ),
        Promise(
            f"none fails while four processes are killed {ROUNDS} times each",
            f"{kills} kills, {len(seen.failures)} failed {errors}",
            not seen.failures and kills == ROUNDS * len(PROCESSES),
        ),
        Promise(
            "each node within 10 % of its third",
            ", ".join(f"{name} {share:.1%}" for name, share in shares.items()),
            even,
        ),
    ]


def holder_promises(board: Board) -> list[Promise]:
    """A client that lagged itself measured no gap."""
    for _ in range(ATTEMPTS):
        seen = lose_the_holder(board)
        if seen.lag_ms <= RIG_LAG_MS:
            break
        board.note(f"the client itself lagged {seen.lag_ms:.0f} ms; once more")
    return [
        Promise(
            f"the VIP's holder lost: answers again within {GAP_MS} ms",
            f"nobody answered for {seen.gap_ms:.0f} ms; {seen.failed} requests under way failed",
            seen.gap_ms <= GAP_MS,
        ),
        Promise(
            "… and every open connection goes on",
            f"{seen.alive} of {seen.of}",
            seen.alive == seen.of,
        ),
    ]


def lose_the_holder(board: Board) -> Loss:
    board.requests = requests = traffic(board.hosts, RATE)
    try:
        wait_for(lambda: requests.results, "the first answer")
        return Holder(board.hosts, requests, board.note).lose()
    finally:
        requests.stop()


def node_promises(board: Board) -> list[Promise]:
    """Nobody's lag matters here: nothing is timed."""
    board.requests = requests = traffic(board.hosts, RATE)
    try:
        seen = Nodes(board.hosts, requests, board.note).show()
    finally:
        sent = requests.stop()
    none = not sent.failures
    return [
        Promise(
            "gale node drain: no new requests, open connections go on; enable: back",
            f"{seen.drained_open} connections, {len(sent.failures)} requests failed",
            seen.drained and none,
        ),
        Promise(
            "gale node ban: nothing goes there; pardon: back",
            f"{len(sent.failures)} requests failed",
            seen.banned and none,
        ),
        Promise(
            "one sick service of a node: its others go on, their rings unmoved",
            f"{len(sent.failures)} requests failed",
            seen.sick and none,
        ),
    ]


def server_promises(board: Board) -> list[Promise]:
    """Likewise: a client that lagged itself measured nothing."""
    for _ in range(ATTEMPTS):
        seen, again_s = kill_a_server(board, board.hosts.nodes[1])
        if seen.largest_lag_ms <= RIG_LAG_MS:
            break
        board.note(f"the client itself lagged {seen.largest_lag_ms:.0f} ms; measuring again")
    return [
        Promise(
            f"a node's server killed: requests fail for {FAILING_MS} ms at most",
            f"{len(seen.failures)} failed, within {seen.failing_ms:.0f} ms",
            bool(seen.failures) and seen.failing_ms <= FAILING_MS,
        ),
        Promise("it serves again once it is back", f"after {again_s:.1f} s", again_s > 0),
    ]


def kill_a_server(board: Board, victim: str) -> tuple[Summary, float]:
    """Kill a node's nginx under load; what failed, and after how long it answered again."""
    hosts, lb = board.hosts, board.hosts.lbs[0]
    board.requests = requests = traffic(hosts, RATE)
    try:
        wait_for(lambda: requests.results, "the first answer")
        send_signal(hosts, victim, "server:nginx", "KILL")
        board.note(f"SIGKILL of nginx on {victim}; the node's agent and its host live on")
        wait_for(lambda: service_states(hosts, lb)[victim] == "down", f"{victim} to be seen down")
        board.note(f"{victim} is down; nothing is sent there any more")
        time.sleep(1)
        hosts.supervisorctl(victim, "start", "server:nginx")
        started_at, before = time.monotonic(), len(requests.results)
        board.note(f"nginx on {victim} starts again")
        wait_for(lambda: requests.since(before).answers[victim], f"an answer of {victim}")
        again_s = time.monotonic() - started_at
        board.note(f"{victim} answers again after {again_s:.1f} s")
    finally:
        seen = requests.stop()
    return seen, again_s


def show_summary(console: Console, promises: list[Promise]) -> None:
    table = Table(title="What was promised, and what came of it", title_justify="left", box=None)
    for column in ("", "promise", "measured"):
        table.add_column(column)
    for promise in promises:
        mark = Text("✔", style="green") if promise.held else Text("✘", style="bold red")
        table.add_row(mark, promise.text, promise.measured)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.demo", description="Gale, shown at work.")
    parser.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    keep: bool = parser.parse_args().keep
    console = Console()
    begin = time.monotonic()
    say = partial(console.print, style="dim", highlight=False, soft_wrap=True)
    try:
        with lab_hosts(Plan(lbs=LBS), say, keep=keep) as hosts:
            show_addresses(console, hosts)
            board = Board(hosts, log=None if console.is_terminal else console)
            show = Live(board, console=console, refresh_per_second=5)
            with show if console.is_terminal else nullcontext():
                promises = run(board)
    except (LabError, AssertionError) as error:
        print(error, file=sys.stderr)
        return 1
    show_summary(console, promises)
    held = all(promise.held for promise in promises)
    verdict = "Everything held" if held else "Not everything held"
    console.print(f"{verdict}, in {time.monotonic() - begin:.0f} s.")
    if keep:
        show_addresses(console, hosts)
        console.print("The lab is up; .venv/bin/gale lab down ends it.")
    return 0 if held else 1


def show_addresses(console: Console, hosts: LabHosts) -> None:
    addresses = [hosts.lab.api_url(lb) for lb in hosts.lbs]
    console.print(f"The consoles: {'  '.join(addresses)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
