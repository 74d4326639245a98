"""What the commands of `gale` run against."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from tests.cli.files import LB_CONFIG
from tests.cli.local_api import LocalApi
from tests.cli.network import Namespace
from tests.cli.processes import Processes

Gale = Callable[..., Result]


@pytest.fixture
def api() -> Iterator[LocalApi]:
    server = LocalApi()
    yield server
    server.stop()


@pytest.fixture
def config(tmp_path: Path, api: LocalApi) -> Path:
    """An LB's file whose API is the local one."""
    path = tmp_path / "lb.toml"
    path.write_text(f"{LB_CONFIG}api_port = {api.port}\n")
    return path


@pytest.fixture
def gale(config: Path) -> Gale:
    """Run one command: `gale("nodes", "--json")`."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["-c", str(config), *arguments])

    return run


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    # pytest's own folders have names that are too long for a socket.
    with tempfile.TemporaryDirectory(prefix="gale-", dir="/tmp") as run_dir:
        monkeypatch.setenv("GALE_RUN_DIR", run_dir)
        made = Processes(Path(run_dir))
        yield made
        made.stop()
