"""What the programs ask of a kernel is what docs/operating.md says, and no more than the README's
minimum has.

The compiled programs are read: which helpers they call, and whether they use atomic instructions
that return what was there. A helper's number is its place in the kernel's own list, which only ever
grows at its end, so the versions in the table must rise with the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpf.compiler import compile_images
from e2e.vm.variants import variants
from services.cli.doctor.system import OLDEST_KERNEL, TESTED_KERNEL
from tests.bpf.harness import IMAGES

ROOT = Path(__file__).parents[2]
HEADER = Path("/usr/include/linux/bpf.h")
ROW = re.compile(r"^\| `(\w+)` \| (\d+)\.(\d+) \| ([\w, ]+) \|$", re.MULTILINE)
SIZE = 8
CALL, FETCH = 0x85, 1
ATOMIC = (0xC3, 0xDB)
FETCHING = "fetch_and_add"
"""The table's name of the instruction."""
HOOKS = {"xdp": "XDP", "tc": "TC"}

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Row:
    version: Version
    hooks: frozenset[str]


def table() -> dict[str, Row]:
    text = (ROOT / "docs" / "operating.md").read_text()
    return {
        name: Row((int(major), int(minor)), frozenset(hooks.split(", ")))
        for name, major, minor, hooks in ROW.findall(text)
    }


def numbers() -> dict[int, str]:
    """Helpers by number, from the list of the system's header."""
    listed = HEADER.read_text().partition("_BPF_FUNC_MAPPER(FN")[2].partition("\n\n")[0]
    names = re.findall(r"\bFN\((\w+)", listed)
    assert names[:2] == ["unspec", "map_lookup_elem"]
    return {number: f"bpf_{name}" for number, name in enumerate(names)}


def wanted_by(code: bytes, names: dict[int, str]) -> Iterator[str]:
    for at in range(0, len(code), SIZE):
        opcode, immediate = code[at], int.from_bytes(code[at + 4 : at + SIZE], "little")
        if opcode == CALL and not code[at + 1] >> 4:
            yield names[immediate]
        if opcode in ATOMIC and immediate & FETCH:
            yield FETCHING


@pytest.fixture(scope="module")
def wanted() -> dict[str, set[str]]:
    """By helper, the kinds of program that call it, in whichever way they are built."""
    names, found = numbers(), dict[str, set[str]]()
    for variant in variants():
        images = compile_images(variant.paths, variant.defines, IMAGES)
        by_source = dict(zip(variant.sources, images, strict=True))
        for source, function, kind in variant.programs:
            for name in wanted_by(by_source[source].functions[function].code, names):
                found.setdefault(name, set()).add(HOOKS[kind])
    return found


@pytest.mark.timeout(400)  # all variants are compiled: a minute on a quiet machine
def test_the_table_names_each_helper_and_who_calls_it(wanted: dict[str, set[str]]) -> None:
    assert {name: set(row.hooks) for name, row in table().items()} == wanted


def test_versions_rise_with_the_numbers_of_helpers() -> None:
    rows = table()
    versions = [rows[name].version for _, name in sorted(numbers().items()) if name in rows]
    assert versions == sorted(versions)
    assert len(versions) >= len(rows) - 1


def test_the_readme_asks_for_no_older_kernel_than_the_programs_do() -> None:
    match = re.search(r"Linux (\d+)\.(\d+) or later", (ROOT / "README.md").read_text())
    assert match is not None
    oldest = int(match[1]), int(match[2])
    assert max(row.version for row in table().values()) <= oldest
    assert oldest == TESTED_KERNEL


def test_what_is_said_of_older_kernels_follows_from_the_table() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    for hook in HOOKS.values():
        major, minor = max(row.version for row in table().values() if hook in row.hooks)
        assert f"{hook} wants {major}.{minor}" in text
    assert max(row.version for row in table().values() if "TC" in row.hooks) == OLDEST_KERNEL
