"""`gale reload`: what the four processes are asked, and what is said of their answers."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.cli.conftest import Gale
from tests.cli.files import LB_CONFIG
from tests.cli.processes import TAKEN, Processes


def test_reload_waits_for_all_four(gale: Gale, processes: Processes) -> None:
    result = gale("reload")
    assert result.exit_code == 0, result.output
    assert sorted(processes.reloads) == ["api", "dataplane", "health", "quorum"]
    assert result.stdout.count("runs it") == 4


def test_reload_says_what_waits_for_a_restart_or_is_refused(
    gale: Gale, processes: Processes
) -> None:
    processes.answers["health"] = TAKEN | {"restart_needed": ["local.name"]}
    result = gale("reload")
    assert result.exit_code == 1
    assert "local.name: not before a restart -> supervisorctl restart" in result.stdout
    processes.answers["health"] = TAKEN | {"applied": False, "problems": ["lb.toml:3: x: y"]}
    result = gale("reload", "--json")
    assert result.exit_code == 1
    told = {each["process"]: each for each in orjson.loads(result.stdout)["processes"]}
    assert told["health"]["problems"] == ["lb.toml:3: x: y"]


def test_a_process_that_is_not_there_is_named(
    gale: Gale, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GALE_RUN_DIR", str(tmp_path))
    monkeypatch.setattr("services.cli.reload.TIMEOUT_MS", 50)
    result = gale("reload")
    assert result.exit_code == 1
    assert "no answer; see supervisorctl status gale:dataplane" in result.stdout


def test_a_wrong_file_is_shown_to_nobody(gale: Gale, config: Path, processes: Processes) -> None:
    config.write_text(f"{LB_CONFIG}\nclients_port = 0\n")
    result = gale("reload")
    assert result.exit_code == 2
    assert processes.reloads == []
