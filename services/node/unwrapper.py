"""Mode L3: the program that takes off the LBs' outer headers (bpf/kernel/unwrap.c), on interfaces.

It is loaded once in the agent's life, with a map of its own, and the map is filled before the
program is attached. So an agent that is started again puts a complete program and map in the place
of the old ones, in one step, and one that was killed leaves everything at work.

On a machine that is an LB too (its file says so) the LB's own program has the first place, and the
unwrapper stands behind it: what the LB sends to others never comes to it, and what other LBs send
here the LB's program leaves. Where no file says so, and an LB's program is in the place all the
same, that is refused, as a stranger's is.
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

    def __init__(
        self, netlink: IPRoute, bpf_dir: Path, cache_dir: Path, *, beside_lb: bool = False
    ) -> None:
        self._netlink = netlink
        self._spot, self._other = attach.FIRST, attach.BEHIND_THE_LB
        """Where the filter is; where it was before the machine became an LB, or was one no more."""
        if beside_lb:
            self._spot, self._other = self._other, self._spot
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
                if how == TC:
                    self._leave(interface, self._other)

    def remove(self, places: frozenset[tuple[str, str]]) -> None:
        """Leave these places; what is there and not the unwrapper stays."""
        for interface, how in sorted(places):
            self._attached.discard((interface, how))
            try:
                if how == XDP and _is_unwrapper(self._state(interface, how)):
                    attach.detach_xdp(self._netlink, interface, self._pin(interface, how))
                elif how == TC:
                    self._leave(interface, self._other)
                    self._leave(interface, self._spot)
                    self._pin(interface, how).unlink(missing_ok=True)
            except attach.InterfaceMissing:
                self._pin(interface, how).unlink(missing_ok=True)

    def _leave(self, interface: str, spot: attach.Spot) -> None:
        """The filter alone, if it stands there: another one may have the pin."""
        state = attach.tc_state(self._netlink, interface, self._pin(interface, TC), spot)
        if _is_unwrapper(state):
            attach.remove_filter(self._netlink, interface, PROGRAM, spot)

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
            fd = loaded.function(PROGRAM, TC)
            attach.attach_tc(self._netlink, interface, fd, pin, self._spot)
            return
        (link,) = self._netlink.link("get", ifname=interface)
        frags = link.get_attr("IFLA_MTU") > FRAGS_MTU
        fd = loaded.function(PROGRAM, XDP, frags=frags)
        attach.attach_xdp(self._netlink, interface, fd, pin)

    def _state(self, interface: str, how: str) -> attach.Hook:
        pin = self._pin(interface, how)
        if how == XDP:
            return attach.xdp_state(self._netlink, interface, pin)
        return attach.tc_state(self._netlink, interface, pin, self._spot)

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
