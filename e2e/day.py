"""docs/day-with-gale.md: a page of commands that is run, in a lab of three LBs and three nodes.

    python -m e2e.day        runs the page's commands and writes their output into it

The page is Markdown. A block marked `console` holds commands behind a prompt that names the machine
(`lb-0#`, `client$`; `lab$` is the machine that the lab stands on), each with its output. A block
marked `toml` below a comment `<!-- append FILE on MACHINES -->` is added to that file there. Other
comments tell how the block below them is to be run:

    <!-- until REGEX -->     each command again, until its output says this
    <!-- in any order -->    the lines of its output come in an order of their own
    <!-- holder lb-2 -->     the VIP is handed over, unseen, until lb-2 holds it

Files of /etc/gale stand elsewhere in a lab, and `supervisorctl` has to be told there which machine
it is on: both are put right on the way, so that the page shows what is typed on a real machine.

Two runs never give the same numbers: `masked` is what of an output must be the same each time.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from e2e.failover import the_holder
from e2e.hosts import LabHosts, lab_hosts, wait_for
from e2e.lab import Plan
from e2e.lab.plan import environment, home, supervised, supervisor_conf

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "day-with-gale.md"
PLAN = Plan(lbs=3)
MOST_HANDOVERS = 5
PATIENCE_S = 60.0
AGAIN_S = 0.3
LAB = "lab"
_PROMPT = re.compile(r"(?P<who>client|lb-\d|node-\d|lab)(?P<sign>[#$]) (?P<words>.+)")
_FENCE = re.compile(r"```(\w*)")
_APPEND = re.compile(r"append (\S+) on (.+)")
_MASKS = (
    (re.compile(r"\bis (leader|follower|candidate)\b"), "is ROLE"),
    (re.compile(r"─+"), ""),
    (re.compile(r"\b[0-9a-f]{16}\b"), "N"),
    (re.compile(r"\d[\d.,]*(?: \d{3})*(?: ?(?:ms|s|m|h|%|B|kB|MB|GB)\b)?"), "N"),
    (re.compile(r"N(?: N)+"), "N"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the page, and what it says; or, with `file`, a text that is added to it."""

    line: int
    """Of the page, of its prompt, from 1 on."""
    who: tuple[str, ...]
    words: str
    output: str
    until: str = ""
    any_order: bool = False
    holder: str = ""
    """Who is to hold the VIP before this."""
    file: str = ""

    def masked(self, output: str) -> str:
        return masked(output, any_order=self.any_order)


def masked(output: str, *, any_order: bool = False) -> str:
    """What is the same each time: words, and that there is a number."""
    lines = sorted(output.splitlines()) if any_order else output.splitlines()
    text = "\n".join(lines)
    for pattern, instead in _MASKS:
        text = pattern.sub(instead, text)
    return text.strip()


# --------------------------------------------------------------------------- the page


def steps(page: str) -> list[Step]:
    """All that is to be done, in order."""
    found: list[Step] = []
    notes: list[str] = []
    lines = enumerate(page.splitlines(), start=1)
    for number, line in lines:
        if line.startswith("<!-- ") and line.endswith(" -->"):
            notes.append(line.removeprefix("<!-- ").removesuffix(" -->"))
        elif fence := _FENCE.match(line):
            block = list(_block(lines))
            if fence[1] == "console":
                found += _commands(block, notes)
            elif fence[1] == "toml" and (append := _first(_APPEND.fullmatch, notes)):
                text = "\n".join(text for _, text in block)
                found.append(Step(number, tuple(append[2].split()), text, "", file=append[1]))
            notes = []
        elif line.strip():
            notes = []
    return found


def _block(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if line.startswith("```"):
            return
        yield number, line


def _first(match: Callable[[str], re.Match[str] | None], notes: list[str]) -> re.Match[str] | None:
    return next((found for note in notes if (found := match(note))), None)


def _commands(block: list[tuple[int, str]], notes: list[str]) -> Iterator[Step]:
    until = next((note.removeprefix("until ") for note in notes if note.startswith("until ")), "")
    holder = next((note.split()[1] for note in notes if note.startswith("holder ")), "")
    step: Step | None = None
    for number, line in block:
        prompt = _PROMPT.fullmatch(line)
        if prompt is None:
            assert step is not None, f"line {number}: an output without a command"
            step = replace(step, output=f"{step.output}{line}\n")
            continue
        if step is not None:
            yield step
            holder = ""
        in_any_order = "in any order" in notes
        step = Step(number, (prompt["who"],), prompt["words"], "", until, in_any_order, holder)
    if step is not None:
        yield step


def renewed(page: str, done: list[tuple[Step, str]]) -> str:
    """The page with these outputs."""
    lines = page.splitlines()
    for step, output in reversed(done):
        if not step.file:
            begin, length = step.line, len(step.output.splitlines())
            lines[begin : begin + length] = output.splitlines()
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------- running it


class Day:
    """The lab that the page is run in."""

    def __init__(self, hosts: LabHosts) -> None:
        self._hosts = hosts

    def do(self, step: Step, expected: str | None = None) -> str:
        """What the step says; with `until` the first that fits it, and `expected` too.

        `expected`: masked. If nothing fits, what was said last.
        """
        if step.holder:
            self._hand_to(step.holder)
        if step.file:
            for who in step.who:
                self._append(who, step)
            return ""
        output = self._run(step)
        end_s = time.monotonic() + PATIENCE_S
        while step.until and time.monotonic() < end_s:
            if re.search(step.until, output) and expected in (None, step.masked(output)):
                break
            time.sleep(AGAIN_S)
            output = self._run(step)
        return output

    def _hand_to(self, lb: str) -> None:
        for _ in range(MOST_HANDOVERS):
            holder = the_holder(self._hosts)
            if holder == lb:
                return
            (third,) = set(self._hosts.lbs) - {holder, lb}
            self._give_up_without(holder, third)
        raise AssertionError(f"{lb} did not take the VIP in {MOST_HANDOVERS} handovers")

    def _give_up_without(self, holder: str, third: str) -> None:
        """The holder gives its lease up while that other LB is not there to take it."""
        self._hosts.lab.signal(third, "quorum", signal.SIGSTOP)
        try:
            wait_for(lambda: not self._hears(holder, third), f"{holder} to miss {third}")
            self._hosts.run(holder, "gale", "handover")
        finally:
            self._hosts.lab.signal(third, "quorum", signal.SIGCONT)

    def _hears(self, lb: str, other: str) -> bool:
        members = self._hosts.api(lb, "/v1/quorum")["members"]
        return any(each["name"] == other and each["alive"] for each in members)

    def _append(self, who: str, step: Step) -> None:
        path = Path(environment(who)["GALE_CONFIG"])
        path.write_text(f"{path.read_text()}\n{step.words}\n")

    def _run(self, step: Step) -> str:
        (who,) = step.who
        words, command = step.words, ["sh", "-c"]
        if supervised(who):
            words = words.replace("/etc/gale/", f"{home(who)}/")
            conf = supervisor_conf(who)
            words = f'supervisorctl() {{ command supervisorctl -c {conf} "$@"; }}; {words}'
        if who != LAB:
            command = self._hosts.lab.command(who, command)
        done = subprocess.run(
            [*command, words],
            env={**os.environ, **environment(who)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            timeout=PATIENCE_S,
            check=False,
        )
        lines = done.stdout.replace(f"{home(who)}/", "/etc/gale/").splitlines()
        return "".join(f"{line.rstrip()}\n" for line in lines)


def main() -> None:
    """Make the page's outputs anew."""

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    page = PAGE.read_text()
    with lab_hosts(PLAN, say) as hosts:
        day = Day(hosts)
        done = []
        for step in steps(page):
            output = day.do(step)
            say(f"{step.who[0]}: {step.words}\n{output}")
            done.append((step, output))
    PAGE.write_text(renewed(page, done))


if __name__ == "__main__":
    main()
