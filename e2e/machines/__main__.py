"""`make e2e-machines`: from bare machines to HTTP, by the playbooks; see the package's docstring.

Three load balancers, two nodes and a client, then two machines that are both. Shown, each with the
time since the beginning:

- lintian finds no fault with the packages, nor vagrant with the Vagrantfile
- `--check` of bare machines changes nothing and fails nowhere; the playbooks deploy, keys too; a
  second run changes nothing
- every node answers through every LB, in modes l2, l3 and l4
- the end-to-end tests that need no lab pass against these machines, as their inventory names them
- a node whose power is cut is taken out; the same of the LB that holds the VIP, and each serves
  again by itself once it is switched on
- an upgrade by the playbooks, and the way back, lose none of the requests meanwhile
- packages that are purged leave nothing: program, pin, process, user, file or rule

Exit status 0: all of it was seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deb.build import checkout_version
from e2e.lab.plan import CHECKOUT_DIR
from e2e.machines.machine import Machine, call, on_wire
from e2e.machines.packages import NEWER, PACKAGES, repack
from e2e.machines.root import PORTS, make_root
from e2e.machines.show import Show, follows
from e2e.machines.site import INVENTORY, DeployError, Site, by_way_of, fetch, requests, site
from e2e.traffic import Summary

RATE = 20.0
"""Requests a second to each service while something happens."""
OUTAGE_MS = 3_000.0
"""For so long requests may fail when a machine dies: the nodes' checks_timeout, and a second."""
LEFT = """
find / -xdev -iname '*gale*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/tmp/*'
find /run /sys/fs/bpf -iname '*gale*'
getent passwd | grep ^gale; getent group | grep ^gale; pgrep -fa 'gale-[a-z]+( |$)'
ip -d link show dev eth0 | grep -o 'prog/xdp.*'
tc qdisc show dev eth0 | grep clsact; tc filter show dev eth0 ingress
tc filter show dev eth0 egress
ip rule | grep -vE '^(0|32766|32767):'; ip route show table 1734437989 2>/dev/null
ip -o -4 address show dev lo | grep -v 127.0.0.1/8; true
"""


def all_answer(port: int, nodes: tuple[Machine, ...]) -> bool:
    """Whether so many requests as make it certain were answered by just these nodes."""
    names = {fetch(port) for _ in range(12 * len(nodes))}
    return names == {node.name for node in nodes}


@contextmanager
def under_requests(there: Site) -> Iterator[dict[str, Summary]]:
    """Requests to every service during the block; what became of them, by mode, after it."""
    running = {mode: requests(RATE, port) for mode, port in there.ports.items()}
    seen: dict[str, Summary] = {}
    try:
        follows(lambda: all(each.results for each in running.values()))
        yield seen
        time.sleep(1.0)  # what comes of it shows a moment later
    finally:
        seen.update({mode: each.stop() for mode, each in running.items()})


def told(seen: dict[str, Summary]) -> str:
    return "; ".join(
        f"{mode}: {len(one.results)} sent, {len(one.failures)} failed {dict(one.errors)},"
        f" longest gap {one.longest_gap_ms:.0f} ms, slowest {one.slowest_ms:.0f} ms"
        for mode, one in seen.items()
    )


def state_of(lb: Machine) -> dict[str, Any]:
    """Its `gale status`; empty while there is none."""
    try:
        answer: dict[str, Any] = json.loads(lb.enter(["gale", "status", "--json"]).stdout)
    except (ValueError, RuntimeError):  # it says nothing, or does not run
        return {}
    return answer


def holder(there: Site) -> str:
    """Who holds the VIP, as the first LB that knows says; empty while nobody does."""
    for lb in there.lbs:
        vips = (state_of(lb).get("quorum") or {}).get("vips", [])
        if vips and vips[0]["holder"]:
            return str(vips[0]["holder"])
    return ""


def is_well(lb: Machine, lbs: int) -> bool:
    """Whether it is ready, hears all the others, and may hold the VIP."""
    state = state_of(lb)
    members = state["quorum"]["members"] if state.get("ready") and state["quorum"] else []
    alive = [member for member in members if member["alive"]]
    own = [member for member in alive if member["name"] == lb.name and not member["why_not"]]
    return len(alive) == lbs and bool(own)


def all_well(show: Show, there: Site) -> None:
    lbs = len(there.lbs)
    well = all(follows(lambda lb=lb: is_well(lb, lbs)) for lb in there.lbs)  # type: ignore[misc]
    show.check("all load balancers are well", well, f"({holder(there)} holds the VIP)")


def lint(show: Show) -> None:
    strictly = ["lintian", "--allow-root", "--fail-on", "error,warning"]
    done = call(*strictly, *sorted(PACKAGES.glob("*.deb")), check=False)
    show.check("lintian", done.returncode == 0, done.stdout + done.stderr)
    # Whoever runs this needs neither of the two providers.
    words = ["env", f"--chdir={CHECKOUT_DIR}", "vagrant", "validate", "--ignore-provider"]
    done = call(*words, check=False)
    show.check("vagrant validate", done.returncode == 0, done.stderr)


def rotate(show: Show, lb: Machine) -> None:
    """A log goes on in a new file when it is put away."""
    asked = lb.enter(["logrotate", "--force", "/etc/logrotate.d/gale"])
    lb.enter(["supervisorctl", "restart", "gale:api"])

    def has_both() -> bool:
        found = lb.enter(["sh", "-c", "ls -s /var/log/gale/api.log-* /var/log/gale/api.log"])
        sizes = [line.split()[0] for line in found.stdout.splitlines()]
        return len(sizes) == 2 and "0" not in sizes

    show.check("a log that is rotated goes on", follows(has_both), asked.stderr)


def deploy(show: Show, there: Site) -> None:
    for playbook in ("lb", "node"):
        there.play(playbook, PACKAGES, "--check")
    left = [machine.enter(["sh", "-c", LEFT]).stdout for machine in there.machines]
    show.check("--check of bare machines fails nowhere and changes nothing", not any(left), left)
    begun_s = time.monotonic()
    for playbook in ("lb", "node"):
        show.say(f"{playbook}.yml changed {there.play(playbook, PACKAGES)}")
    answered = follows(lambda: fetch(PORTS["l4"]) != "")
    took_s = time.monotonic() - begun_s
    show.check("the first answer", answered, f"{took_s:.0f} s after bare machines")
    all_well(show, there)
    again = [there.play(playbook, PACKAGES) for playbook in ("lb", "node")]
    changed = sum(sum(each.values()) for each in again)
    show.check("a second run changes nothing", changed == 0, again)
    checked = [there.play(playbook, PACKAGES, "--check") for playbook in ("lb", "node")]
    changed = sum(sum(each.values()) for each in checked)
    show.check("--check changes nothing, and says so", changed == 0, checked)
    keys = [state_of(lb).get("keys") for lb in there.lbs]
    show.check("the machines know each other by keys", all(keys), keys)
    rotate(show, there.lbs[0])


def make_holder(show: Show, there: Site, lb: Machine) -> None:
    """Have the VIP's holder hand over until it is this one."""

    def holds() -> bool:
        name = holder(there)
        for other in there.lbs:
            if other.name == name != lb.name:
                other.enter(["gale", "handover"])
        return name == lb.name

    show.check(f"{lb.name} holds the VIP", follows(holds))


def through_each(show: Show, there: Site) -> None:
    for lb in there.lbs:
        if there.are_both:  # of mode l4 the nodes answer whoever has the VIP's SNAT address
            make_holder(show, there, lb)
        for mode, port in there.ports.items():
            with by_way_of(lb):
                answered = follows(
                    lambda port=port: all_answer(port, there.nodes)  # type: ignore[misc]
                )
            show.check(f"every node answers through {lb.name} in {mode}", answered)


def suite(show: Show) -> None:
    """What `make e2e INVENTORY=...` runs, with its client on the machines' network."""
    words = [sys.executable, "-m", "pytest", "e2e", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        on_wire(*words, "--inventory", str(INVENTORY)),
        cwd=CHECKOUT_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    passed = done.returncode == 0
    last = (done.stdout.splitlines() or [""])[-1].strip("= ")
    seen = last if passed else done.stdout + done.stderr
    show.check("the end-to-end tests that need no lab", passed, seen)


def upgrade(show: Show, there: Site) -> None:
    for packages, what in ((NEWER, "an upgrade"), (PACKAGES, "the way back, a version older,")):
        with under_requests(there) as seen:
            for playbook in ("lb", "node"):
                show.say(f"{playbook}.yml changed {there.play(playbook, packages)}")
        lost = sum(len(one.failures) for one in seen.values())
        show.check(f"{what} under requests loses none", lost == 0, told(seen))
        query = ["dpkg-query", "-Wf", "${Version}", "gale-common"]
        versions = {machine.enter(query).stdout for machine in there.machines}
        newer = "+newer" if packages == NEWER else ""
        show.check("the version", versions == {f"{checkout_version()}{newer}"}, versions)
        all_well(show, there)


def cut_power(show: Show, there: Site, victim: Machine, what: str) -> None:
    with under_requests(there) as seen:
        victim.kill()
        time.sleep(OUTAGE_MS / 1000)
    failing_ms = max(one.failing_ms for one in seen.values())
    show.check(f"{what} {victim.name} loses its power", failing_ms <= OUTAGE_MS, told(seen))


def kill_a_node(show: Show, there: Site) -> None:
    victim, *others = there.nodes
    cut_power(show, there, victim, "the node")
    left = tuple(others)
    gone = all(all_answer(port, left) for port in there.ports.values())
    show.check("and is taken out", gone)
    victim.boot()
    back = all(
        follows(lambda port=port: all_answer(port, there.nodes))  # type: ignore[misc]
        for port in there.ports.values()
    )
    show.check("switched on again, it serves by itself", back)


def kill_the_holder(show: Show, there: Site) -> None:
    name = holder(there)
    (victim,) = (lb for lb in there.lbs if lb.name == name)
    cut_power(show, there, victim, "the VIP's holder")
    show.check("and another one holds the VIP", holder(there) not in ("", name), holder(there))
    victim.boot()
    show.check("switched on again", True)
    all_well(show, there)


def purge(show: Show, machine: Machine) -> None:
    installed = machine.enter(["dpkg-query", "-Wf", "${Package} ", "gale-*"]).stdout.split()
    words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "purge", "--yes", *installed]
    done = machine.enter(words)
    left = machine.enter(["sh", "-c", LEFT]).stdout.split("\n")
    nothing = done.returncode == 0 and not any(left)
    show.check(f"purge leaves nothing on {machine.name}", nothing, "\n".join(left) + done.stderr)


def both(show: Show, lower: Path) -> None:
    """Machines that are load balancer and node."""
    with site(lower, 2, 0, show.say) as there:
        for playbook in ("lb", "node"):
            show.say(f"{playbook}.yml changed {there.play(playbook, PACKAGES)}")
        all_well(show, there)
        through_each(show, there)
        again = [there.play(playbook, PACKAGES) for playbook in ("lb", "node")]
        changed = sum(sum(each.values()) for each in again)
        show.check("a second run changes nothing", changed == 0, again)
        purge(show, there.lbs[0])


def main() -> int:
    show = Show()
    lower = make_root()
    repack(PACKAGES, NEWER, checkout_version(), f"{checkout_version()}+newer")
    lint(show)
    try:
        with site(lower, 3, 2, show.say) as there:
            deploy(show, there)
            through_each(show, there)
            suite(show)
            upgrade(show, there)
            kill_a_node(show, there)
            kill_the_holder(show, there)
            purge(show, there.lbs[0])
            purge(show, there.nodes[1])
        both(show, lower)
    except (DeployError, RuntimeError, subprocess.CalledProcessError) as error:
        show.check(f"the machines: {error}", False)
    show.say(f"failed: {', '.join(show.failed)}" if show.failed else "everything was shown")
    return 1 if show.failed else 0


if __name__ == "__main__":
    sys.exit(main())
