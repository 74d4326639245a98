"""`make e2e-machines`: from bare machines to HTTP, by the playbooks; see the package's docstring.

Shown, each with the time since the beginning: `--check` of bare machines changes nothing and fails
nowhere; the playbooks deploy; every node answers through every LB, in each mode; a second run
changes nothing; a node that is killed is taken out; an upgrade by the playbook, under requests,
loses none; packages that are purged leave nothing. Exit status 0: all of it was seen.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from deb.build import checkout_version
from e2e.lab.plan import CHECKOUT_DIR
from e2e.machines.machine import Machine, call
from e2e.machines.root import make_root
from e2e.machines.site import DeployError, Site, fetch, site

PACKAGES = CHECKOUT_DIR / "build" / "deb"
NEWER = CHECKOUT_DIR / "build" / "deb-newer"
FOLLOW_TIMEOUT_S = 60.0
LEFT = """
for path in /etc/gale /run/gale /var/lib/gale /var/log/gale /usr/lib/gale /usr/share/gale \\
    /etc/supervisor/conf.d/gale.conf /etc/supervisor/conf.d/gale-node.conf; do
    [ ! -e $path ] || echo $path
done
getent passwd | grep ^gale; getent group | grep ^gale; pgrep -fl 'gale-[a-z]+$'
ls -d /sys/fs/bpf/gale 2>/dev/null; ip -d link show dev eth0 | grep -o 'prog/xdp.*'
tc filter show dev eth0 ingress | grep -o 'gale_[a-z_]*'; true
"""


class Show:
    """Tells what was seen, with the time, and keeps what was not."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun_s:7.1f} s  {text}", flush=True)

    def check(self, what: str, holds: bool, seen: object = "") -> None:
        self.say(f"{'ok     ' if holds else 'FAILED '} {what} {seen}")
        if not holds:
            self.failed.append(what)


def follows(condition: Callable[[], bool], timeout_s: float = FOLLOW_TIMEOUT_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def all_answer(lb: Machine, nodes: tuple[Machine, ...]) -> bool:
    """Whether so many requests as make it certain were answered by just these nodes."""
    names = {fetch(lb.address) for _ in range(12 * len(nodes))}
    return names == {node.name for node in nodes}


def repack(packages: Path, into: Path, version: str, newer: str) -> None:
    """The same packages under a newer version."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for package in packages.glob("gale-*.deb"):
        stage = into / "stage"
        call("dpkg-deb", "--raw-extract", package, stage)
        control = stage / "DEBIAN" / "control"
        control.write_text(control.read_text().replace(version, newer))
        name = package.name.replace(version, newer)
        call("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", stage, into / name)
        shutil.rmtree(stage)


class Requests:
    """Requests to an LB, one after the other, from now until `stop`."""

    def __init__(self, lb: Machine) -> None:
        self.answers: list[str] = []
        self._lb = lb
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.answers.append(fetch(self._lb.address))

    def stop(self) -> tuple[int, int]:
        """How many were sent, and how many of them were not answered."""
        self._stopping.set()
        self._thread.join()
        return len(self.answers), self.answers.count("")


def deploy(show: Show, there: Site) -> None:
    for playbook in ("lb", "node"):
        there.play(playbook, PACKAGES, "--check")
    show.check("--check of bare machines", True)
    for playbook in ("lb", "node"):
        show.say(f"{playbook}.yml changed {there.play(playbook, PACKAGES)}")
    first = there.lbs[0]
    show.check("the first answer", follows(lambda: fetch(first.address) != ""))
    for lb in there.lbs:
        answered = follows(lambda lb=lb: all_answer(lb, there.nodes))  # type: ignore[misc]
        show.check(f"every node answers through {lb.name}", answered)
    again = [there.play(playbook, PACKAGES) for playbook in ("lb", "node")]
    changed = sum(sum(each.values()) for each in again)
    show.check("a second run changes nothing", changed == 0, again)


def upgrade(show: Show, there: Site) -> None:
    requests = Requests(there.lbs[0])
    for playbook in ("lb", "node"):
        show.say(f"upgrade by {playbook}.yml changed {there.play(playbook, NEWER)}")
    sent, lost = requests.stop()
    show.check("an upgrade under requests loses none", lost == 0, f"({sent} sent, {lost} lost)")
    there.play("lb", PACKAGES)
    version = there.lbs[0].enter(["dpkg-query", "-Wf", "${Version}", "gale-lb"]).stdout
    show.check("back to the version before", version == checkout_version(), version)


def kill_a_node(show: Show, there: Site) -> None:
    victim, *others = there.nodes
    victim.kill()
    gone = all(
        follows(lambda lb=lb: all_answer(lb, tuple(others)))  # type: ignore[misc]
        for lb in there.lbs
    )
    show.check(f"{victim.name} is killed and taken out", gone)


def purge(show: Show, machine: Machine) -> None:
    words = "apt-get purge --yes gale-lb gale-node gale-common"
    done = machine.enter(["env", "DEBIAN_FRONTEND=noninteractive", *words.split()])
    left = machine.enter(["sh", "-c", LEFT]).stdout.split("\n")
    nothing = done.returncode == 0 and not any(left)
    show.check(f"purge leaves nothing on {machine.name}", nothing, " ".join(left) + done.stderr)


def both(show: Show, lower: Path) -> None:
    """Machines that are load balancer and node."""
    with site(lower, 2, 0, show.say) as there:
        for playbook in ("lb", "node"):
            show.say(f"{playbook}.yml changed {there.play(playbook, PACKAGES)}")
        for lb in there.lbs:
            answered = follows(lambda lb=lb: all_answer(lb, there.nodes))  # type: ignore[misc]
            show.check(f"every machine answers through {lb.name}", answered)
        again = [there.play(playbook, PACKAGES) for playbook in ("lb", "node")]
        changed = sum(sum(each.values()) for each in again)
        show.check("a second run changes nothing", changed == 0, again)


def main() -> int:
    show = Show()
    lower = make_root()
    repack(PACKAGES, NEWER, checkout_version(), f"{checkout_version()}+newer")
    try:
        with site(lower, 2, 2, show.say) as there:
            deploy(show, there)
            upgrade(show, there)
            kill_a_node(show, there)
            purge(show, there.lbs[0])
            purge(show, there.nodes[1])
        both(show, lower)
    except (DeployError, RuntimeError) as error:
        show.check(f"the machines: {error}", False)
    show.say(f"failed: {', '.join(show.failed)}" if show.failed else "everything was shown")
    return 1 if show.failed else 0


if __name__ == "__main__":
    sys.exit(main())
