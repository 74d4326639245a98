"""The table of rights, and the three files that must say the same."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RIGHTS = tomllib.loads((ROOT / "conf" / "rights.toml").read_text())
START = ROOT / "conf" / "supervisor" / "start"
KINDS = ("--inh-caps", "--ambient-caps", "--bounding-set")
WITH_A_VALUE = ("--reuid", "--regid", *KINDS)
PRINTS_ITS_WORDS = '#!/bin/sh\nprintf \'%s\\n\' "$(umask)" "$@"\n'


def _started(tmp_path: Path, process: str) -> list[str]:
    """What `start` has setpriv do: the umask, then its words."""
    stand_in = tmp_path / "setpriv"
    stand_in.write_text(PRINTS_ITS_WORDS)
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/sh", START, process, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("process", RIGHTS["processes"])
def test_a_process_is_started_with_the_tables_rights(tmp_path: Path, process: str) -> None:
    umask, *words = _started(tmp_path, process)
    assert umask == "0027"
    rights = RIGHTS["processes"][process]
    given = {name: words[words.index(name) + 1] for name in WITH_A_VALUE}
    assert given["--reuid"] == rights["user"]
    assert given["--regid"] == "gale"
    for kind in KINDS:
        none, *capabilities = given[kind].split(",")
        assert none == "-all"
        assert capabilities == [f"+{name}" for name in rights["capabilities"]]
    assert {"--no-new-privs", "--init-groups"} <= set(words)
    assert words[-4:] == ["--pdeathsig", "KILL", "--", f"gale-{process}"]


def test_supervisord_starts_every_process_of_the_table_and_no_other() -> None:
    started = []
    for path in sorted(START.parent.glob("*.conf")):
        for line in path.read_text().splitlines():
            if line.startswith("command="):
                before, _, after = line.partition("/start ")
                assert before == "command=setpriv --pdeathsig KILL -- %(here)s"
                started.append(after.split())
    assert {name for name, _ in started} == set(RIGHTS["processes"])
    assert {log for _, log in started} == {"%(here)s/log"}


def test_another_process_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(["/bin/sh", START, "other", tmp_path], capture_output=True, check=False)
    assert done.returncode == 2


def test_a_start_within_a_second_of_the_last_one_waits(tmp_path: Path) -> None:
    waits = tmp_path / "sleep"
    waits.write_text(f"#!/bin/sh\necho slept >> {tmp_path}/slept\n")
    waits.chmod(0o755)
    _started(tmp_path, "health")
    assert not (tmp_path / "slept").exists()
    _started(tmp_path, "health")
    assert (tmp_path / "slept").read_text() == "slept\n"


def test_the_packages_make_the_tables_users() -> None:
    lines = (ROOT / "deb" / "common" / "sysusers.conf").read_text().splitlines()
    made = {line.split()[1] for line in lines if line.startswith("u ")}
    assert made == {rights["user"] for rights in RIGHTS["processes"].values()}


def test_the_packages_make_the_tables_directories() -> None:
    lines = (ROOT / "deb" / "common" / "tmpfiles.conf").read_text().splitlines()
    made = {
        path: (owner, group, mode)
        for kind, path, mode, owner, group, _ in (x.split() for x in lines if x[0] != "#")
        if kind == "d"
    }
    ours = {"{GALE_RUN_DIR}": "/run/gale", "{GALE_STATE_DIR}": "/var/lib/gale"}
    for path in RIGHTS["paths"]:
        place = path["path"]
        for name, default in ours.items():
            place = place.replace(name, default)
        if place.startswith(("/run", "/var")) and not place.endswith(".ipc"):
            assert made[place] == (path["owner"], path["group"], path["mode"])
