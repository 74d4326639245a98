"""What the end-to-end suite knows of the machines it runs against, and no more.

The namespaces of the lab are one implementation; machines of an Ansible inventory, over ssh, are
another. So everything here can be done from outside with a shell: run a command on a machine, start
one and read what it prints, ask an LB's HTTP API, and the paths the machine itself names in its
`GALE_*` environment. What is built from these (signals, waiting, traffic) stands below, once.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from e2e.lab import Lab, Plan, down, exclusive, plan
from e2e.traffic import Traffic, load_words

T = TypeVar("T")
RIG_LAG_MS = 100
"""Who was held up for longer itself has measured nothing."""


class Hosts(Protocol):
    """Machines that run Gale: LBs, nodes and one client."""

    lbs: tuple[str, ...]
    nodes: tuple[str, ...]
    client: str

    def vip(self) -> str:
        """The address that the client sends its requests to."""

    def environment(self, who: str) -> dict[str, str]:
        """The machine's `GALE_CONFIG`, `GALE_RUN_DIR`, `GALE_STATE_DIR`, `GALE_BPF_DIR`."""

    def run(
        self, who: str, *words: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there and wait for it."""

    def start(self, who: str, *words: str) -> subprocess.Popen[str]:
        """Run a command there, with pipes; the caller waits for it."""

    def supervisorctl(self, who: str, *words: str) -> subprocess.CompletedProcess[str]: ...

    def supervisord_pid(self, who: str) -> int: ...

    def start_supervisord(self, who: str) -> None: ...

    def api(self, lb: str, path: str) -> Any:
        """GET of an LB's API; raises OSError while it is down."""

    def metrics(self, lb: str, name: str) -> list[Sample]:
        """The samples of one metric of an LB; raises OSError while it is down."""


class LabHosts:
    """The machines of the lab in network namespaces."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.lbs = lab.plan.lb_names
        self.nodes = lab.plan.node_names
        self.client = plan.CLIENT

    def vip(self) -> str:
        return self.lab.plan.vip(self.lbs[0])

    def environment(self, who: str) -> dict[str, str]:
        return self.lab.environment(who)

    def run(
        self, who: str, *words: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.lab.run(who, list(words), stdin=stdin)

    def start(self, who: str, *words: str) -> subprocess.Popen[str]:
        return self.lab.start(who, list(words))

    def supervisorctl(self, who: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.lab.supervisorctl(who, *words)

    def supervisord_pid(self, who: str) -> int:
        return self.lab.supervisord_pid(who)

    def start_supervisord(self, who: str) -> None:
        self.lab.start_supervisord(who)

    def set_cut(self, who: str, *, cut: bool) -> None:
        """Cut every cable of a machine silently, the carrier stays up; or heal them."""
        self.lab.set_cut(who, cut=cut)

    def cut_way(self, sender: str, receiver: str) -> None:
        """Have nothing from the one machine reach the other; healing either mends it."""
        self.lab.cut_way(sender, receiver)

    def api(self, lb: str, path: str) -> Any:
        return self.lab.api(lb, path)

    def metrics(self, lb: str, name: str) -> list[Sample]:
        families = text_string_to_metric_families(self.lab.metrics(lb))
        return [sample for family in families for sample in family.samples if sample.name == name]


@contextmanager
def lab_hosts(
    lab_plan: Plan, say: Callable[[str], None], extra: Path | None = None, *, keep: bool = False
) -> Iterator[LabHosts]:
    """A lab for as long as the block lasts, and nobody else's meanwhile; or, kept, for longer."""
    with exclusive(say):
        lab = Lab(lab_plan)
        try:
            lab.up(say, extra)
            yield LabHosts(lab)
        finally:
            if not keep:
                down(say)


def wait_for(
    condition: Callable[[], T | None], what: str, timeout_s: float = 15.0, every_s: float = 0.05
) -> T:
    """The first true value of `condition`; AssertionError naming `what` if there is none."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        time.sleep(every_s)


def read_config(hosts: Hosts, lb: str) -> str:
    return hosts.run(lb, "cat", hosts.environment(lb)["GALE_CONFIG"]).stdout


def write_config(hosts: Hosts, lb: str, text: str) -> None:
    """The file is another; nobody is told."""
    done = hosts.run(lb, "tee", hosts.environment(lb)["GALE_CONFIG"], stdin=text)
    assert done.returncode == 0, done.stderr


def pid_of(hosts: Hosts, who: str, process: str) -> int:
    """A process by its full name in supervisord (`gale:health`); 0 while there is none."""
    text = hosts.supervisorctl(who, "pid", process).stdout.strip()
    return int(text) if text.isdigit() else 0


def send_signal(hosts: Hosts, who: str, process: str, name: str) -> int:
    """Signal a process; its pid."""
    pid = pid_of(hosts, who, process)
    assert pid, f"{process} does not run on {who}"
    done = hosts.run(who, "kill", f"-{name}", str(pid))
    assert done.returncode == 0, done.stderr
    return pid


def node_states(hosts: Hosts, lb: str) -> dict[str, str]:
    """How an LB judges each node, by the node's name."""
    return {node["name"]: node["state"] for node in hosts.api(lb, "/v1/nodes")["nodes"]}


def service_states(hosts: Hosts, lb: str, service: str = "default") -> dict[str, str]:
    """Likewise, for one service alone: a node with one sick server goes on with the others."""
    return {
        node["name"]: one["state"]
        for node in hosts.api(lb, "/v1/nodes")["nodes"]
        for one in node["services"]
        if one["service"] == service
    }


def serves_again(hosts: Hosts, lb: str, process: str, killed_pid: int, killed_at: float) -> bool:
    """Whether a process killed at `killed_at` (monotonic seconds) runs anew and has been heard."""
    pid = pid_of(hosts, lb, f"gale:{process}")
    if pid in (0, killed_pid):
        return False
    try:
        asked_at = time.monotonic()
        age_ms = hosts.api(lb, "/v1/status")["processes"][process]["age_ms"]
    except (OSError, ValueError, KeyError):
        return False
    return age_ms is not None and asked_at - age_ms / 1000 > killed_at


def traffic(hosts: Hosts, rate: float, port: int = 8080) -> Traffic:
    """Requests from the client to the VIP from now on."""
    return Traffic(hosts.start(hosts.client, *load_words(hosts.vip(), rate, port)))


def verdicts(hosts: Hosts, lb: str, hook: str = "") -> Counter[str]:
    """How many packets were given each reason, at one hook or over all."""
    counted: Counter[str] = Counter()
    for sample in hosts.metrics(lb, "gale_verdicts_total"):
        if hook in ("", sample.labels["hook"]):
            counted[sample.labels["reason"]] += int(sample.value)
    return counted


def newest_event(hosts: Hosts, lb: str) -> str:
    """Where the LB's public stream is now: to be handed to `events`."""
    page = hosts.api(lb, "/v1/events?since=:0&limit=1")
    return f"{page['boot']}:{page['last_seq']}"


def events(hosts: Hosts, lb: str, topic: str, since: str) -> list[dict[str, Any]]:
    """The messages of one topic that have been published after `since`."""
    page = hosts.api(lb, f"/v1/events?since={since}&limit=8192")
    return [event for event in page["events"] if event["topic"] == topic]


def with_steady_rig(attempt: Callable[[], T], lag_ms_of: Callable[[T], float]) -> T:
    """What `attempt` saw while its client kept its schedule; `lag_ms_of` says how well it did.

    A timing from a lagging client says nothing, so it is run again, three times at most; then what
    it saw is judged all the same.
    """
    for _ in range(2):
        seen = attempt()
        if lag_ms_of(seen) <= RIG_LAG_MS:
            return seen
    return attempt()
