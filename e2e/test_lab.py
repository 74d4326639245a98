"""The lab's own promises: it survives being killed, does the faults it names, leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.hosts import wait_for
from e2e.lab import network, plan

GALE = Path(sys.executable).with_name("gale")
UP_S = 150


def gale(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GALE, *words], capture_output=True, text=True, timeout=UP_S, check=False)


@pytest.fixture(scope="module")
def lab() -> Iterator[None]:
    """A lab by the command, after an earlier one was killed halfway up."""
    with subprocess.Popen([GALE, "lab", "up"], stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stderr is not None
        for line in killed.stderr:
            if "starting supervisord on lb-0" in line:
                killed.kill()
                break
    done = gale("lab", "up")
    assert done.returncode == 0, done.stderr
    yield
    gale("lab", "down")


def test_exec_runs_there_with_that_machines_environment(lab: None) -> None:
    environment = gale("lab", "exec", "lb-0", "--", "env").stdout
    assert "GALE_BPF_DIR=/run/gale/lab/lb-0/bpf\n" in environment
    shown = gale("lab", "exec", "client", "--", "ip", "-brief", "address", "show", "pub0").stdout
    assert "10.80.0.2/24" in shown


def test_exec_hands_on_the_exit_code(lab: None) -> None:
    assert gale("lab", "exec", "router", "--", "sh", "-c", "exit 7").returncode == 7


def test_names_that_do_not_exist_are_answered_by_those_that_do(lab: None) -> None:
    done = gale("lab", "exec", "lb-7", "--", "true")
    assert done.returncode == 1
    assert "lb-0" in done.stderr
    done = gale("lab", "fault", "kill", "lb-0", "agent")
    assert done.returncode == 1
    assert "health" in done.stderr


def test_status_names_every_machine_and_process(lab: None) -> None:
    shown = json.loads(gale("lab", "status", "--json").stdout)
    machines = {machine["name"]: machine for machine in shown["machines"]}
    assert set(machines) == {"client", "router", "lb-0", "node-0", "node-1", "node-2"}
    assert machines["lb-0"]["processes"] == {f"gale:{name}": "RUNNING" for name in plan.PROCESSES}
    assert machines["node-2"]["processes"]["gale-node:agent"] == "RUNNING"


def state_of(node: str) -> str:
    with urllib.request.urlopen("http://127.0.0.1:5560/v1/nodes", timeout=5) as answer:
        nodes = json.load(answer)["nodes"]
    return str(next(one["state"] for one in nodes if one["name"] == node))


@pytest.mark.parametrize(
    ("breaking", "mending"),
    [(("stop", "node-1"), ("start", "node-1")), (("cut", "node-2"), ("heal", "node-2"))],
)
def test_a_nodes_faults(lab: None, breaking: tuple[str, str], mending: tuple[str, str]) -> None:
    node = breaking[1]
    assert gale("lab", "fault", *breaking).returncode == 0
    wait_for(lambda: state_of(node) == "down", f"{node} down")
    assert gale("lab", "fault", *mending).returncode == 0
    wait_for(lambda: state_of(node) == "up", f"{node} up")


def health_pid() -> int:
    return int(gale("lab", "exec", "lb-0", "--", *supervisorctl("pid", "gale:health")).stdout)


def health_state() -> str:
    """What the kernel shows: S, T (stopped), ..."""
    return Path(f"/proc/{health_pid()}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_is_paused_resumed_and_killed(lab: None) -> None:
    assert gale("lab", "fault", "pause", "lb-0", "health").returncode == 0
    wait_for(lambda: health_state() == "T", "health to stand still")
    assert gale("lab", "fault", "resume", "lb-0", "health").returncode == 0
    wait_for(lambda: health_state() != "T", "health to go on")
    pid = health_pid()
    assert gale("lab", "fault", "kill", "lb-0", "health").returncode == 0
    wait_for(lambda: health_pid() not in (0, pid), "a new health process")


def supervisorctl(*words: str) -> tuple[str, ...]:
    return ("supervisorctl", "-c", "/run/gale/lab/lb-0/supervisord.conf", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shared", "--witness"), "there is no machine"),
        (("--lbs", "7", "--witness"), "7 vote at most"),
        (("--mode", "l5"), "expected l2, l3 or l4"),
    ],
)
def test_a_lab_that_cannot_be_is_refused(words: tuple[str, ...], said: str) -> None:
    done = gale("lab", "up", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_down_leaves_nothing_behind(lab: None) -> None:
    assert gale("lab", "down").returncode == 0
    assert not plan.ROOT_DIR.exists()
    assert "/run/gale/lab" not in Path("/proc/self/mountinfo").read_text()
    assert not network.existing()
    assert not [words for words in command_lines() if "/run/gale/lab" in words]
    assert gale("lab", "down").returncode == 0, "nothing to do is no error"
    assert gale("lab", "status").returncode == 1


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
