"""The shipped supervisor files under a real supervisord, with stand-ins for the programs.

A stand-in called gale-health does what the file `gale-health.does` beside it says: so a test makes
it end in any way and sees what supervisord does about it. Everything lives in a directory of the
test's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

SHIPPED_DIR = Path(__file__).parents[2] / "conf" / "supervisor"
STAND_IN = """\
#!/bin/sh
. "$0.does"
while :; do sleep 0.1; done
"""
MAIN_CONF = """\
[unix_http_server]
file={home}/s.sock
[supervisord]
logfile={home}/supervisord.log
pidfile={home}/supervisord.pid
environment=PATH="{home}/bin:{path}"
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{home}/s.sock
[include]
files={home}/conf.d/*.conf
"""
AS_ONESELF = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
exec /usr/bin/setpriv --pdeathsig KILL "$@"
"""
"""This machine has none of Gale's users; whose the processes are, e2e/test_rights.py looks at."""
LB_PROGRAMS = ("dataplane", "health", "quorum", "api")


class Machine:
    """A supervisord of its own with both shipped files, as in /etc/supervisor/conf.d."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.conf = home / "supervisord.conf"
        for name in ("bin", "conf.d", "log"):
            (home / name).mkdir()
        for name in (*LB_PROGRAMS, "agent"):
            program = home / "bin" / f"gale-{name}"
            program.write_text(STAND_IN)
            program.chmod(0o755)
            self.does(name, "")
        setpriv = home / "bin" / "setpriv"
        setpriv.write_text(AS_ONESELF)
        setpriv.chmod(0o755)
        for shipped in ("gale.conf", "gale-node.conf", "start"):
            (home / "conf.d" / shipped).symlink_to(SHIPPED_DIR / shipped)
        (home / "conf.d" / "log").symlink_to(home / "log")
        self.conf.write_text(MAIN_CONF.format(home=home, path=_path_without_gale()))

    def does(self, name: str, script: str) -> None:
        (self.home / "bin" / f"gale-{name}.does").write_text(script)

    def start(self) -> None:
        subprocess.run([_found("supervisord"), "-c", str(self.conf)], check=True)
        wait_for(lambda: "gale:api" in self.ctl("status"))

    def ctl(self, *words: str) -> str:
        words = (_found("supervisorctl"), "-c", str(self.conf), *words)
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def state(self, name: str) -> str:
        words = self.ctl("status", name).split()
        return words[1] if len(words) > 1 else ""

    def pid(self, name: str) -> int:
        text = self.ctl("pid", name).strip()
        return int(text) if text.isdigit() else 0

    def kill(self, name: str) -> int:
        """End it, once it runs, as no process sees coming; the pid that it had."""
        wait_for(lambda: self.pid(name))
        pid = self.pid(name)
        assert pid, "0 would be everybody in this process group"
        os.kill(pid, signal.SIGKILL)
        return pid

    def supervisord_pid(self) -> int:
        return int((self.home / "supervisord.pid").read_text())

    def end(self) -> None:
        pids = [self.pid(f"gale:{name}") for name in LB_PROGRAMS] + [self.pid("gale-node:agent")]
        for pid in [self.supervisord_pid(), *filter(None, pids)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def runs_anew(machine: Machine, name: str, killed_pid: int) -> bool:
    return machine.pid(name) not in (0, killed_pid)


def _path_without_gale() -> str:
    """Where programs are looked for, but for where an installed Gale has its own."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(each for each in folders if not Path(each, "gale-api").exists())


def _found(program: str) -> str:
    path = shutil.which(program)
    assert path, f"{program} is not installed"
    return path


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Running, and not merely waiting for its parent to ask how it ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def machine() -> Iterator[Machine]:
    home = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    running = Machine(home)
    running.start()
    yield running
    running.end()
    shutil.rmtree(home)


def test_the_groups_run_under_the_names_operators_use(machine: Machine) -> None:
    assert {machine.state(f"gale:{name}") for name in LB_PROGRAMS} == {"RUNNING"}
    assert machine.state("gale-node:agent") == "RUNNING"


def test_a_killed_process_comes_back_however_often(machine: Machine) -> None:
    for _ in range(5):
        pid = machine.kill("gale:health")
        wait_for(partial(runs_anew, machine, "gale:health", pid))
    assert machine.state("gale:health") == "RUNNING"


def test_a_crash_at_each_start_is_tried_again_and_never_fatal(machine: Machine) -> None:
    machine.does("quorum", "echo started; exit 1")
    machine.kill("gale:quorum")
    wait_for(lambda: (machine.home / "log" / "quorum.log").read_text().count("started") >= 5)
    assert machine.state("gale:quorum") != "FATAL"
    machine.does("quorum", "")
    wait_for(lambda: machine.pid("gale:quorum"))


def test_there_is_a_second_between_tries_whatever_fails(machine: Machine) -> None:
    """All of them at once, and not even a program there is to start."""
    for name in LB_PROGRAMS:
        (machine.home / "bin" / f"gale-{name}").unlink()
    began_s = time.monotonic()
    for name in LB_PROGRAMS:
        machine.kill(f"gale:{name}")
    wait_for(lambda: all(tries(machine, name) >= 6 for name in LB_PROGRAMS))
    took_s = time.monotonic() - began_s
    assert max(tries(machine, name) for name in LB_PROGRAMS) <= took_s + 2
    assert "gale:api" in machine.ctl("status"), "supervisord still answers"


def tries(machine: Machine, name: str) -> int:
    """How often it was tried and not found."""
    return (machine.home / "log" / f"{name}.log").read_text().count("No such file")


@pytest.mark.parametrize("code", [0, 2])
def test_told_to_stop_or_wrongly_configured_it_stays_stopped(machine: Machine, code: int) -> None:
    # Otherwise its very first start may already read what it is to do at the second.
    wait_for(lambda: machine.state("gale:api") == "RUNNING")
    machine.does("api", f"echo why >&2; exit {code}")
    machine.kill("gale:api")
    wait_for(lambda: machine.state("gale:api") == "EXITED")
    assert (machine.home / "log" / "api.log").read_text() == "why\n"
    machine.does("api", "")
    machine.ctl("start", "gale:api")
    assert machine.state("gale:api") == "RUNNING"


def test_children_end_with_supervisord_and_the_next_one_starts_single_copies(
    machine: Machine,
) -> None:
    names = [*(f"gale:{name}" for name in LB_PROGRAMS), "gale-node:agent"]
    wait_for(lambda: all(machine.pid(name) for name in names))
    pids = [machine.pid(name) for name in names]
    assert all(pid and alive(pid) for pid in pids)
    os.kill(machine.supervisord_pid(), signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in pids))
    machine.start()
    assert {machine.state(name) for name in names} == {"RUNNING"}


def test_signals_reach_the_process_itself(machine: Machine) -> None:
    traps = "trap 'echo reloaded' HUP; trap 'echo ending; exit 0' TERM; echo ready"
    machine.does("dataplane", traps)
    machine.ctl("restart", "gale:dataplane")
    log = machine.home / "log" / "dataplane.log"
    wait_for(lambda: "ready" in log.read_text())
    machine.ctl("signal", "HUP", "gale:*")
    wait_for(lambda: "reloaded" in log.read_text())
    machine.ctl("stop", "gale:dataplane")
    assert "ending" in log.read_text()
    assert machine.state("gale:dataplane") == "STOPPED"
