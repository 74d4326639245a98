"""Claims: what of this LB's leases the kernel goes by, in the pinned map `claims`.

The programs answer ARP, neighbour solicitations and pings for a floating address while the clock is
below the number that stands there, and this process alone writes it: so if it stops, dies or hangs,
this LB ceases to claim by itself, and nobody has to notice first. A VIP and its SNAT addresses are
one unit: they have the same instant, in one system call.

Beside it stands when this LB last began or ceased to claim. For a second from then on the programs
answer no TCP of unknown flows with RST: the flow may be one that the former holder opened last, and
that is still on its way here. Its client sends again.

Every floating address of the configuration stands in the map, also while this LB does not claim it:
that is how the programs know whose question they must not leave to the host's stack. The map is the
dataplane's, which may replace it by another (a detach, say), so the pin is opened for every write,
and one that has not been seen before is filled anew.

In: `claim`, what the core says (by VIP, until when); `configure`; `tick`. Out: the map, and in
`take` the events `vip.acquired.` and `vip.lost.`, each only after the map has it. A claim that ends
is in the map when `claim` returns.

Failure: no pin yet, or one that this process may not open, or one of another layout, is the
machine's matter: said in `waiting_for` and tried again ten times a second; nothing is claimed
meanwhile. Anything else is a fault of ours and ends the process, and with it the claims.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from struct import Struct

from bpf.clock import ticks
from bpf.syscall import (
    MapType,
    delete_entries,
    get_object,
    map_shape,
    read_entries,
    write_entries,
)
from bus.events import VipEvent
from bus.topics import Topic
from services.quorum.table import TableConfig

RETRY_MS = 100
LOOK_MS = 1_000
"""How often the map is looked at though there is nothing to write: it may be another one."""
ASKED_IN_PUBLIC, ASKED_IN_PRIVATE = 1, 2
KEY_BYTES = 16
_CLAIM = Struct("=QII")
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Told:
    """What an event says beside the address."""

    lb: str
    term: int
    why: str = "this LB holds the lease"
    """Of a VIP that is claimed."""


class Claims:
    """The floating addresses of one LB's configuration, as they stand in the kernel."""

    def __init__(self, bpf_dir: Path, config: TableConfig, now_ms: int, *, alone: bool) -> None:
        """`alone`: there is no other LB, so what was claimed before this process may go on."""
        self._pin = bpf_dir / "maps" / "claims"
        self._until_ms: dict[str, int] = {}
        self._written_ms: dict[str, int] = {}
        """By VIP, until when the kernel answers for it."""
        self._moved_ms: dict[str, int] = {}
        """By VIP, when that began, or ended."""
        self._inode: int | None = None
        """Of the pin whose map has all addresses and no other ones; None: that is not known."""
        self._events: list[tuple[Topic, VipEvent]] = []
        self.waiting_for = ""
        self._vips: tuple[str, ...] = ()
        self._unit: dict[str, tuple[str, int]] = {}
        self.configure(config, now_ms)
        self._due_ms = now_ms + (LOOK_MS if alone else 0)

    def configure(self, config: TableConfig, now_ms: int) -> None:
        """The file was read again: other addresses may float."""
        self._vips = tuple(vip.address for vip in config.vips)
        self._unit = _unit(config)
        self._inode = None
        self._due_ms = now_ms

    def claim(self, until_ms: Mapping[str, int], told: Told, now_ms: int) -> None:
        """From now on this LB may claim these VIPs, each until then, and no others."""
        self._until_ms = dict(until_ms)
        self._write(told, now_ms)

    def tick(self, told: Told, now_ms: int) -> None:
        """To be called at `next_due_ms` at the latest."""
        self._lapse(told, now_ms)
        if now_ms >= self._due_ms and self._is_of_interest:
            self._write(told, now_ms)

    def next_due_ms(self) -> int | None:
        """When `tick` has something to do; None: never, as things stand."""
        due_ms = [self._due_ms] if self._is_of_interest else []
        return min([*due_ms, *self._written_ms.values()], default=None)

    def take(self) -> list[tuple[Topic, VipEvent]]:
        """What has happened since this was called last."""
        events, self._events = self._events, []
        return events

    @property
    def held(self) -> frozenset[str]:
        """The VIPs that the kernel answers for."""
        return frozenset(self._written_ms)

    # ------------------------------------------------------------------ the map

    @property
    def _is_of_interest(self) -> bool:
        """Without floating addresses the map is looked at once: there may be some of before."""
        return bool(self._vips) or self._inode is None

    def _write(self, told: Told, now_ms: int) -> None:
        self._due_ms = now_ms + LOOK_MS
        try:
            fd = get_object(self._pin)
        except FileNotFoundError:
            self._wait("the dataplane, which makes the map of claims", now_ms)
            return
        except PermissionError as error:
            self._wait(f"{self._pin}: {error.strerror}", now_ms)
            return
        try:
            if map_shape(fd)[:3] != (MapType.HASH, KEY_BYTES, _CLAIM.size):
                self._wait(f"{self._pin}: this map is of another version of Gale", now_ms)
                return
            self._fill(fd, now_ms)
        finally:
            os.close(fd)
        self.waiting_for = ""
        self._compare(told, now_ms)

    def _fill(self, fd: int, now_ms: int) -> None:
        for vip in self._vips:
            claimed = self._written_ms.get(vip, 0) > now_ms
            if claimed != (self._until_ms.get(vip, 0) > now_ms):
                self._moved_ms[vip] = now_ms
        keys, values = bytearray(), bytearray()
        for address, (vip, side) in self._unit.items():
            keys += _key(address)
            until_ns = self._until_ms.get(vip, 0) * _NS_PER_MS
            moved = ticks(self._moved_ms.get(vip, 0) * _NS_PER_MS)
            values += _CLAIM.pack(until_ns, side, moved)
        if keys:
            write_entries(fd, bytes(keys), bytes(values))
        inode = self._pin.stat().st_ino
        if inode != self._inode:
            known = {_key(address) for address in self._unit}
            found = {
                each[at : at + KEY_BYTES]
                for each, _ in read_entries(fd)
                for at in range(0, len(each), KEY_BYTES)
            }
            if found - known:
                delete_entries(fd, b"".join(found - known))
            self._inode = inode

    def _wait(self, what: str, now_ms: int) -> None:
        """There are no programs that would go by what was claimed, or it ends by itself."""
        self.waiting_for = what if self._vips else ""
        self._inode = None
        self._due_ms = now_ms + (RETRY_MS if self._vips else LOOK_MS)

    # ------------------------------------------------------------------ what is told

    def _lapse(self, told: Told, now_ms: int) -> None:
        for vip in [vip for vip, until_ms in self._written_ms.items() if now_ms >= until_ms]:
            del self._written_ms[vip]
            self._tell(Topic.VIP_LOST, vip, told, "the lease has ended")

    def _compare(self, told: Told, now_ms: int) -> None:
        self._lapse(told, now_ms)
        claimed = {vip: self._until_ms.get(vip, 0) for vip in self._vips}
        held = {vip: until_ms for vip, until_ms in claimed.items() if until_ms > now_ms}
        for vip in self._written_ms.keys() - held.keys():
            self._tell(Topic.VIP_LOST, vip, told, "given up")
        for vip in held.keys() - self._written_ms.keys():
            self._tell(Topic.VIP_ACQUIRED, vip, told, told.why)
        self._written_ms = held

    def _tell(self, topic: Topic, vip: str, told: Told, reason: str) -> None:
        holder = told.lb if topic is Topic.VIP_ACQUIRED else None
        self._events.append((topic, VipEvent(vip, holder, told.term, reason)))


def _unit(config: TableConfig) -> dict[str, tuple[str, int]]:
    """By address: the VIP that it moves with, and on which side it is asked for."""
    unit: dict[str, tuple[str, int]] = {}
    for vip in config.vips:
        own = [each.snat_addresses for each in config.services if each.address == vip.address]
        snat = [address for each in (vip.snat_addresses, *own) for address in each]
        unit |= dict.fromkeys(snat, (vip.address, ASKED_IN_PRIVATE))
        unit[vip.address] = (vip.address, ASKED_IN_PUBLIC)
    return unit


@lru_cache(maxsize=1 << 14)
def _key(address: str) -> bytes:
    """An address in the words of IPv6 (RFC 4291, 2.5.5.2)."""
    parsed = ip_address(address)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed
