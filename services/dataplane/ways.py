"""The ways to the nodes, as the kernel has them now: a shell around `nexthop` and `outputs`.

In: the addresses that are routed to, netlink's notifications of routes, neighbours and devices, and
the paths that a router on the way has called narrow. Out: the next hop of each address, with who is
to send by it, XDP or TC; and for this machine's two interfaces likewise. While nothing of it has
changed, `hops` stays the very same object, so that nobody has to compare thousands of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from services.dataplane import outputs
from services.dataplane.forwarding import Forwarding
from services.dataplane.netdev import DeviceMonitor
from services.dataplane.netlink import NextHopMonitor
from services.dataplane.nexthop import NextHop
from services.dataplane.path_mtu import PathMtu
from services.process import Loop

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Sending:
    """All that decides who sends by a way, beside the way itself."""

    features: Mapping[int, int] | None
    senders: outputs.Senders
    home: outputs.Home | None


class Ways:
    """Netlink's sockets, and what came of them."""

    def __init__(self, *, generic: bool) -> None:
        """`generic`: whether XDP programs are attached in the generic way."""
        self._generic = generic
        self._monitor = NextHopMonitor()
        self._devices = DeviceMonitor()
        self._path_mtu = PathMtu()
        self._watched: frozenset[str] = frozenset()
        self._heard: Mapping[str, NextHop | None] | None = None
        self._sending = _Sending(self._devices.serve(), outputs.Senders(generic, False), None)
        self._by_tc: tuple[bool, ...] = ()
        """Whether TC must send to the public device, and to the private one."""
        self.hops: Mapping[str, NextHop | None] = {}

    def join(self, loop: Loop) -> None:
        """From now on the loop wakes up when there is news."""
        loop.watch(self._monitor.fileno(), self._devices.fileno())
        if self._path_mtu.deaf:
            _log.warning("nobody hears of narrow paths to the nodes", why=self._path_mtu.deaf)
        loop.watch_errors(*self._path_mtu.filenos())

    def close(self) -> None:
        self._path_mtu.close()
        for watching in (self._monitor, self._devices):
            watching.close()

    def next_ms(self, now_ms: int) -> int | None:
        """When there is something to do though nothing has come."""
        return self._monitor.next_ms(now_ms)

    # ------------------------------------------------------------------ what there is

    @property
    def features(self) -> Mapping[int, int] | None:
        """What each device takes; None: nobody can say."""
        return self._sending.features

    @property
    def senders(self) -> outputs.Senders:
        return self._sending.senders

    def is_by_tc(self, ifindex: int) -> bool:
        """Whether TC must send to this device."""
        return outputs.by_tc(ifindex, self.features, self.senders)

    # ------------------------------------------------------------------ news

    def look(self, forwarding: Forwarding | None, now_ms: int) -> bool:
        """Take what has come; whether a way is another than it was, or who sends by one."""
        self._monitor.narrowed(self._path_mtu.drain())
        before = self.hops
        self._take(forwarding, now_ms)
        is_news = self.hops is not before and self.hops != before
        if forwarding is not None:
            present = forwarding.machine
            by_tc = tuple(map(self.is_by_tc, (present.public.ifindex, present.private.ifindex)))
            is_news |= by_tc != self._by_tc
            self._by_tc = by_tc
        return is_news

    def watch(self, addresses: frozenset[str], forwarding: Forwarding | None, now_ms: int) -> None:
        """The ways to these are known when this returns, and no others are looked for any more."""
        if addresses != self._watched:
            self._watched = addresses
            self._monitor.watch(addresses)
            self._take(forwarding, now_ms)

    def watch_more(
        self, addresses: frozenset[str], forwarding: Forwarding | None, now_ms: int
    ) -> None:
        """Those to these as well."""
        self.watch(self._watched | addresses, forwarding, now_ms)

    def _take(self, forwarding: Forwarding | None, now_ms: int) -> None:
        sending = _Sending(self._devices.serve(), self._senders_of(forwarding), _home(forwarding))
        heard = self._monitor.serve(now_ms)
        if heard is not self._heard or sending != self._sending:
            self._heard, self._sending = heard, sending
            self.hops = outputs.marked(heard, sending.features, sending.senders, sending.home)

    def _senders_of(self, forwarding: Forwarding | None) -> outputs.Senders:
        return outputs.Senders(self._generic, forwarding is not None and forwarding.xdp_in_pieces)


def _home(forwarding: Forwarding | None) -> outputs.Home | None:
    if forwarding is None:
        return None
    private = forwarding.machine.private
    return outputs.Home(private.ifindex, private.mac.hex(":"))
