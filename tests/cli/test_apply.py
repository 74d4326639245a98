"""`gale apply`: what is in place afterwards, and what is said of it."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.cli import apply
from tests.cli.conftest import Gale
from tests.cli.files import LB_CONFIG
from tests.cli.local_api import PLAN, QUORUM, Handler, LocalApi
from tests.cli.processes import TAKEN, Processes

SETTLED = PLAN | {"changes_nothing": True}
COMMIT = "/v1/quorum/commit"
STAGED = asdict(
    replace(
        QUORUM,
        leader="lb-1",
        staged="staged on 1 of 3: lb-0",
        members=[replace(each, staged=True) for each in QUORUM.members],
    )
)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "POLL_S", 0.01)
    monkeypatch.setattr(apply, "STAGED_S", 0.5)


@pytest.fixture
def new_file(tmp_path: Path, api: LocalApi) -> Path:
    api.paths["/v1/plan"] = PLAN
    file = tmp_path / "new.toml"
    file.write_text(f'{LB_CONFIG}api_port = {api.port}\n[[services]]\nname = "web"\nport = 80\n')
    return file


def in_turn(*answers: dict[str, Any]) -> Any:
    """Each once, and the last one from then on."""
    left = list(answers)

    def answer(handler: Handler, _parameters: dict[str, str]) -> None:
        handler.send_json(left.pop(0) if len(left) > 1 else left[0])

    return answer


def refusing(detail: str) -> Any:
    return lambda handler, _: handler.send_json({"title": "Conflict", "detail": detail}, 409)


def test_the_file_is_put_in_place_and_waited_for(
    api: LocalApi, gale: Gale, config: Path, processes: Processes, new_file: Path
) -> None:
    api.paths["/v1/plan"] = in_turn(PLAN, PLAN, SETTLED)
    before = config.read_text()
    result = gale("apply", str(new_file), "--yes")
    assert result.exit_code == 0, result.output
    assert config.read_text() == new_file.read_text()
    assert config.with_name("lb.toml.before").read_text() == before
    assert f"{config} is applied, and the kernel routes by it" in result.stdout
    assert [path for path, _ in api.sent] == ["/v1/plan"] * 3
    assert sorted(processes.reloads) == ["api", "dataplane", "health", "quorum"]


@pytest.mark.usefixtures("processes")
def test_who_may_read_the_one_before_may_read_this(
    api: LocalApi, gale: Gale, config: Path, new_file: Path
) -> None:
    """The processes' group, that is, which root's own new files are not of."""
    api.paths["/v1/plan"] = in_turn(PLAN, SETTLED)
    config.chmod(0o640)
    os.chown(config, 0, 54_321)
    assert gale("apply", str(new_file), "--yes").exit_code == 0
    for path in (config, config.with_name("lb.toml.before")):
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, 0, 54_321)


@pytest.mark.usefixtures("processes")
def test_what_is_staged_waits_for_the_other_lbs(
    api: LocalApi, gale: Gale, config: Path, new_file: Path
) -> None:
    api.paths["/v1/quorum"] = STAGED
    result = gale("apply", str(new_file), "--yes")
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert f"{config} is staged on 1 of 3: lb-0; it holds once every LB that lives" in said
    assert "gale apply there, or gale apply --majority on the one that leads (lb-1)" in said
    assert config.read_text() == new_file.read_text(), "it stays staged"
    told = orjson.loads(gale("apply", str(new_file), "--yes", "--json").stdout)
    assert (told["ok"], told["settled"], told["staged"]) == (False, False, STAGED["staged"])
    assert all(path != COMMIT for path, _ in api.sent), "nobody asked for that"


@pytest.mark.usefixtures("processes")
def test_another_lbs_staged_file_is_not_waited_for(
    api: LocalApi, gale: Gale, new_file: Path
) -> None:
    other = replace(QUORUM.members[0], name="lb-1", staged=True)
    members = [*QUORUM.members, other]
    api.paths["/v1/quorum"] = asdict(
        replace(QUORUM, staged="staged on 1 of 2: lb-1", members=members)
    )
    api.paths["/v1/plan"] = in_turn(PLAN, SETTLED)
    assert gale("apply", str(new_file), "--yes").exit_code == 0


@pytest.mark.usefixtures("processes")
def test_a_majority_is_enough_where_the_leader_is_told_so(
    api: LocalApi, gale: Gale, new_file: Path
) -> None:
    """It may not have heard yet that the others have staged the same."""
    refusals = ["staged on 1 of 3: that is no majority"]

    def commit(handler: Handler, _parameters: dict[str, str]) -> None:
        if refusals:
            refusing(refusals.pop())(handler, {})
            return
        api.paths["/v1/quorum"] = asdict(QUORUM)
        api.paths["/v1/plan"] = SETTLED
        handler.send_json({"agreed": "0123"})

    api.paths |= {"/v1/quorum": STAGED, COMMIT: commit}
    result = gale("apply", str(new_file), "--yes", "--majority")
    assert result.exit_code == 0, result.output
    assert [path for path, _ in api.sent].count(COMMIT) == 2


@pytest.mark.usefixtures("processes")
def test_who_does_not_lead_says_who_does(api: LocalApi, gale: Gale, new_file: Path) -> None:
    api.paths |= {"/v1/quorum": STAGED, COMMIT: refusing("lb-1 leads: ask there")}
    result = gale("apply", str(new_file), "--yes", "--majority")
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "staged on 1 of 3: lb-0;" in said
    assert "gale apply there, without them: lb-1 leads: ask there" in said


@pytest.mark.usefixtures("processes")
def test_what_does_not_come_into_force_says_where_to_look(
    monkeypatch: pytest.MonkeyPatch, gale: Gale, config: Path, new_file: Path
) -> None:
    monkeypatch.setattr(apply, "SETTLE_S", 0.1)
    result = gale("apply", str(new_file), "--yes")
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert f"{config} is not in force after 0 s: gale status says what is missing" in said
    assert f"the file before it is {config}.before" in said


def test_what_one_process_refuses_is_taken_back(
    gale: Gale, config: Path, processes: Processes, new_file: Path
) -> None:
    before = config.read_text()
    processes.answers["quorum"] = TAKEN | {"applied": False, "problems": ["new.toml:3: x: y"]}
    result = gale("apply", str(new_file), "--yes")
    assert result.exit_code == 1
    assert config.read_text() == before
    assert processes.reloads.count("quorum") == 2
    assert "new.toml:3: x: y" in result.stdout
    assert f"it is refused, and not in force; {config} is as it was" in result.stdout


def test_a_key_that_waits_for_a_restart_is_said(
    api: LocalApi, gale: Gale, processes: Processes, new_file: Path
) -> None:
    api.paths["/v1/plan"] = SETTLED
    processes.answers["health"] = TAKEN | {"restart_needed": ["local.name"]}
    result = gale("apply", str(new_file), "--yes")
    assert result.exit_code == 1
    assert "local.name: not before a restart" in result.stdout


def test_it_asks_first(gale: Gale, config: Path, new_file: Path) -> None:
    before = config.read_text()
    result = gale("apply", str(new_file))
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert config.read_text() == before


def test_a_wrong_file_changes_nothing(
    api: LocalApi, gale: Gale, config: Path, processes: Processes, new_file: Path
) -> None:
    before = config.read_text()
    new_file.write_text(f"{LB_CONFIG}clients_port = 0\n")
    result = gale("apply", str(new_file), "--yes")
    assert result.exit_code == 2
    assert f"{new_file}:5: local.clients_port" in result.stderr
    assert (config.read_text(), processes.reloads, api.sent) == (before, [], [])
