"""How docs/day-with-gale.md is read and written, without a lab."""

from __future__ import annotations

import re

import pytest

from e2e.day import PAGE, Step, masked, renewed, steps

TEXT = """\
# A page

<!-- append /etc/gale/lb.toml on lb-0 lb-1 -->
```toml
[x]
y = 1
```

A block that nobody runs:

```toml
z = 1
```

<!-- until a.b -->
<!-- in any order -->
```console
lb-0# gale status
one
two
client$ curl x | sort
```

<!-- holder lb-2 -->
```console
lab$ gale lab fault cut lb-2
lb-0# gale quorum
```
"""


def test_a_page_is_steps() -> None:
    assert steps(TEXT) == [
        Step(4, ("lb-0", "lb-1"), "[x]\ny = 1", "", file="/etc/gale/lb.toml"),
        Step(18, ("lb-0",), "gale status", "one\ntwo\n", "a.b", any_order=True),
        Step(21, ("client",), "curl x | sort", "", "a.b", any_order=True),
        Step(26, ("lab",), "gale lab fault cut lb-2", "", holder="lb-2"),
        Step(27, ("lb-0",), "gale quorum", ""),
    ]


def test_outputs_are_written_where_they_belong() -> None:
    found = steps(TEXT)
    outputs = ["", "three\n", "four\nfive\n", "", "six\n"]
    page = renewed(TEXT, list(zip(found, outputs, strict=True)))
    assert [step.output for step in steps(page)] == outputs
    assert renewed(page, [(step, step.output) for step in steps(page)]) == page
    again = renewed(page, [(new, old.output) for new, old in zip(steps(page), found, strict=True)])
    assert again == TEXT


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("heard   91 ms\n", "heard 1.2 s\n", True),
        ("21 804   33.3 %", "9   4 %", True),
        ("lb-0 is leader, term 1", "lb-0 is follower, term 22", True),
        ("────\nin  8.3 kB", "──────\nin 0 B", True),
        ("id 082d8cbb792a92c6", "id aaaaaaaaaaaaaaaa", True),
        ("node-1 up", "node-1 down", False),
        ("alive yes", "alive no", False),
        ("a\nb", "b\na", False),
        ("it has 14 flows", "it has flows", False),
    ],
)
def test_what_must_be_the_same(one: str, other: str, same: bool) -> None:
    assert (masked(one) == masked(other)) == same


def test_lines_in_any_order() -> None:
    assert masked("b 1\na 2\n", any_order=True) == masked("a 5\nb 7\n", any_order=True)


def test_the_page_fits_its_own_conditions() -> None:
    """Made by `python -m e2e.day`: an output that its own condition refuses would never be met."""
    for step in steps(PAGE.read_text()):
        assert re.search(step.until, step.output), f"{PAGE}:{step.line}"
