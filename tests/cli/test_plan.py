"""`gale plan`, `reload` and `apply`: what is asked of whom, and what is in place afterwards."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq

from bus import topics
from bus.commands import CommandServer
from tests.cli.conftest import Gale
from tests.cli.files import LB_CONFIG
from tests.cli.local_api import LocalApi

PLAN: dict[str, Any] = {
    "services": [
        {
            "service": "web",
            "mode": "l4",
            "change": "",
            "slots_moved": 16_384,
            "share_moved": 0.25,
            "flows": 1_200,
            "flows_reset": 300,
            "flows_moved": 4,
            "flows_left": 0,
        }
    ],
    "nodes": [{"node": "node-1@10.81.0.21", "slots": 16_384, "slots_after": 0}],
    "refused": [],
    "slots_moved": 16_384,
    "flows_hit": 304,
    "changes_nothing": False,
}
TAKEN = {"applied": True, "problems": [], "restart_needed": []}


class Processes:
    """The four of them, each answering `reload` as it is told to."""

    def __init__(self, run_dir: Path) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.reloads: list[str] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stopping = threading.Event()
        (run_dir / "bus").mkdir()
        names = (topics.QUORUM, topics.DATAPLANE, topics.HEALTH, topics.API)
        self.servers = {
            name: CommandServer(self._context, topics.command_path(run_dir, name)) for name in names
        }
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping.wait(0.01):
            for name, server in self.servers.items():
                server.serve(partial(self._answer, name))
        for server in self.servers.values():
            server.close()
        self._context.term()

    def _answer(self, name: str, _verb: str, _arguments: dict[str, Any]) -> dict[str, Any]:
        self.reloads.append(name)
        return self.answers.get(name, TAKEN)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    # pytest's own folders have names that are too long for a socket.
    with tempfile.TemporaryDirectory(prefix="gale-", dir="/tmp") as run_dir:
        monkeypatch.setenv("GALE_RUN_DIR", run_dir)
        made = Processes(Path(run_dir))
        yield made
        made.stop()


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
    "arguments", [(), ("--weight", "node-1"), ("--weight", "=5"), ("--weight", "n=-1")]
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


@pytest.fixture
def new_file(tmp_path: Path, api: LocalApi) -> Path:
    file = tmp_path / "new.toml"
    file.write_text(f'{LB_CONFIG}api_port = {api.port}\n[[services]]\nname = "web"\nport = 80\n')
    return file


def test_apply_puts_the_file_in_place_and_waits(
    api: LocalApi, gale: Gale, config: Path, processes: Processes, new_file: Path
) -> None:
    answers = iter([PLAN, PLAN, PLAN | {"changes_nothing": True}])
    api.paths["/v1/plan"] = lambda handler, _: handler.send_json(next(answers))
    before = config.read_text()
    result = gale("apply", str(new_file), "--yes")
    assert result.exit_code == 0, result.output
    assert config.read_text() == new_file.read_text()
    assert config.with_name("lb.toml.before").read_text() == before
    assert f"{config} is applied, and the kernel routes by it" in result.stdout
    assert len(api.sent) == 3
    assert sorted(processes.reloads) == ["api", "dataplane", "health", "quorum"]


def test_what_one_process_refuses_is_taken_back(
    api: LocalApi, gale: Gale, config: Path, processes: Processes, new_file: Path
) -> None:
    api.paths["/v1/plan"] = PLAN
    before = config.read_text()
    processes.answers["quorum"] = TAKEN | {"applied": False, "problems": ["staged on 1 of 3"]}
    result = gale("apply", str(new_file), "--yes")
    assert result.exit_code == 1
    assert config.read_text() == before
    assert processes.reloads.count("quorum") == 2
    assert "staged on 1 of 3" in result.stdout
    assert "it is not in force" in result.stdout


def test_apply_asks_first(api: LocalApi, gale: Gale, config: Path, new_file: Path) -> None:
    api.paths["/v1/plan"] = PLAN
    before = config.read_text()
    result = gale("apply", str(new_file))
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert config.read_text() == before
