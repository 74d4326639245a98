"""Every alert rule is provoked in the lab by some test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from e2e import alerts
from tests.api.test_prometheus import alerts as rules

E2E = Path(alerts.__file__).parent


def expected(path: Path) -> Iterator[str]:
    """The alerts that must fire by `check(scrape, [...])`, whatever else may."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "check"
        ):
            yield from ast.literal_eval(node.args[1])


def test_every_alert_is_provoked_in_the_lab() -> None:
    provoked = {each for path in E2E.glob("test_*.py") for each in expected(path)}
    assert provoked == set(rules())
