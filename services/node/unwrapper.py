"""Mode L3: the program that takes off the LBs' outer headers (bpf/kernel/unwrap.c), on interfaces.

It is loaded once in the agent's life, with a map of its own, and the map is filled before the
program is attached. So an agent that is started again puts a complete program and map in the place
of the old ones, in one step, and one that was killed leaves everything at work.

On a machine that is an LB too, the place may be taken by the LB's own program: that is refused, as
a stranger's is.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

from bpf import attach
from bpf.loader import LoadedObject, compile_program

PROGRAM = "gale_unwrap"
SOURCE = "unwrap.c"
TC: Final = "tc"
XDP: Final = "xdp"
FRAGS_MTU = 3_000
"""Above this a driver may hand XDP a packet in pieces, and asks for a program that knows it."""


class PlaceTakenError(Exception):
    """Another of Gale's programs is where the unwrapper should be."""


class Unwrapper:
    """The program of one agent."""

    def __init__(self, netlink: IPRoute, bpf_dir: Path, cache_dir: Path) -> None:
        self._netlink = netlink
        self._pins = bpf_dir / "prog"
        self._cache_dir = cache_dir
        self._objects: dict[str, LoadedObject] = {}
        self._attached: set[tuple[str, str]] = set()

    def ensure(self, places: frozenset[tuple[str, str]], addresses: frozenset[str]) -> None:
        """Be on these places, for these VIPs.

        Raises what `bpf.attach` and `bpf.loader` raise, and `PlaceTakenError`.
        """
        for how in {how for _, how in places} | self._objects.keys():
            self._fill(how, addresses)
        for interface, how in sorted(places):
            state = self._state(interface, how)
            if (interface, how) not in self._attached or not state.attached:
                if state.attached and not _is_unwrapper(state):
                    raise PlaceTakenError(f"{interface}: {state.detail} has the unwrapper's place")
                self._attach(interface, how)
                self._attached.add((interface, how))

    def remove(self, places: frozenset[tuple[str, str]]) -> None:
        """Leave these places; what is there and not the unwrapper stays."""
        for interface, how in sorted(places):
            self._attached.discard((interface, how))
            try:
                if _is_unwrapper(self._state(interface, how)):
                    detach = attach.detach_xdp if how == XDP else attach.detach_tc
                    detach(self._netlink, interface, self._pin(interface, how))
            except attach.InterfaceMissing:
                self._pin(interface, how).unlink(missing_ok=True)

    def _fill(self, how: str, addresses: frozenset[str]) -> None:
        if how not in self._objects:
            defines: dict[str, str | int] = {"GALE_XDP": 1} if how == XDP else {}
            self._objects[how] = compile_program(SOURCE, defines=defines, cache_dir=self._cache_dir)
        vips = self._objects[how].bpf[b"vips"]
        # An address as the program reads it from a packet: its bytes in order.
        wanted = {
            int.from_bytes(ipaddress.IPv4Address(each).packed, "little") for each in addresses
        }
        present = {key.value for key in vips}
        for key in wanted - present:
            vips[vips.Key(key)] = vips.Leaf(1)
        for key in present - wanted:
            del vips[vips.Key(key)]

    def _attach(self, interface: str, how: str) -> None:
        loaded, pin = self._objects[how], self._pin(interface, how)
        if how == TC:
            attach.attach_tc(self._netlink, interface, loaded.function(PROGRAM, TC), pin)
            return
        (link,) = self._netlink.link("get", ifname=interface)
        frags = link.get_attr("IFLA_MTU") > FRAGS_MTU
        fd = loaded.function(PROGRAM, XDP, frags=frags)
        attach.attach_xdp(self._netlink, interface, fd, pin)

    def _state(self, interface: str, how: str) -> attach.Hook:
        look = attach.xdp_state if how == XDP else attach.tc_state
        return look(self._netlink, interface, self._pin(interface, how))

    def _pin(self, interface: str, how: str) -> Path:
        # A BPF file system has no dots in names, an interface no colon.
        return self._pins / f"unwrap_{how}_{interface.replace('.', ':')}"

    def close(self) -> None:
        """Give back the fds; what is attached goes on."""
        for loaded in self._objects.values():
            loaded.close()
        self._objects.clear()


def _is_unwrapper(state: attach.Hook) -> bool:
    return state.attached and state.detail.split()[0] == PROGRAM
