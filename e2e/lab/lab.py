"""The lab as a whole: up, down, who runs, and what can be done to it.

    up      clears what is left of another lab, writes the files, builds the network, starts one
            supervisord per LB and node and a forwarder per API, and waits until it serves
    down    kills whatever lives in the lab's namespaces, unmounts, removes the namespaces

Ready means seen, not assumed: every LB's API says that all four processes are heard and that every
node is up with a share of the ring, and then real requests have been answered by every node.

What is started here outlives the command: supervisord makes itself a daemon, a forwarder gets a
session of its own. Nothing is ever ended by its name. Whoever is in a namespace of the lab belongs
to the lab, also after its command was killed halfway: so `down` and the next `up` find everything.

Only one command at a time builds or uses the lab (`exclusive`): its names exist once per machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.lab import files, images, network, plan, users
from e2e.lab.network import LabError
from e2e.lab.plan import Plan
from e2e.traffic import LOAD_PROGRAM, read_results

SERVER = "server"
SUPERVISORD = "supervisord"
API_PORT = 5555
READY_TIMEOUT_S = 90.0
HEARD_MS = 3000
EMULATED_PATIENCE = 6
"""How many times as long an emulated machine may take."""
TAIL_LINES = 12
LOCK_NAME = "\0gale-lab"
"""An abstract socket: it goes away with its owner, and leaves no file."""

Say = Callable[[str], None]
_without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def exclusive(say: Say) -> Iterator[None]:
    """Wait until no other command, demo or test run is using the lab, and keep others waiting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        waiting = False
        while True:
            try:
                lock.bind(LOCK_NAME)
                break
            except OSError:
                if not waiting:
                    say("another command is using the lab; waiting for it to end")
                waiting = True
                time.sleep(0.2)
        yield


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces and mounts: run this as root (sudo)")


@dataclass(frozen=True)
class Lab:
    """A lab that is up, or about to be."""

    plan: Plan

    @classmethod
    def find(cls) -> Lab:
        """The lab that is up now."""
        try:
            return cls(Plan(**json.loads(files.PLAN_FILE.read_text())))
        except (OSError, ValueError, TypeError):
            raise LabError("no lab is up; `gale lab up` builds one") from None

    # ------------------------------------------------------------------ up and down

    def up(self, say: Say, extra: Path | None = None) -> None:
        require_root()
        overlay = files.read_extra(self.plan, extra)
        down(say)
        say("writing configuration and what the servers serve")
        files.write_all(self.plan, overlay)
        images.fill(plan.home(self.plan.lb_names[0]) / "lb.toml", files.IMAGES_DIR)
        say(f"building the network of {len(self.plan.machines)} machines")
        outer = files.uses_outer_headers(self.plan, overlay)
        network.build(
            self.plan,
            plan.OUTER_BYTES_ROOM if outer else 0,
            replies_by_xdp=files.replies_by_xdp(self.plan, overlay),
        )
        for machine in reversed(self.plan.supervised):
            say(f"starting supervisord on {machine}")
            self.start_supervisord(machine)
        for lb in self.plan.lb_names:
            self._start_forwarder(lb)
        self._wait_until_it_serves(say, files.web_port(self.plan, overlay))

    def start_supervisord(self, machine: str) -> None:
        """Start it, or start it again after it was killed; returns once it can be asked."""
        words = [_program("supervisord"), "-c", str(plan.supervisor_conf(machine))]
        environment = {**plan.environment(machine), "LANG": "C.UTF-8"}
        done = subprocess.run(
            [*plan.enter(machine), *users.as_a_machine(), *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise LabError(f"supervisord of {machine}: {done.stderr.strip()}")
        _wait_for(
            lambda: self.supervisorctl(machine, "pid").returncode == 0,
            f"supervisord of {machine} does not answer",
        )

    def _start_forwarder(self, lb: str) -> None:
        port = self.plan.api_port(lb)
        netns = plan.NETNS_DIR / plan.namespace(lb)
        program = Path(__file__).with_name("forwarder.py")
        with (plan.home(lb) / "log" / "forwarder.log").open("w") as log:
            words = [sys.executable, str(program), str(port), str(netns), str(API_PORT)]
            subprocess.run(
                ["setsid", "--fork", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )

    def _wait_until_it_serves(self, say: Say, web_port: int | None) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S * self._patience
        said = ""
        while problem := self._missing(web_port):
            if problem != said:
                say(problem)
                said = problem
            if time.monotonic() > deadline:
                raise LabError(self._what_went_wrong(problem))
            time.sleep(0.2)

    @property
    def _patience(self) -> int:
        return EMULATED_PATIENCE if self.plan.emulated else 1

    def _missing(self, web_port: int | None) -> str:
        """What keeps the lab from serving; empty when nothing does."""
        for lb in self.plan.lb_names:
            if problem := self._control_missing(lb):
                return f"{lb}: {problem}"
        if problem := self._agreement_missing():
            return problem
        if self.plan.floating and (problem := self._holder_missing()):
            return problem
        if not web_port:
            return ""
        for lb in self.plan.lb_names[:1] if self.plan.floating else self.plan.lb_names:
            if absent := self._not_answering(lb, web_port):
                return f"{lb}: no answer yet through {self.plan.vip(lb)} from {', '.join(absent)}"
        return ""

    def _control_missing(self, lb: str) -> str:
        try:
            processes = self.api(lb, "/v1/status")["processes"]
            nodes = self.api(lb, "/v1/nodes")["nodes"]
        except (OSError, ValueError, KeyError) as error:
            return f"the API does not answer yet ({error})"
        # Silence is an age of None, or one that has grown.
        ages = {name: processes.get(name, {}).get("age_ms") for name in plan.PROCESSES}
        silent = [
            name for name, age in ages.items() if age is None or age > HEARD_MS * self._patience
        ]
        if silent:
            return f"not heard of yet: {', '.join(silent)}"
        routed = {node["name"] for node in nodes if node["state"] == "up" and node["share"]}
        if absent := [name for name in self.plan.node_names if name not in routed]:
            return f"not routed to yet: {', '.join(absent)}"
        return ""

    def _agreement_missing(self) -> str:
        """What the LBs do not agree on yet."""
        if not self.plan.voters:
            return ""
        try:
            states = {lb: self.api(lb, "/v1/quorum") for lb in self.plan.lb_names}
        except (OSError, ValueError) as error:
            return f"the API does not answer yet ({error})"
        leaders = {state["leader"] for state in states.values()}
        if len(leaders) > 1 or None in leaders:
            told = ", ".join(f"{lb} follows {state['leader']}" for lb, state in states.items())
            return f"no leader yet: {told}"
        tables = {(state["term"], state["epoch"]) for state in states.values()}
        return f"not one table yet: {sorted(tables)}" if len(tables) > 1 else ""

    def _holder_missing(self) -> str:
        holders = [lb for lb in self.plan.lb_names if self.holds_the_vip(lb)]
        if len(holders) == 1:
            return ""
        return f"{plan.VIP} is held by {', '.join(holders) or 'no LB yet'}"

    def holds_the_vip(self, lb: str) -> bool:
        """Whether the LB's kernel answers for it."""
        try:
            dataplane = self.api(lb, "/v1/status")["dataplane"]
        except (OSError, ValueError, KeyError):
            return False
        claims = dataplane["claims"] if dataplane is not None else []
        return any(each["held"] and each["address"] == plan.VIP for each in claims)

    def _not_answering(self, lb: str, port: int | None) -> list[str]:
        count = 20 * len(self.plan.node_names)
        rate = 100 / self._patience
        arguments = [self.plan.vip(lb), str(port), "--timeout", str(self._patience)]
        arguments += ["--rate", str(rate), "--seconds", str(count / rate)]
        done = self.run(plan.CLIENT, ["python3", "-c", LOAD_PROGRAM, *arguments])
        answered = {result.answer for result in read_results(done.stdout.splitlines())}
        return [name for name in self.plan.node_names if name not in answered]

    def _what_went_wrong(self, problem: str) -> str:
        return (
            f"the lab does not serve after {READY_TIMEOUT_S * self._patience:.0f} s: {problem}\n"
            f"{self.log_tails()}\n"
        )

    def log_tails(self) -> str:
        """What supervisord says of each machine, and the last lines of its processes' logs."""
        parts = []
        for machine in self.plan.supervised:
            parts.append(f"\n== {machine}\n{self.supervisorctl(machine, 'status').stdout.rstrip()}")
            for log in sorted((plan.home(machine) / "log").glob("*.log")):
                lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
                if lines and log.stem != SUPERVISORD:
                    parts.append(f"-- {log}\n" + "\n".join(lines))
        return "\n".join(parts)

    # ------------------------------------------------------------------ use

    def run(
        self, machine: str, words: list[str], timeout_s: float = 60.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(machine, words),
            env=self.environment(machine),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, machine: str, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(machine, words),
            env=self.environment(machine),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, machine: str, words: list[str]) -> list[str]:
        """The words that run a command on a machine."""
        return [*plan.enter(self.known(machine)), *words]

    def environment(self, machine: str) -> dict[str, str]:
        self.known(machine)
        return {**os.environ, **plan.environment(machine)}

    def known(self, machine: str) -> str:
        if machine not in self.plan.machines:
            raise LabError(f"no {machine} in this lab; there are {', '.join(self.plan.machines)}")
        return machine

    def api(self, lb: str, path: str) -> Any:
        """What an LB's API says, through its forwarder; OSError while it is down."""
        return json.loads(self._fetch(lb, path))

    def metrics(self, lb: str) -> str:
        return self._fetch(lb, "/metrics").decode()

    def _fetch(self, lb: str, path: str) -> bytes:
        url = f"http://127.0.0.1:{self.plan.api_port(lb)}{path}"
        try:
            with _without_proxy.open(url, timeout=3) as response:
                body: bytes = response.read()
                return body
        except urllib.error.HTTPError as error:
            raise OSError(f"{path}: {error}") from None

    def supervisorctl(self, machine: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_program("supervisorctl"), "-c", str(plan.supervisor_conf(machine)), *words],
            capture_output=True,
            text=True,
            check=False,
        )

    def pid(self, machine: str, process: str) -> int:
        """The process of an LB or a node that supervisord runs, or supervisord itself; 0: none."""
        if not plan.supervised(self.known(machine)):
            there = ", ".join((*self.plan.lb_names, *self.plan.node_names))
            raise LabError(f"{machine} runs no processes of its own; {there} do")
        if process == SUPERVISORD:
            return self.supervisord_pid(machine)
        names = self._processes(machine)
        if process not in names:
            raise LabError(f"no {process} on {machine}; there are {', '.join(names)}")
        text = self.supervisorctl(machine, "pid", names[process]).stdout.strip()
        return int(text) if text.isdigit() else 0

    def supervisord_pid(self, machine: str) -> int:
        return int((plan.home(machine) / "supervisord.pid").read_text())

    def _processes(self, machine: str) -> dict[str, str]:
        """`health` → `gale:health`, and so on."""
        status = self.supervisorctl(machine, "status").stdout
        full_names = [line.split()[0] for line in status.splitlines() if ":" in line.split()[0]]
        return {name.partition(":")[2]: name for name in full_names}

    def signal(self, machine: str, process: str, number: signal.Signals) -> None:
        pid = self.pid(machine, process)
        if not pid:
            raise LabError(f"{process} of {machine} does not run")
        os.kill(pid, number)

    def set_server(self, machine: str, *, running: bool) -> None:
        if self.known(machine) not in self.plan.node_names:
            nodes = ", ".join(self.plan.node_names)
            raise LabError(f"{machine} has no server; the nodes are {nodes}")
        self.supervisorctl(machine, "start" if running else "stop", f"{SERVER}:*")

    def set_cut(self, machine: str, *, cut: bool) -> None:
        network.set_cut(self.plan, self.known(machine), cut=cut)
        if not cut:
            network.heal_ways(self.plan, machine)

    def cut_way(self, sender: str, receiver: str) -> None:
        """Nothing from the one reaches the other, silently; `set_cut` of either heals it."""
        network.cut_way(self.plan, self.known(sender), self.known(receiver))

    def status(self) -> dict[str, Any]:
        """Machines with their addresses and processes, as plain values."""
        return {
            "mode": self.plan.mode,
            "machines": [
                {
                    "name": machine,
                    "addresses": [link.address for link in self.plan.links(machine)],
                    "api": self.api_url(machine) if plan.is_lb(machine) else None,
                    "processes": self._process_states(machine),
                }
                for machine in self.plan.machines
            ],
        }

    def api_url(self, lb: str) -> str:
        """Of its console, and of its API, on the host."""
        return f"http://127.0.0.1:{self.plan.api_port(lb)}/"

    def _process_states(self, machine: str) -> dict[str, str]:
        if not plan.supervised(machine):
            return {}
        lines = self.supervisorctl(machine, "status").stdout.splitlines()
        words = [line.split() for line in lines]
        return {word[0]: word[1] for word in words if ":" in word[0]}


def down(say: Say) -> None:
    """Leave nothing behind, whatever state the lab is in; nothing to do is no error."""
    require_root()
    machines = network.existing()
    if machines:
        say("taking the lab down")
    for machine in machines:
        _kill_inhabitants(machine)
    files.remove_all()
    for machine in machines:
        network.remove(machine)


def _kill_inhabitants(machine: str) -> None:
    def empty() -> bool:
        pids = network.inhabitants(machine)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not pids

    _wait_for(empty, f"processes in {plan.namespace(machine)} do not end")


def _wait_for(condition: Callable[[], bool], complaint: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{complaint} (waited {timeout_s:.0f} s)")
        time.sleep(0.05)


def _program(name: str) -> str:
    """A program of the virtual environment or, as on Debian, of the system."""
    found = shutil.which(name, path=plan.environment(plan.CLIENT)["PATH"])
    if found is None:
        raise LabError(f"{name} is not installed; `make setup` installs it")
    return found
