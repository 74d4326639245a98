"""What `gale` says when the API is away, slow, wrong, or somebody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import client as client_module
from services.cli.main import app
from tests.cli.conftest import Gale
from tests.cli.files import LB_CONFIG
from tests.cli.local_api import Handler, LocalApi

COMMANDS = ["status", "nodes", "services", "flows", "quorum", "events"]


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and nobody else takes meanwhile."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.mark.parametrize("arguments", [*COMMANDS, "status --watch", "events --follow"])
def test_an_api_that_is_not_there_is_one_helpful_line(
    tmp_path: Path, closed_port: int, arguments: str
) -> None:
    path = tmp_path / "lb.toml"
    path.write_text(f"{LB_CONFIG}api_port = {closed_port}\n")
    for more in ([], ["--json"]):
        result = CliRunner().invoke(app, ["-c", str(path), *arguments.split(), *more])
        assert result.exit_code == 1
        assert result.stdout == ""
        line = one_line(result.stderr)
        assert line.startswith(f"http://127.0.0.1:{closed_port}: the API of this LB does not")
        assert "supervisorctl status 'gale:*'" in line


def test_the_apis_own_problem_is_said_in_its_words(api: LocalApi, gale: Gale) -> None:
    def problem(handler: Handler, _parameters: dict[str, str]) -> None:
        handler.send_json({"title": "x", "detail": "health has not spoken"}, 503)

    api.paths["/v1/nodes"] = problem
    result = gale("nodes")
    assert result.exit_code == 1
    assert one_line(result.stderr) == f"http://127.0.0.1:{api.port}/v1/nodes: health has not spoken"


def test_a_question_that_has_no_answer_is_wrong_use(api: LocalApi, gale: Gale) -> None:
    detail = "limit: Input should be less than or equal to 10000"
    api.paths["/v1/flows"] = lambda handler, _: handler.send_json({"detail": detail}, 400)
    result = gale("flows", "--limit", "99999")
    assert result.exit_code == 2
    assert one_line(result.stderr).endswith(f"/v1/flows: {detail}")


def test_an_error_without_a_problem_is_its_status(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/nodes"] = lambda handler, _: handler.send_raw(b"oops", 502)
    result = gale("nodes")
    assert result.exit_code == 1
    assert one_line(result.stderr).endswith("/v1/nodes: 502 Bad Gateway")


def test_another_server_on_the_port_is_seen_as_such(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/nodes"] = lambda handler, _: handler.send_raw(b"<html>")
    result = gale("nodes")
    assert result.exit_code == 1
    assert "this is not Gale's API" in one_line(result.stderr)


def test_an_api_that_hangs_is_given_up(
    api: LocalApi, gale: Gale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "TIMEOUT_S", 0.2)
    api.paths["/v1/nodes"] = lambda handler, _: handler.connection.recv(1)
    result = gale("nodes")
    assert result.exit_code == 1
    assert "no answer in time" in one_line(result.stderr)


def test_a_proxy_of_the_environment_is_not_asked(
    gale: Gale, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    assert gale("nodes").exit_code == 0


def test_a_nodes_file_is_wrong_use(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[load_balancer]\naddresses = [{ ip = "10.81.0.10", port = 7070 }]\n')
    result = CliRunner().invoke(app, ["-c", str(path), "status"])
    assert result.exit_code == 2
    assert "this is a node's file" in one_line(result.stderr)


def test_a_bad_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "lb.toml"
    path.write_text(LB_CONFIG + "api_port = 0\n")
    result = CliRunner().invoke(app, ["-c", str(path), "status"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{path}:5: local.api_port: ")
