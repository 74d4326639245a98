"""`gale plan`: what is asked, and what is shown of the answer."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.cli.conftest import Gale
from tests.cli.files import LB_CONFIG
from tests.cli.local_api import PLAN, LocalApi


def test_plan_asks_without_applying(api: LocalApi, gale: Gale, tmp_path: Path) -> None:
    api.paths["/v1/plan"] = PLAN
    node = "node-1@10.81.0.21"
    result = gale("plan", "--without", node, "--weight", "node-2@10.81.0.22=50")
    assert result.exit_code == 0
    assert "16 384 slots would move, 304 living flows would be hit" in result.stdout
    (web,) = [line for line in result.stdout.splitlines() if line.startswith("web")]
    assert web.split()[:2] == ["web", "l4"]
    assert api.sent == [
        (
            "/v1/plan",
            {"without": [node], "weights": {"node-2@10.81.0.22": 50}, "services": None},
        )
    ]
    file = tmp_path / "new.toml"
    file.write_text(f'{LB_CONFIG}\n[[services]]\nname = "web"\nport = 80\n')
    assert orjson.loads(gale("plan", str(file), "--json").stdout) == PLAN
    (service,) = api.sent[-1][1]["services"]
    assert (service["name"], service["port"], service["mode"]) == ("web", 80, "l4")


@pytest.mark.parametrize(
    "arguments",
    [(), *(("--weight", text) for text in ("node-1", "=5", "n=-1", "n=", "n=1001"))],
)
def test_a_plan_of_nothing_is_wrong_use(gale: Gale, arguments: tuple[str, ...]) -> None:
    result = gale("plan", *arguments)
    assert result.exit_code == 2
    assert "expected" in result.stderr


def test_plan_of_a_wrong_file_names_its_line(gale: Gale, api: LocalApi, tmp_path: Path) -> None:
    file = tmp_path / "new.toml"
    file.write_text(f"{LB_CONFIG}\nclients_port = 0\n")
    result = gale("plan", str(file))
    assert result.exit_code == 2
    assert f"{file}:" in result.stderr
    assert api.sent == []
