"""Faults put into the cores on purpose: each must be caught, or the simulator has a hole.

    python -m tests.sim.mutants [NAME …]

A mutant is a place in a module of a service and what is to stand there instead. It is made
in a copy of the sources and played until the first seed that fails with it. Exit status 1: some
were not caught within `SEEDS`, or their place is not in the sources any more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.sim.mutant import Mutant
from tests.sim.node_mutants import NODE_MUTANTS

SEEDS = 2_000
SOURCES = Path(__file__).parents[2]
PACKAGES = ("bus", "conf", "services", "tests")


MUTANTS = (
    Mutant(
        "a promise is forgotten",
        "election.py",
        "        if now_ms < self._promised_until_ms or self.has_lease(now_ms):\n",
        "        if self.has_lease(now_ms):\n",
    ),
    Mutant(
        "a leader votes while it has its lease",
        "election.py",
        "        if now_ms < self._promised_until_ms or self.has_lease(now_ms):\n",
        "        if now_ms < self._promised_until_ms:\n",
    ),
    Mutant(
        "a start forgets what was promised",
        "election.py",
        "now_ms + (hold_ms if self._others else 0)",
        "now_ms",
    ),
    Mutant(
        "a vote is told before it is stored",
        "election.py",
        "message.accepted, granted, self.term_mark)",
        "message.accepted, granted, 0)",
    ),
    Mutant(
        "two votes in one term",
        "election.py",
        "            and self.vote in (None, message.sender)\n",
        "",
    ),
    Mutant(
        "an older table may win",
        "election.py",
        "            and self.vote in (None, message.sender)\n"
        "            and message.accepted >= version_of(self._register.accepted)\n",
        "            and self.vote in (None, message.sender)\n",
    ),
    Mutant(
        "a blank LB votes",
        "election.py",
        "        if not self.is_blank:\n            return True\n",
        "        if True:\n            return True\n",
    ),
    Mutant(
        "whoever resigned once may be followed in any term",
        "election.py",
        "            and message.resigned == self.leader\n"
        "            and message.term == self.term + 1\n",
        "",
    ),
    Mutant(
        "a lease counts from the answer",
        "election.py",
        "                self._promised_ms[peer] = max(known_ms, until_ms)\n",
        "                self._promised_ms[peer] = now_ms + self.timing.lease_ms\n",
    ),
    Mutant(
        "one promise is enough",
        "election.py",
        "        return promised[needed - 1] if len(promised) >= needed else now_ms - 1\n",
        "        return max(promised, default=now_ms + self.timing.lease_ms)\n",
    ),
    Mutant(
        "what is accepted counts before it is stored",
        "following.py",
        "            version_of(self._register.stored),\n            self._boot,\n",
        "            version_of(self._register.accepted),\n            self._boot,\n",
    ),
    Mutant(
        "a table of an earlier term is counted",
        "register.py",
        "        if version.term != term or version <= self.committed_version:\n",
        "        if version <= self.committed_version:\n",
    ),
    Mutant(
        "one acceptance less is enough",
        "register.py",
        "        if 1 + sum(held == version for held in self.held.values()) < majority:\n",
        "        if 1 + sum(held == version for held in self.held.values()) < majority - 1:\n",
    ),
    Mutant(
        "what is committed is published before it is stored",
        "register.py",
        "        version = version_of(self.stored)\n"
        "        if version != self.committed_version or",
        "        self.stored = self.accepted\n"
        "        version = version_of(self.stored)\n"
        "        if version != self.committed_version or",
    ),
    Mutant(
        "a VIP is granted while another owner is proposed",
        "grants.py",
        "            if vip.owner == lb and proposed.get(vip.address) == lb\n",
        "            if vip.owner == lb and proposed\n",
    ),
    Mutant(
        "a VIP moves while it may be held",
        "leases.py",
        "        return now_ms >= self.free_ms(vip)\n",
        "        return True\n",
    ),
    Mutant(
        "a grant counts from when it came",
        "leases.py",
        "                until_ms = asked_ms + passed_on(grant.left_ms)\n",
        "                until_ms = self._asked_ms[-1][1] + grant.left_ms\n",
    ),
    Mutant(
        "any release counts",
        "leases.py",
        " and asked is not None and message.asked >= asked:\n",
        " and asked is not None:\n",
    ),
    Mutant(
        "whoever was chosen does not wait",
        "leases.py",
        "        self.unknown_until_ms = now_ms + unknown_ms\n",
        "        self.unknown_until_ms = now_ms\n",
    ),
    Mutant(
        "who is not eligible any more goes on claiming",
        "leases.py",
        "                self.given_up[vip] = self._least, now_ms + LARGEST_PROMISE_MS\n"
        "        self.until_ms.clear()\n",
        "                self.given_up[vip] = self._least, now_ms + LARGEST_PROMISE_MS\n",
    ),
    Mutant(
        "a change of the members holds once it is committed",
        "roster.py",
        "        accepted = self._register.accepted\n        table = accepted.table",
        "        accepted = self._register.committed\n        table = accepted.table",
    ),
    Mutant(
        "the leader's file alone says who the members are",
        "listing.py",
        " or any(each != self.own for each in others):\n",
        ":\n",
    ),
    Mutant(
        "a list is noted before the members are those of it",
        "listing.py",
        "        return after, self.own if is_done else agreed\n",
        "        return after, self.own\n",
    ),
    Mutant(
        "the files change all members at once",
        "listing.py",
        "                return wish.made(members)\n",
        "                members = wish.made(members)\n",
    ),
)


def by_name(name: str) -> Mutant:
    return next(mutant for mutant in (*MUTANTS, *NODE_MUTANTS) if mutant.name == name)


def caught(mutant: Mutant, seeds: int) -> str | None:
    """What the first seed said that failed with it; None: none of so many did."""
    with tempfile.TemporaryDirectory(prefix="gale-mutant-") as made:
        root = Path(made)
        for package in PACKAGES:
            shutil.copytree(SOURCES / package, root / package, symlinks=True)
        path = root / "services" / mutant.service / mutant.module
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: its place is {text.count(mutant.old)} times there")
        path.write_text(text.replace(mutant.old, mutant.new))
        command = [
            sys.executable,
            "-m",
            "tests.sim",
            "--lbs",
            str(mutant.lbs),
            "--seeds",
            str(seeds),
        ]
        done = subprocess.run(
            [*command, "--first-failure"],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return None
        return (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]


def main(names: list[str]) -> int:
    escaped = 0
    for mutant in [by_name(name) for name in names] or (*MUTANTS, *NODE_MUTANTS):
        said = caught(mutant, SEEDS)
        escaped += said is None
        print(f"{'caught ' if said else 'ESCAPED'}  {mutant.name}  ({said})", flush=True)
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
