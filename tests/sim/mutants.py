"""Faults put into the sources on purpose: each must be caught, or the tests have a hole.

    python -m tests.sim.mutants [NAME …]

A mutant is a place in a module and what is to stand there instead (`mutant`). It is made in a copy
of the sources. One of a core is played until the first seed that fails with it; where a test is
named, that is run. Said is by which seed, or by which test, each was caught. Exit status 1: some
were not, within `SEEDS`, or their place is not in the sources any more.

Here are those of the quorum's cores; `node_mutants` has those that the schedules of nodes catch,
`shell_mutants` those of the processes around the cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.sim.mutant import Mutant
from tests.sim.node_mutants import NODE_MUTANTS
from tests.sim.shell_mutants import SHELL_MUTANTS

SEEDS = 2_000
SOURCES = Path(__file__).parents[2]
COPIED = ("bpf", "bus", "conf", "services", "tests")
PLUGINS = ("-p", "pytest_timeout", "-p", "no:cacheprovider")
"""Of pytest, all that the tests of shells need: to load the others takes longer than to run one."""
PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
"""So wide that it says how a test failed."""

MUTANTS = (
    Mutant(
        "a promise is forgotten",
        "election.py",
        "        if now_ms < self._promised_until_ms or self.has_lease(now_ms):\n",
        "        if self.has_lease(now_ms):\n",
        first=15,
    ),
    Mutant(
        "a leader votes while it has its lease",
        "election.py",
        "        if now_ms < self._promised_until_ms or self.has_lease(now_ms):\n",
        "        if now_ms < self._promised_until_ms:\n",
        first=285,
    ),
    Mutant(
        "a start forgets what was promised",
        "election.py",
        "now_ms + (hold_ms if self._others else 0)",
        "now_ms",
        first=270,
    ),
    Mutant(
        "what one has agreed on alone is told to nobody",
        "election.py",
        "        own = self._register.accepted or self._register.first\n",
        "        own = self._register.accepted\n",
        first=27,
    ),
    Mutant(
        "a vote is told before it is stored",
        "election.py",
        "message.accepted, granted, self.term_mark)",
        "message.accepted, granted, 0)",
        test="tests/quorum/test_election.py::test_a_vote_is_told_once_it_is_stored",
    ),
    Mutant(
        "two votes in one term",
        "election.py",
        "            and self.vote in (None, message.sender)\n",
        "",
        first=17,
    ),
    Mutant(
        "answers to a pre-vote count as votes",
        "election.py",
        "        self.vote, self.leader = self.name, None\n        self._votes = set()\n",
        "        self.vote, self.leader = self.name, None\n",
        first=17,
    ),
    Mutant(
        "a vote counts in every term",
        "election.py",
        "        self.term, self.vote = term, None\n",
        "        self.term = term\n",
        first=0,
    ),
    Mutant(
        "a promise is shorter than was asked for",
        "election.py",
        "max(self._promised_until_ms, now_ms + message.promise_ms)",
        "max(self._promised_until_ms, now_ms + message.promise_ms // 4)",
        first=26,
    ),
    Mutant(
        "an older table may win",
        "election.py",
        "            and self.vote in (None, message.sender)\n"
        "            and message.accepted >= version_of(self._register.accepted)\n",
        "            and self.vote in (None, message.sender)\n",
        test="tests/quorum/test_election.py::test_nobody_is_elected_who_has_an_older_table",
    ),
    Mutant(
        "a blank LB votes",
        "election.py",
        "        if not self.is_blank:\n            return True\n",
        "        if True:\n            return True\n",
        test="tests/quorum/test_election.py::"
        "test_a_blank_lb_votes_once_all_others_have_told_it_that_they_have_no_table",
    ),
    Mutant(
        "whoever resigned once may be followed in any term",
        "election.py",
        "            and message.resigned == self.leader\n"
        "            and message.term == self.term + 1\n",
        "",
        test="tests/quorum/test_election.py::"
        "test_a_promise_ends_early_for_whom_the_leader_has_chosen_in_the_next_term",
    ),
    Mutant(
        "a lease counts from the answer",
        "election.py",
        "                self._promised_ms[peer] = max(known_ms, until_ms)\n",
        "                self._promised_ms[peer] = now_ms + self.timing.lease_ms\n",
        test="tests/quorum/test_election.py::test_a_lease_counts_from_when_the_beat_went",
    ),
    Mutant(
        "one promise is enough",
        "election.py",
        "        return promised[needed - 1] if len(promised) >= needed else now_ms - 1\n",
        "        return max(promised, default=now_ms + self.timing.lease_ms)\n",
        first=1321,
    ),
    Mutant(
        "what is accepted counts before it is stored",
        "following.py",
        "            version_of(self._register.stored),\n            self._boot,\n",
        "            version_of(self._register.accepted),\n            self._boot,\n",
        test="tests/quorum/test_following.py::"
        "test_a_leaders_beat_is_taken_and_answered_with_what_is_stored",
    ),
    Mutant(
        "a table of an earlier term is counted",
        "register.py",
        "        if version.term != term or version <= self.committed_version:\n",
        "        if version <= self.committed_version:\n",
        test="tests/quorum/test_register.py::test_a_table_of_an_earlier_term_is_not_counted",
    ),
    Mutant(
        "one acceptance less is enough",
        "register.py",
        "        if 1 + sum(held == version for held in self.held.values()) < majority:\n",
        "        if 1 + sum(held == version for held in self.held.values()) < majority - 1:\n",
        first=79,
    ),
    Mutant(
        "what is committed is published before it is stored",
        "register.py",
        "        version = version_of(self.stored)\n"
        "        if version != self.committed_version or",
        "        self.stored = self.accepted\n"
        "        version = version_of(self.stored)\n"
        "        if version != self.committed_version or",
        first=0,
    ),
    Mutant(
        "a VIP is granted while another owner is proposed",
        "grants.py",
        "            if vip.owner == lb and proposed.get(vip.address) == lb\n",
        "            if vip.owner == lb and proposed\n",
        test="tests/quorum/test_grants.py::test_nothing_is_granted_that_is_not_agreed_in_this_term",
    ),
    Mutant(
        "a VIP moves while it may be held",
        "leases.py",
        "        return now_ms >= self.free_ms(vip)\n",
        "        return True\n",
        first=33,
    ),
    Mutant(
        "a lease that ends sooner shortens what was granted",
        "leases.py",
        "max(until_ms, before_ms) if holder == ack.sender else until_ms\n",
        "until_ms\n",
        test="tests/quorum/test_leases.py::"
        "test_a_lease_that_ends_sooner_than_the_one_before_frees_nothing_sooner",
    ),
    Mutant(
        "a grant counts from when it came",
        "leases.py",
        "                until_ms = asked_ms + passed_on(grant.left_ms)\n",
        "                until_ms = self._asked_ms[-1][1] + grant.left_ms\n",
        first=751,
    ),
    Mutant(
        "any release counts",
        "leases.py",
        " and asked is not None and message.asked >= asked:\n",
        " and asked is not None:\n",
        test="tests/quorum/test_leases.py::"
        "test_answers_that_come_in_another_order_let_an_old_release_end_nothing",
    ),
    Mutant(
        "whoever was chosen does not wait",
        "leases.py",
        "        self.unknown_until_ms = now_ms + unknown_ms\n",
        "        self.unknown_until_ms = now_ms\n",
        test="tests/quorum/test_grants.py::"
        "test_whoever_was_chosen_grants_nothing_of_what_the_one_before_may_have_granted",
    ),
    Mutant(
        "who is not eligible any more goes on claiming",
        "leases.py",
        "                self.given_up[vip] = self._least, now_ms + LARGEST_PROMISE_MS\n"
        "        self.until_ms.clear()\n",
        "                self.given_up[vip] = self._least, now_ms + LARGEST_PROMISE_MS\n",
        test="tests/quorum/test_grants.py::"
        "test_a_holder_claims_from_when_it_asked_until_it_gives_up_and_says_so",
    ),
    Mutant(
        "a change of the members holds once it is committed",
        "roster.py",
        "        accepted = self._register.accepted\n        table = accepted.table",
        "        accepted = self._register.committed\n        table = accepted.table",
        first=63,
    ),
    Mutant(
        "the leader's file alone says who the members are",
        "listing.py",
        " or any(each != self.own for each in others):\n",
        ":\n",
        first=17,
    ),
    Mutant(
        "a list is noted before the members are those of it",
        "listing.py",
        "        return after, self.own if is_done else agreed\n",
        "        return after, self.own\n",
        first=10,
    ),
    Mutant(
        "the files change all members at once",
        "listing.py",
        "                return wish.made(members)\n",
        "                members = wish.made(members)\n",
        first=17,
    ),
    Mutant(
        "a voter keeps a newer table to itself",
        "election.py",
        "        newer = own.table if own is not None and own.version > accepted else None\n",
        "        newer = None\n",
        test="tests/sim/test_partial.py::test_somebody_leads_and_goes_on_leading[constrained-5]",
    ),
)
ALL = (*MUTANTS, *NODE_MUTANTS, *SHELL_MUTANTS)


def by_name(name: str) -> Mutant:
    return next(mutant for mutant in ALL if mutant.name == name)


@contextmanager
def sources_with(mutant: Mutant | None) -> Iterator[Path]:
    """A copy of the sources with the fault in it; None: without any."""
    with tempfile.TemporaryDirectory(prefix="gale-mutant-") as made:
        root = Path(made)
        for package in COPIED:
            shutil.copytree(SOURCES / package, root / package, symlinks=True)
        shutil.copy2(SOURCES / "pyproject.toml", root)
        if mutant is not None:
            path = root / mutant.path
            path.write_text(mutant.made_in(path.read_text()))
        yield root


def caught(mutant: Mutant, seeds: int = SEEDS) -> str | None:
    """What the first seed said that failed with it, or its test; None: nothing did.

    Raises RuntimeError if what is to catch it did not even run.
    """
    words = ["-m", "tests.sim", "--lbs", str(mutant.lbs), "--seeds", str(seeds), "--first-failure"]
    words += ["--first", str(mutant.first or 0)]
    start = "seed "
    if mutant.test:
        words, start = ["-m", "pytest", "-q", "-x", *PLUGINS, mutant.test], "FAILED "
    with sources_with(mutant) as root:
        done = _run(root, words)
    if done.returncode == 0:
        return None
    said = [line for line in done.stdout.splitlines() if line.startswith(start)]
    if not said:
        raise RuntimeError(f"{mutant.name}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}")
    return said[-1]


def sound() -> bool:
    """Whether the tests pass in a copy without any fault: else their failing would say nothing."""
    tests = dict.fromkeys(mutant.test for mutant in ALL if mutant.test)
    with sources_with(None) as root:
        done = _run(root, ["-m", "pytest", "-q", *PLUGINS, *tests])
    print(done.stdout.splitlines()[-1], flush=True)
    return done.returncode == 0


def _run(root: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Python with these words, in the copy."""
    # What pytest was told for the tests around this is not meant for those in the copy.
    environment = os.environ | {"PYTHONPATH": str(root), "PYTEST_ADDOPTS": "", **PYTEST}
    return subprocess.run(
        [sys.executable, *words],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def main(names: list[str]) -> int:
    chosen = [by_name(name) for name in names] or ALL
    if any(mutant.test for mutant in chosen) and not sound():
        return 1
    escaped = 0
    for mutant in chosen:
        said = caught(mutant)
        escaped += said is None
        print(f"{'caught ' if said else 'ESCAPED'}  {mutant.name}  ({said})", flush=True)
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
