"""`make e2e-packages`: the Debian packages on this very machine, in a layer above its file system.

All that dpkg does goes to a layer in memory, and it is done in namespaces of its own (the make
target makes them), so this machine stays as it is, and no other file system has to be made first.
It wants what the packages depend on, which `make setup` has installed. Shown of a machine that is
load balancer and node:

- installed and configured, all processes run, and the programs are attached
- an upgrade, and the way back, start the processes anew; meanwhile packets meet programs all the
  time, flows are kept, and so is the configuration
- removed, nothing is attached and nobody runs, and the configuration is kept
- purged, nothing is left: program, pin, process, user, file or rule; nor does anything lack that
  was this machine's own

Exit status 0: all of it was seen.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpf.syscall import get_object
from deb.build import checkout_version
from e2e.machines.machine import call
from e2e.machines.packages import NEWER, PACKAGES, repack
from e2e.machines.show import Show, follows

PRIVATE = "10.84.0.1"
LB_CONFIG = """\
[local]
net_interface_public = "pub0"
net_interface_private = "priv0"
[[virtual_ips]]
address = "10.85.0.100"
snat_address = "10.84.0.101"
"""
"""Of a machine that is a node, too: its answers of mode l4 go to an address that it has not."""
NODE_CONFIG = f"""\
[load_balancer]
addresses = [{{ ip = "{PRIVATE}", port = 7070 }}]
"""
GROUPS = {
    "gale": ("dataplane", "health", "quorum", "api"),
    "gale-node": ("agent",),
}
COMPILING_S = 180.0
"""The first start compiles the programs."""
ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND=noninteractive",
    "LANG=C.UTF-8",
)
ATTACHED = """
for interface in pub0 priv0; do
    ip -d link show dev $interface | grep -o 'prog/xdp.*' | sort
    tc filter show dev $interface ingress | grep -o ' id [0-9]*'
done; true
"""
PROGRAMS = 3
"""XDP and TC on the public interface, TC on the private one."""
WATCHED_S = 0.1
WHY_NOT = "gale status; supervisorctl status; tail -n 20 /var/log/gale/dataplane.log; true"
LEFT = """
find /run /sys/fs/bpf -iname '*gale*'
getent passwd | grep ^gale; getent group | grep ^gale; pgrep -fa 'gale-[a-z]+( |$)'
for interface in pub0 priv0; do
    ip -d link show dev $interface | grep -o 'prog/xdp.*'
    tc qdisc show dev $interface | grep clsact
done
ip rule | grep -vE '^(0|32766|32767):'; ip -o -4 address show dev lo | grep -v 127.0.0.1/8; true
"""


@dataclass(frozen=True, slots=True)
class Layer:
    """The machine as it is, and what is changed above it."""

    root: Path
    upper: Path

    def run(self, *words: str | Path) -> str:
        """What a command there says; RuntimeError with what it complains of."""
        return call("env", "-i", *ENVIRONMENT, "chroot", self.root, *words).stdout

    def sh(self, script: str) -> str:
        return self.run("sh", "-c", script)

    def install(self, packages: Path) -> None:
        """Nothing of these packages is asked for elsewhere: what they depend on is there."""
        files = sorted(packages.glob("gale-*.deb"))
        staged = [self.root / "tmp" / file.name for file in files]
        for file, place in zip(files, staged, strict=True):
            place.write_bytes(file.read_bytes())
        self.run("dpkg", "--install", *(f"/tmp/{place.name}" for place in staged))
        for place in staged:
            place.unlink()

    def pids(self) -> dict[str, str]:
        """By process, as supervisord knows them; "0" where there is none."""
        names = [f"{group}:{name}" for group, each in GROUPS.items() for name in each]
        return {name: self.sh(f"supervisorctl pid {name} || true").strip() for name in names}

    def all_run(self) -> bool:
        lines = self.sh("supervisorctl status || true").splitlines()
        states = [line.split()[1] for line in lines if line.startswith("gale")]
        return len(states) == sum(map(len, GROUPS.values())) and set(states) == {"RUNNING"}

    def status(self) -> dict[str, Any]:
        """Of the load balancer; empty while it says nothing."""
        try:
            answer: dict[str, Any] = json.loads(self.sh("gale status --json || true"))
        except ValueError:
            return {}
        return answer

    def flow_table(self) -> str:
        """Which map of the kernel's it is."""
        descriptor = get_object(self.root / "sys/fs/bpf/gale/v1/maps/flows")
        try:
            lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
            return next(line for line in lines if line.startswith("map_id:"))
        finally:
            os.close(descriptor)

    def is_attached(self) -> bool:
        status = self.status()
        hooks = (status.get("dataplane") or {}).get("hooks", [])
        alive = all(each["alive"] for each in status.get("processes", {}).values())
        return alive and bool(hooks) and all(each["attached"] for each in hooks)


class Watch:
    """Looks all the time how many programs are attached."""

    def __init__(self, there: Layer) -> None:
        self._there = there
        self._least = PROGRAMS
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(WATCHED_S):
            self._least = min(self._least, len(self._there.sh(ATTACHED).splitlines()))

    def stop(self) -> int:
        """How few there were."""
        self._over.set()
        self._thread.join()
        return self._least


@contextmanager
def layer() -> Iterator[Layer]:
    """For as long as the block lasts."""
    home = Path(tempfile.mkdtemp(prefix="layer-"))
    call("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", home)
    made = Layer(home / "root", home / "upper")
    try:
        for path in (made.root, made.upper, home / "work"):
            path.mkdir()
        options = f"lowerdir=/,upperdir={made.upper},workdir={home}/work"
        call("mount", "-t", "overlay", "-o", options, "overlay", made.root)
        for kind, place in (("proc", "proc"), ("sysfs", "sys"), ("bpf", "sys/fs/bpf")):
            call("mount", "-t", kind, kind, made.root / place)
        for place in ("run", "tmp"):
            call("mount", "-t", "tmpfs", "tmpfs", made.root / place)
        call("mount", "--rbind", "/dev", made.root / "dev")
        yield made
    finally:
        call("umount", "--recursive", "--lazy", home, check=False)
        home.rmdir()


def lay_cables() -> None:
    """Two interfaces, with nobody at their other ends."""
    for name, address in (("pub0", "10.85.0.1"), ("priv0", PRIVATE)):
        call("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        call("ip", "address", "add", f"{address}/24", "dev", name)
        for end in (name, f"{name}-far", "lo"):
            call("ip", "link", "set", end, "up")


def configure(there: Layer) -> None:
    for name, text in (("lb.toml", LB_CONFIG), ("node.toml", NODE_CONFIG)):
        (there.root / "etc" / "gale" / name).write_text(text)
    there.sh("chgrp gale /etc/gale/*.toml; chmod 640 /etc/gale/*.toml")


def installed(show: Show, there: Layer) -> None:
    there.run("supervisord", "-c", "/etc/supervisor/supervisord.conf")
    there.install(PACKAGES)
    configure(there)
    there.sh("gale check /etc/gale/lb.toml --host && gale check /etc/gale/node.toml")
    # One that was only about to end for want of a file may have found it.
    there.sh("supervisorctl start 'gale:*' 'gale-node:*' || true")
    show.check("installed and configured, all processes run", follows(there.all_run))
    attached = follows(there.is_attached, COMPILING_S)
    show.check("and the programs are attached", attached, "" if attached else there.sh(WHY_NOT))


def changed(show: Show, there: Layer, packages: Path, version: str, what: str) -> None:
    """Another version in the place of the one there."""
    before, flows = there.pids(), there.flow_table()
    watch = Watch(there)
    there.install(packages)
    told = there.run("dpkg-query", "-Wf", "${Version} ", "gale-common", "gale-lb", "gale-node")
    show.check(f"{what}: the version", set(told.split()) == {version}, told)

    def anew() -> bool:
        pids = there.pids()
        return there.all_run() and not set(before.values()) & set(pids.values())

    show.check(f"{what}: all processes are new ones", follows(anew))
    show.check(f"{what}: they serve", follows(there.is_attached, COMPILING_S))
    least = watch.stop()
    show.check(f"{what}: packets met programs all the time", least == PROGRAMS, f"{least} at least")
    show.check(f"{what}: flows are kept", there.flow_table() == flows)
    kept = (there.root / "etc" / "gale" / "lb.toml").read_text() == LB_CONFIG
    show.check(f"{what}: the configuration is as it was", kept)


def removed(show: Show, there: Layer) -> None:
    there.run("dpkg", "--remove", "gale-lb", "gale-node", "gale-common")
    show.check("removed, nothing is attached", there.sh(ATTACHED) == "", there.sh(ATTACHED))
    runs = there.sh("pgrep -fa 'gale-[a-z]+( |$)'; true")
    show.check("and nobody runs", runs == "", runs)
    kept = sorted(path.name for path in (there.root / "etc" / "gale").glob("*.toml"))
    show.check("and the configuration is kept", kept == ["lb.toml", "node.toml"], kept)


def purged(show: Show, there: Layer) -> None:
    there.run("dpkg", "--purge", "gale-lb", "gale-node", "gale-common")
    left = there.sh(LEFT)
    show.check("purged, nothing is left of programs, pins, processes, users, rules", not left, left)
    files, missing = _differences(there.upper)
    show.check("and no file", not files, files)
    show.check("and nothing lacks that was the machine's own", not missing, missing)


def _differences(upper: Path) -> tuple[list[str], list[str]]:
    """What the layer has of Gale's, and what it hides of the machine's own (a device 0:0 each)."""
    files, missing = [], []
    for directory, directories, names in os.walk(upper):
        for name in (*directories, *names):
            path = Path(directory) / name
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                missing.append(str(path.relative_to(upper)))
            elif "gale" in name.lower():
                files.append(str(path.relative_to(upper)))
    return files, missing


def main() -> int:
    show = Show()
    version = checkout_version()
    newer = f"{version}+newer"
    repack(PACKAGES, NEWER, version, newer)
    lay_cables()
    try:
        with layer() as there:
            installed(show, there)
            changed(show, there, NEWER, newer, "an upgrade")
            changed(show, there, PACKAGES, version, "the way back")
            removed(show, there)
            purged(show, there)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        show.check(f"the packages: {error}", False)
    show.say(f"failed: {', '.join(show.failed)}" if show.failed else "everything was shown")
    return 1 if show.failed else 0


if __name__ == "__main__":
    sys.exit(main())
