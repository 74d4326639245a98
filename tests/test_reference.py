"""docs/reference/ is what the code says."""

from __future__ import annotations

import pytest

from tests.reference import DIRECTORY, FILES, comments_of, keys_of, pages

MADE = pages()


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_up_to_date(name: str) -> None:
    assert (DIRECTORY / name).read_text() == MADE[name], "make reference"


def test_no_page_is_left_over() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == set(MADE)


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_there_and_means_something(name: str) -> None:
    model, _ = FILES[name]
    rows = {tuple(line.split(" | ")[:1]): line for line in MADE["keys.md"].splitlines()}
    for _, key, _, _ in keys_of(model):
        line = rows[f"| `{key}`",]
        assert len(line.rsplit(" | ", 1)[-1].rstrip(" |")) > 5, line


def test_comments_are_read_as_people_do() -> None:
    text = """\
[first]
# What both are.
# of both
# a = 1
# b = 2

# Alone.
# c = 3  # three
#        # of them

# [[second]]
# d = 4
"""
    assert comments_of(text) == {
        ("[first]", "a"): "What both are. of both",
        ("[first]", "b"): "What both are. of both",
        ("[first]", "c"): "three of them",
        ("[[second]]", "d"): "",
    }
