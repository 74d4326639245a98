"""Namespaces, cables and programs on them, for the benchmarks; and what of the host they change.

Everything a benchmark makes is in namespaces called `gale-bench-…`, which go when it ends; what an
earlier one has left, because it was killed, goes when the next begins. Two settings of the kernel
as a whole are touched, the size of nftables' connection table and of its hash:
`room_for_nftables` puts them back.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute, netns

from e2e.lab.network import LabError, command

PREFIX = "gale-bench-"
_NETNS_DIR = Path("/run/netns")
_LOCK = Path("/run/gale-bench.lock")
_NATIVE = 1 << 2
_INGRESS = 0xFFFFFFF2
_SETTINGS = Path("/proc/sys/net/netfilter")


def enter(namespace: str) -> list[str]:
    """The words before a command that is to run there."""
    return ["nsenter", f"--net={_NETNS_DIR / namespace}", "--"]


def run_in(namespace: str, *words: str, stdin: str | None = None) -> str:
    return command([*enter(namespace), *words], stdin)


def move_to(namespace: str) -> None:
    """This process itself."""
    netns.setns(namespace)


def add_namespace(name: str, **settings: int | str) -> None:
    """A new namespace; in the names of settings, two underscores are a dot."""
    assert name.startswith(PREFIX), "or it would be left behind"
    command(["ip", "netns", "add", name])
    run_in(name, "ip", "link", "set", "lo", "up")
    quiet = {"ipv6__conf__all__disable_ipv6": 1, "ipv6__conf__default__disable_ipv6": 1}
    set_values(name, **quiet, **settings)


def set_values(namespace: str, **settings: int | str) -> None:
    words = [f"net.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    run_in(namespace, "sysctl", "-qw", *words)


def cable(near: tuple[str, str], far: tuple[str, str]) -> None:
    """A pair of interfaces, each (namespace, name), both up."""
    (here, name), (there, peer) = near, far
    words = f"link add {name} type veth peer name {peer} netns {there}".split()
    command(["ip", "-n", here, *words])
    for namespace, interface in (near, far):
        command(["ip", "-n", namespace, "link", "set", interface, "up"])


def set_offload(namespace: str, interface: str, **features: str) -> None:
    words = [word for pair in features.items() for word in pair]
    run_in(namespace, "ethtool", "-K", interface, *words)


def batch(namespace: str, lines: Sequence[str]) -> None:
    command(["ip", "-n", namespace, "-batch", "-"], "\n".join(lines) + "\n")


def mac_of(namespace: str, interface: str) -> str:
    links = json.loads(command(["ip", "-n", namespace, "-json", "link", "show", interface]))
    return str(links[0]["address"])


def clear() -> None:
    """Remove the namespaces of benchmarks."""
    if _NETNS_DIR.is_dir():
        for path in sorted(_NETNS_DIR.glob(f"{PREFIX}*")):
            for pid in command(["ip", "netns", "pids", path.name]).split():
                os.kill(int(pid), 9)
            command(["ip", "netns", "delete", path.name])


@contextmanager
def alone() -> Iterator[None]:
    """One benchmark with namespaces at a time, on a host without leftovers, leaving none."""
    with _LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another benchmark is running on this host") from None
        clear()
        try:
            yield
        finally:
            clear()


@contextmanager
def room_for_nftables(entries: int) -> Iterator[None]:
    """Let the kernel's own connection tracking hold so many connections, in as many buckets."""
    before = {name: (_SETTINGS / name).read_text() for name in _conntrack_sizes(entries)}
    try:
        for name, value in _conntrack_sizes(entries).items():
            (_SETTINGS / name).write_text(str(value))
        yield
    finally:
        for name, text in before.items():
            (_SETTINGS / name).write_text(text)


def _conntrack_sizes(entries: int) -> dict[str, int]:
    return {"nf_conntrack_buckets": entries, "nf_conntrack_max": entries}


# --------------------------------------------------------------------------- programs


def attach_tc(interface: str, fd: int, name: str) -> None:
    """On the ingress of an interface of this process's namespace."""
    with IPRoute() as netlink:
        index = socket.if_nametoindex(interface)
        netlink.tc("add", "clsact", index)
        netlink.tc(
            "add-filter", "bpf", index, parent=_INGRESS, fd=fd, name=name, direct_action=True
        )


def attach_xdp(interface: str, fd: int) -> None:
    """Native, on an interface of this process's namespace."""
    with IPRoute() as netlink:
        attributes = [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", _NATIVE)]
        index = socket.if_nametoindex(interface)
        netlink.link("set", index=index, IFLA_XDP={"attrs": attributes})
