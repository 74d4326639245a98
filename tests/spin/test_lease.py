"""Leases and grants: no two LBs claim one VIP, in any state that the model can reach.

Each case is looked at completely; each fault that is put in on purpose must be found. README.md
beside this file says which part of the model is which of the code, and that is looked at too.
"""

from __future__ import annotations

import ast
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
QUORUM = HERE.parents[1] / "services" / "quorum"
MODEL = HERE / "lease.pml"
DEEPEST = 100_000
MEGABYTES = 4_000


@dataclass(frozen=True, slots=True)
class Case:
    """What may happen, and how often."""

    epochs: int = 0
    crashes: int = 0
    handovers: int = 0
    promise: int = 1

    def flags(self) -> list[str]:
        return [
            "-DTERMS=2",
            f"-DEPOCHS={self.epochs}",
            f"-DCRASHES={self.crashes}",
            f"-DHANDOVERS={self.handovers}",
            f"-DPROMISE={self.promise}",
        ]


COMPLETE = (
    Case(promise=2),
    Case(epochs=1, handovers=1),
    Case(crashes=1),
)
FAULTS = {
    "NO_PROMISE": Case(),
    "PROMISE_TOO_SHORT": Case(),
    "VOTE_UNDER_OWN_LEASE": Case(epochs=1),
    "LEASE_FROM_ANSWER": Case(),
    "GRANT_FROM_RECEIPT": Case(epochs=1),
    "REASSIGN_EARLY": Case(epochs=1),
    "NO_WAIT_AFTER_HANDOVER": Case(epochs=1, handovers=1),
    "GO_UNDER_LEASE": Case(handovers=1),
    "NO_HOLD_AFTER_START": Case(crashes=1),
    "VOTE_NOT_STORED": Case(crashes=1),
    "RELEASE_BEFORE_CLAIM_ENDS": Case(epochs=1),
    "ANY_RELEASE_COUNTS": Case(epochs=1),
    "VOTE_AFTER_LEADING": Case(epochs=1),
}


def search(folder: Path, case: Case, *flags: str) -> str:
    """What Spin says after it has looked at all states, or found one that must not be."""
    run(folder, "spin", "-a", *case.flags(), *flags, str(MODEL))
    memory = f"-DMEMLIM={MEGABYTES}"
    run(folder, "gcc", "-O1", "-w", "-DSAFETY", memory, "-o", "pan", "pan.c")
    return run(folder, "./pan", f"-m{DEEPEST}", "-w22")


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("case", COMPLETE, ids=str)
def test_no_two_claim_one_vip(case: Case, tmp_path: Path) -> None:
    said = search(tmp_path, case)
    assert re.search(r"errors: 0\b", said), said
    assert "max search depth too small" not in said
    assert "Search not completed" not in said


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault: str, tmp_path: Path) -> None:
    said = search(tmp_path, FAULTS[fault], f"-D{fault}")
    assert "assertion violated" in said, said


def test_each_fault_of_the_model_is_put_in() -> None:
    named = set(re.findall(r"^#if(?:n)?def ([A-Z_]+)$", MODEL.read_text(), re.MULTILINE))
    assert named - {"TERMS", "EPOCHS", "CRASHES", "HANDOVERS", "PROMISE"} == FAULTS.keys()


def rows() -> list[tuple[str, str, str, str]]:
    pattern = r"^\| `(.+?)` \| `(.+?)` \| `(.+?)` \| `(.+)` \|$"
    return re.findall(pattern, (HERE / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[2]}")
def test_what_the_model_says_of_the_code_stands_there(row: tuple[str, str, str, str]) -> None:
    in_model, file, in_code, line = row
    model = MODEL.read_text()
    assert re.search(rf"^(inline|#define) {in_model}\b", model, re.MULTILINE)
    source = (QUORUM / file).read_text()
    found: ast.AST = ast.parse(source)
    for name in in_code.split("."):
        inside = ast.iter_child_nodes(found)
        (found,) = (each for each in inside if getattr(each, "name", "") == name)
    assert line in (ast.get_source_segment(source, found) or "")
