"""Checks of the machine as a whole: its kernel, its files, its limits; on an LB and on a node."""

from __future__ import annotations

import importlib.util
import os
import resource
import secrets
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from conf import Paths
from services.cli.doctor.finding import Check, Finding, Findings, Level
from services.cli.machine import Machine, mount_of

OLDEST_KERNEL = (5, 12)
"""Atomic additions that return (5.12), bpf_redirect_neigh; memory is accounted to the cgroup."""
TESTED_KERNEL = (6, 1)
JIT = "net/core/bpf_jit_enable"
JIT_HARDEN = "net/core/bpf_jit_harden"
BPF_STATS = "kernel/bpf_stats_enabled"
CONNTRACK_COUNT = "net/netfilter/nf_conntrack_count"
CONNTRACK_MAX = "net/netfilter/nf_conntrack_max"
LOCKDOWN = Path("/sys/kernel/security/lockdown")
TIME_OFFSETS = Path("/proc/self/timens_offsets")
LEAST_DESCRIPTORS = 4_096
"""A node's connection takes one or two; the limit of supervisord is that of what it starts."""
LEAST_FREE_BYTES = 32 << 20
LONGEST_SOCKET = 107
"""Bytes of a unix socket's path."""
LONGEST_NAME = "bus/dataplane.cmd.ipc"
NEARLY_FULL = 0.9
LISTENING = 0x00010000
"""__SO_ACCEPTCON, as /proc/net/unix has it."""
SYSCTLS = (JIT, JIT_HARDEN, BPF_STATS, CONNTRACK_COUNT, CONNTRACK_MAX)
Ground = TypeVar("Ground")


def checks_of(
    machine: Callable[[Ground], Machine],
    paths: Callable[[Ground], Paths],
    programs: tuple[str, ...],
) -> tuple[Check[Ground], ...]:
    """Those that an LB and a node have in common; `programs`: what supervisord is to find."""
    return (
        Check("kernel", "its age, its JIT", lambda ground: kernel_findings(machine(ground))),
        Check("processor", "stores keep their order", lambda _: byte_order_findings()),
        Check("BPF costs", "nothing dear", lambda ground: bpf_cost_findings(machine(ground))),
        Check("lockdown", "programs may be loaded", lambda _: lockdown_findings()),
        Check("clock", "programs and processes have the same", lambda _: clock_findings()),
        Check("descriptors", "there are enough", lambda _: descriptor_findings()),
        Check("PATH", "supervisord finds the programs", lambda _: path_findings(programs)),
        Check("directories", "room and rights", lambda ground: directory_findings(paths(ground))),
        Check("state files", "none damaged", lambda ground: damaged_findings(paths(ground))),
        Check("conntrack", "not full", lambda ground: conntrack_findings(machine(ground))),
    )


def kernel_findings(machine: Machine) -> Findings:
    """The kernel's age, its JIT, its memory for BPF, and whether it tells us all."""
    release = ".".join(map(str, machine.kernel))
    if machine.kernel < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        yield Finding(
            Level.FAIL,
            "kernel",
            f"{release} lacks what the programs call",
            f"at least {oldest}; Debian 12 and Ubuntu 24.04 have newer ones",
        )
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if limit != resource.RLIM_INFINITY:
            yield Finding(
                Level.FAIL, "memlock", f"{limit} bytes, too few for BPF maps", "ulimit -l unlimited"
            )
    elif machine.kernel < TESTED_KERNEL:
        yield Finding(Level.WARN, "kernel", f"{release}, older than any Gale was tested on")
    else:
        yield Finding(Level.OK, "kernel", f"{release}; BPF memory is not bound by memlock")
    jit = machine.sysctl(JIT)
    if jit is None:
        yield Finding(Level.OK, "BPF JIT", "is set outside this network namespace")
    elif jit.strip() == "0":
        yield Finding(
            Level.FAIL,
            "BPF JIT",
            "off: every packet costs many times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        )
    else:
        yield Finding(Level.OK, "BPF JIT", "on")
    if not machine.root:
        yield Finding(
            Level.WARN,
            "privilege",
            "not root: not everything could be looked at",
            "sudo gale doctor",
        )


def toolchain_findings() -> Findings:
    """What compiles the programs at every start."""
    if importlib.util.find_spec("bcc") is None or importlib.util.find_spec("bcc.libbcc") is None:
        yield Finding(
            Level.FAIL,
            "bcc",
            "cannot be imported: the dataplane cannot start",
            "apt install python3-bpfcc (not the bcc of PyPI, which is something else)",
        )
    elif not Path("/usr/include/linux/bpf.h").exists():
        yield Finding(
            Level.FAIL,
            "headers",
            "/usr/include/linux/bpf.h is missing",
            "apt install linux-libc-dev",
        )
    else:
        yield Finding(Level.OK, "bcc", "is there, and the system's headers")


def bpf_directory_findings(bpf_dir: Path) -> Findings:
    """Pins need a BPF file system that this user may write to."""
    mount, kind = mount_of(bpf_dir)
    if kind != "bpf":
        yield Finding(
            Level.FAIL,
            "bpffs",
            f"{bpf_dir} is not in a BPF file system but on {mount} ({kind})",
            "mount -t bpf bpf /sys/fs/bpf",
        )
        return
    there = next(path for path in (bpf_dir, *bpf_dir.parents) if path.exists())
    probe = there / f"gale_doctor_{secrets.token_hex(4)}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        yield Finding(
            Level.FAIL,
            "bpffs",
            f"{there} cannot be written: {error.strerror}",
            "run as root, or give the directory to the user of the dataplane",
        )
    else:
        yield Finding(Level.OK, "bpffs", f"{bpf_dir} is writable")


def bpf_cost_findings(machine: Machine) -> Findings:
    """Settings that make each packet dearer."""
    if (machine.sysctl(JIT_HARDEN) or "0").strip() == "2":
        yield Finding(
            Level.WARN,
            "JIT hardening",
            "net.core.bpf_jit_harden is 2: every constant of the programs costs twice",
            "sysctl -w net.core.bpf_jit_harden=1",
        )
    else:
        yield Finding(Level.OK, "JIT hardening", "not for root's programs")
    if (machine.sysctl(BPF_STATS) or "0").strip() == "1":
        yield Finding(
            Level.WARN,
            "BPF statistics",
            "kernel.bpf_stats_enabled is 1: each run of a program reads the clock twice",
            "sysctl -w kernel.bpf_stats_enabled=0",
        )
    else:
        yield Finding(Level.OK, "BPF statistics", "off")


def lockdown_findings(file: Path = LOCKDOWN) -> Findings:
    """A kernel that is locked down for confidentiality lets nobody's program read its memory."""
    try:
        text = file.read_text()
    except OSError:
        return
    if "[confidentiality]" in text:
        yield Finding(
            Level.FAIL,
            "lockdown",
            "the kernel is locked down (confidentiality): it may refuse programs and maps",
            "boot with lockdown=integrity",
        )
    else:
        yield Finding(Level.OK, "lockdown", "does not concern BPF")


def clock_findings(file: Path = TIME_OFFSETS) -> Findings:
    """The programs' clock and the processes' must be one: leases and deadlines are compared."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    shifted = [words[0] for words in map(str.split, lines) if any(map(int, words[1:]))]
    if "monotonic" in shifted:
        yield Finding(
            Level.FAIL,
            "clock",
            "this is a time namespace: its monotonic clock is not the one that the programs have",
            "start Gale outside of it (unshare --time, or the container's option)",
        )
    else:
        yield Finding(Level.OK, "clock", "the monotonic clock is the kernel's own")


def descriptor_findings() -> Findings:
    """Every node holds a connection, every subscriber one: descriptors run out first."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < LEAST_DESCRIPTORS:
        yield Finding(
            Level.WARN,
            "descriptors",
            f"at most {hard}: beyond, no node can connect",
            f"minfds={LEAST_DESCRIPTORS} in /etc/supervisor/supervisord.conf, and ulimit -n",
        )
    else:
        yield Finding(Level.OK, "descriptors", "many enough")


def path_findings(programs: tuple[str, ...]) -> Findings:
    """supervisord finds the programs by its PATH; without them it starts and starts."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        yield Finding(
            Level.WARN,
            "PATH",
            f"{', '.join(missing)} not found from here",
            "the environment's bin/ first in supervisord's PATH (docs/operating.md)",
        )
    else:
        yield Finding(Level.OK, "PATH", "leads to the programs")


def directory_findings(paths: Paths) -> Findings:
    """State is written and synced before a vote is given: no room is no vote."""
    for name, directory in (("state", paths.state_dir), ("run", paths.run_dir)):
        there = next(path for path in (directory, *directory.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            yield Finding(
                Level.FAIL,
                f"{name} directory",
                f"{there} cannot be written by this user",
                f"install -d -o root -g gale -m 0770 {directory}",
            )
        elif free < LEAST_FREE_BYTES:
            yield Finding(
                Level.FAIL,
                f"{name} directory",
                f"{there} has {free >> 10} kB left: what is agreed cannot be stored",
                f"make room on {mount_of(there)[0]}; df {there}",
            )
        else:
            yield Finding(Level.OK, f"{name} directory", f"{directory} has room")
    longest = paths.run_dir / LONGEST_NAME
    if len(os.fsencode(longest)) > LONGEST_SOCKET:
        yield Finding(
            Level.FAIL,
            "socket paths",
            f"{longest} is longer than the {LONGEST_SOCKET} bytes that a socket's path has",
            "a shorter GALE_RUN_DIR",
        )
    else:
        yield Finding(Level.OK, "socket paths", "short enough")


def damaged_findings(paths: Paths) -> Findings:
    """A state file that made no sense was set aside, and its process started without it."""
    damaged = sorted(paths.state_dir.glob("*.damaged")) if paths.state_dir.is_dir() else []
    for file in damaged:
        yield Finding(
            Level.WARN,
            "state files",
            f"{file} was damaged: its process began without what it knew",
            f"look at the disk, then rm {file}",
        )
    if not damaged:
        yield Finding(Level.OK, "state files", "none was damaged")


def conntrack_findings(machine: Machine) -> Findings:
    """Where the kernel's own connection tracking is full, it drops what it cannot enter."""
    count, most = (machine.sysctl(name) for name in (CONNTRACK_COUNT, CONNTRACK_MAX))
    if count is None or most is None:
        yield Finding(Level.OK, "conntrack", "the kernel tracks nothing here")
    elif int(count) > NEARLY_FULL * int(most):
        yield Finding(
            Level.FAIL,
            "conntrack",
            f"the kernel's own table is nearly full: {int(count)} of {int(most)};"
            " new connections are dropped without a word",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}, or do not track",
        )
    else:
        yield Finding(Level.OK, "conntrack", f"{int(count)} of {int(most)}")


def listening_sockets(file: Path = Path("/proc/net/unix")) -> frozenset[str]:
    """Paths of the unix sockets of this network namespace that somebody listens on."""
    try:
        lines = file.read_text().splitlines()[1:]
    except OSError:
        return frozenset()
    rows = [row for row in map(str.split, lines) if len(row) > 7]
    return frozenset(row[7] for row in rows if int(row[3], 16) & LISTENING)


def sched_findings(uid: int, hardest: int) -> Findings:
    """The quorum process asks for SCHED_RR, so that a busy machine does not cost it its lease."""
    if uid != 0 and hardest == 0:
        yield Finding(
            Level.WARN,
            "real time",
            "this user may not ask for SCHED_RR: a busy machine may cost the lease",
            "CAP_SYS_NICE for gale:quorum, or rtprio in /etc/security/limits.conf",
        )
    else:
        yield Finding(Level.OK, "real time", "gale:quorum may ask for SCHED_RR")


def byte_order_findings() -> Findings:
    """Readers of the flow table hold no lock: they rely on stores that keep their order."""
    machine = os.uname().machine
    if machine == "x86_64" and struct.pack("=H", 1) == b"\1\0":
        yield Finding(Level.OK, "processor", machine)
    else:
        yield Finding(
            Level.FAIL,
            "processor",
            f"{machine}: the flow table relies on stores that keep their order, as x86-64's do",
            "a machine with x86-64",
        )
