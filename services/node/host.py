"""This machine, as far as direct return changes it: read, changed and changed back.

`Host.settle` brings it to what is needed, step by step as direct.py plans it, and may be called as
often as one likes: what is right already is not touched, what somebody took away comes back. It
writes the record first, so being killed between any two steps loses nothing. A step that fails
(missing privilege, a foreign program, no BPF file system) is told in the report, and tried again at
the next call; the steps that do not depend on it are done nevertheless.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf.attach import ForeignProgram, InterfaceMissing, NativeXdpUnsupported
from bpf.loader import CompileError
from bpf.syscall import VerifierError
from bus.codec import MalformedMessage
from services.node.clamp import clamp
from services.node.direct import (
    ARP_ANNOUNCE,
    ARP_IGNORE,
    NOTHING_NEEDED,
    NOTHING_TAKEN,
    Found,
    Need,
    Plan,
    Taken,
    lacks,
    plan,
    rp_filter,
)
from services.node.record import RecordFile
from services.node.unwrapper import TC, PlaceTakenError, Unwrapper

_SETTINGS = Path("/proc/sys/net/ipv4/conf")
_LOOPBACK = "lo"
_SCOPE_HOST = 254
_MAIN_TABLE = 254
_UNICAST = 1
_REFUSALS = (
    OSError,
    NetlinkError,
    CompileError,
    VerifierError,
    ForeignProgram,
    InterfaceMissing,
    NativeXdpUnsupported,
    PlaceTakenError,
)
_IDLE_SOCKETS = {"06", "07", "0A"}
"""TIME_WAIT, closed, listening: states in which nobody would miss the address."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Order:
    """What the agent wants of the machine."""

    need: Need = NOTHING_NEEDED
    complete: bool = True
    """True once every LB has sent its Welcome. Until then nothing is removed: an LB not yet heard
    may need it."""
    lbs: frozenset[str] = frozenset()
    """Their addresses."""
    managed: bool = True
    hook: str = TC


@dataclass(frozen=True, slots=True)
class Report:
    """What has become of an order."""

    order: Order
    taken: Taken = NOTHING_TAKEN
    missing: tuple[str, ...] = ()

    @property
    def hindrance(self) -> str:
        """Why packets for the VIPs would be lost here; an operator who manages may know better."""
        return "; ".join(self.missing) if self.order.managed else ""


class Host:
    """One machine's network namespace; used by one thread."""

    def __init__(
        self, run_dir: Path, bpf_dir: Path, cache_dir: Path, *, beside_lb: bool = False
    ) -> None:
        self._netlink = IPRoute()
        self._record = RecordFile(run_dir)
        self._unwrapper = Unwrapper(self._netlink, bpf_dir, cache_dir, beside_lb=beside_lb)
        self._missing: list[str] = []
        try:
            self._taken = self._record.load()
        except (MalformedMessage, OSError) as damage:
            _log.warning("what was prepared before is not known", record=damage)
            self._taken = NOTHING_TAKEN

    def close(self) -> None:
        self._unwrapper.close()
        self._netlink.close()

    # ----------------------------------------------------------------- doing

    def settle(self, order: Order) -> Report:
        """Bring the machine to what is ordered, as far as it lets us."""
        self._missing = []
        need = order.need if order.managed else NOTHING_NEEDED
        if not order.complete and order.managed:
            need |= self._taken.need
        if not order.need.addresses and not self._taken:
            return Report(order)
        found = self._find(order, need)
        interfaces = set(found.facing)
        if not self._reaches_all(order):
            interfaces |= {interface for interface, _ in self._taken.hooks}
        hooks = frozenset((name, order.hook) for name in interfaces if need.tunnelled)
        self._carry_out(need, plan(need, self._taken, found, hooks))
        if not order.managed:
            self._missing.extend(lacks(order.need, found))
        return Report(order, self._taken, tuple(self._missing))

    def _carry_out(self, need: Need, steps: Plan) -> None:
        former_hooks = self._taken.hooks
        if not self._save(steps.during):
            return
        quiet = all(self._set(name, value) for name, value in steps.change.items())
        with self._step("unwrapper"):
            self._unwrapper.remove(former_hooks - steps.after.hooks)
            if steps.after.hooks:
                self._unwrapper.ensure(steps.after.hooks, need.tunnelled)
        with self._step("MSS"):
            clamp(self._netlink, need.tunnelled, need.header_bytes)
        # An address that is not silenced would be answered for: better without.
        for address in sorted(steps.add if quiet else ()):
            with self._step(address):
                self._address("add", address)
        for address in sorted(steps.remove):
            with self._step(address):
                self._address("del", address)
        for name, value in steps.restore.items() if not self._missing else ():
            self._set(name, value)
        if not self._missing:
            self._save(steps.after)
        self._missing.extend(steps.missing)

    def _save(self, taken: Taken) -> bool:
        if taken == self._taken:
            return True
        with self._step("record"):
            self._record.save(taken)
            self._taken = taken
            return True
        return False

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        try:
            yield
        except _REFUSALS as refusal:
            why = str(refusal)
            if isinstance(refusal, OSError) and refusal.errno:
                why = os.strerror(refusal.errno) + (
                    f": {refusal.filename}" if refusal.filename else ""
                )
            elif isinstance(refusal, NetlinkError):
                why = os.strerror(refusal.code)
            self._missing.append(f"{what}: {why}")

    def _set(self, name: str, value: int) -> bool:
        with self._step(f"net.ipv4.conf.{name.replace('/', '.')}"):
            (_SETTINGS / name).write_text(f"{value}\n")
            return True
        return False

    def _address(self, verb: str, address: str) -> None:
        index = socket.if_nametoindex(_LOOPBACK)
        try:
            self._netlink.addr(verb, index=index, address=address, prefixlen=32, scope=_SCOPE_HOST)
        except NetlinkError as error:
            if error.code not in (errno.EEXIST, errno.EADDRNOTAVAIL):
                raise

    # ----------------------------------------------------------------- reading

    def _find(self, order: Order, need: Need) -> Found:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in self._netlink.get_links()}
        loopback: set[str] = set()
        elsewhere: dict[str, str] = {}
        for message in self._netlink.get_addr(family=socket.AF_INET):
            address, name = message.get_attr("IFA_LOCAL"), names.get(message["index"], "")
            if name == _LOOPBACK:
                loopback.add(address)
            else:
                elsewhere[address] = name
        facing = frozenset(names[index] for index in self._facing(order.lbs) if index in names)
        settings = [ARP_IGNORE, ARP_ANNOUNCE, *map(rp_filter, ("all", *names.values()))]
        return Found(
            loopback=frozenset(loopback),
            elsewhere={a: n for a, n in elsewhere.items() if a not in loopback},
            settings={name: value for name in settings if (value := _setting(name)) is not None},
            facing=facing - {_LOOPBACK},
            crossed=self._crossed(names) if need.addresses else frozenset(),
            lbs=order.lbs,
        )

    def _facing(self, lbs: frozenset[str]) -> list[int]:
        return [index for address in lbs if (index := self._way_to(address)) is not None]

    def _reaches_all(self, order: Order) -> bool:
        return order.complete and all(self._way_to(address) is not None for address in order.lbs)

    def _way_to(self, address: str) -> int | None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            answers = self._netlink.route("get", dst=address, family=family)
        except NetlinkError:
            return None
        return next((int(index) for a in answers if (index := a.get_attr("RTA_OIF"))), None)

    def _crossed(self, names: dict[int, str]) -> frozenset[str]:
        used = {
            index
            for route in self._netlink.get_routes(family=socket.AF_INET, table=_MAIN_TABLE)
            if route["type"] == _UNICAST
            for index in (
                route.get_attr("RTA_OIF"),
                *(hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or ()),
            )
            if index is not None
        }
        return frozenset(name for index, name in names.items() if used - {index})


def _setting(name: str) -> int | None:
    try:
        return int((_SETTINGS / name).read_text())
    except (OSError, ValueError):
        return None


def open_flows(addresses: frozenset[str]) -> int:
    """How many TCP connections of this machine end at these addresses."""
    places = {_proc_address(address) for address in addresses}
    places |= {f"0000000000000000FFFF0000{place}" for place in places}
    count = 0
    for table in ("tcp", "tcp6"):
        try:
            lines = (Path("/proc/thread-self/net") / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            count += state not in _IDLE_SOCKETS and local.partition(":")[0] in places
    return count


def _proc_address(address: str) -> str:
    """As /proc/net prints it: one word, in this machine's order."""
    return f"{int.from_bytes(socket.inet_aton(address), 'little'):08X}"
