"""Real packets: what a virtual machine's host writes into a tap, and what leaves by another.

BPF_PROG_TEST_RUN and veth show neither a merged packet without a count, nor a partial checksum, nor
a tag beside the bytes, nor whom a frame is for. A tap with IFF_VNET_HDR does: its header says what
a virtual machine's does (struct virtio_net_hdr), and the kernel makes a packet of it on the very
path that a virtio or tap device takes. Two of them, in a network namespace of their own, carry
Gale's programs in TC; what is read from them has been finished as on a wire: cut into segments, and
all checksums written.

Everything happens while `write` is under way, since the receiving path is that of the writer.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pyroute2 import IPRoute

from bpf import attach
from services.dataplane.counters import hooks, reasons
from tests.bpf.harness import LB_MAC, PEER_MAC, private_bpffs, private_network
from tests.bpf.scene import (
    NODE,
    NODE_MAC,
    OWN_PRIVATE,
    OWN_PUBLIC,
    ROUTER,
    SEAT,
    Scene,
)

_TUNSETIFF, _TAP, _NO_PI, _VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000
_NEEDS_CSUM = 1
_HEADER = struct.Struct("=BBHHHH")
_LONGEST = 1 << 17
TCP_SEGMENTS, UDP_FRAGMENTS, UDP_SEGMENTS = 1, 3, 5
"""VIRTIO_NET_HDR_GSO_*: what a merged packet is to be cut into."""

Side = Literal["public", "private"]
_INTERFACES: dict[Side, str] = {"public": "pub0", "private": "priv0"}
_COMMANDS = f"""
link set lo up
link set pub0 address {LB_MAC} mtu 1500 up
link set priv0 address {LB_MAC} mtu 9000 up
address add {OWN_PUBLIC}/24 dev pub0
address add {OWN_PRIVATE}/24 dev priv0
neigh add {ROUTER} lladdr {PEER_MAC} dev pub0
neigh add {NODE[0]} lladdr {NODE_MAC} dev priv0
route add default via {ROUTER}
"""


@dataclass(frozen=True, slots=True)
class Merged:
    """A packet that stands for many: the payload of each, and what they are."""

    size: int
    kind: int = TCP_SEGMENTS


class Taps:
    """The two devices, with Gale's TC programs on them."""

    def __init__(self, scene: Scene, netlink: IPRoute) -> None:
        self.scene = scene
        self._fds = {side: _open_tap(name) for side, name in _INTERFACES.items()}
        subprocess.run(["ip", "-batch", "-"], input=_COMMANDS, text=True, check=True)
        self._indices = {
            side: netlink.link_lookup(ifname=name)[0] for side, name in _INTERFACES.items()
        }

    def be_the_machine(self) -> None:
        """The maps say that these are the interfaces, and that the node is behind the private."""
        self.scene.settings(
            public_ifindex=self._indices["public"], private_ifindex=self._indices["private"]
        )
        self.node_behind("private")

    def node_behind(self, side: Side, mtu: int = 1500) -> None:
        self.scene.seat(SEAT, ifindex=self._indices[side], mtu=mtu)

    def give_address(self, side: Side, mac: str) -> None:
        command = ["ip", "link", "set", _INTERFACES[side], "address", mac]
        subprocess.run(command, check=True)

    def write(
        self,
        side: Side,
        frame: bytes,
        *,
        merged: Merged | None = None,
        partial: bool = False,
        linear: int = 0,
    ) -> dict[str, int]:
        """A frame arrives; `hook.reason` → packets, of what was counted meanwhile.

        `partial`: its transport checksum is yet to be finished, as always when merged. `linear`:
        how many bytes lie in one piece, the others elsewhere; 0: as the kernel likes it.
        """
        before = self.scene.counted()
        head = _HEADER.pack(0, 0, linear, 0, 0, 0)
        if partial or merged is not None:
            frame, start, offset = _unfinished(frame)
            kind, size = (merged.kind, merged.size) if merged is not None else (0, 0)
            head = _HEADER.pack(_NEEDS_CSUM, kind, linear or start, size, start, offset)
        os.write(self._fds[side], head + frame)
        counted = self.scene.counted() - before
        names, said = list(hooks()), list(reasons())
        return {
            f"{names[hook]}.{said[reason]}": int(counted[hook, reason])
            for hook, reason in np.argwhere(counted).tolist()
        }

    def read(self, side: Side) -> list[bytes]:
        """All that has left there, in order."""
        frames = []
        while True:
            try:
                frames.append(os.read(self._fds[side], _LONGEST)[_HEADER.size :])
            except BlockingIOError:
                return frames

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


@contextmanager
def taps(scene: Scene) -> Iterator[Taps]:
    """The devices, for this thread, which is in their network namespace meanwhile."""
    with private_network(), private_bpffs() as bpf_dir, IPRoute() as netlink:
        subprocess.run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"], check=True)
        made = Taps(scene, netlink)
        try:
            for side, name in _INTERFACES.items():
                hook = f"tc_{side}"
                attach.attach_tc(
                    netlink, name, scene.programs.function(hook), bpf_dir / "prog" / hook
                )
            yield made
        finally:
            made.close()


def _open_tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_PI | _VNET_HDR))
    return fd


def _unfinished(frame: bytes) -> tuple[bytes, int, int]:
    """The frame with the sum of the pseudo header alone in its transport checksum; where the
    transport begins, and where in it the checksum lies.
    """
    network = 14
    while frame[network - 2 : network] in (b"\x81\x00", b"\x88\xa8"):
        network += 4
    start = network + (frame[network] & 0x0F) * 4
    protocol = frame[network + 9]
    offset = 16 if protocol == 6 else 6
    pseudo = frame[network + 12 : network + 20] + struct.pack("!HI", protocol, len(frame) - start)
    total = sum(struct.unpack("!7H", pseudo))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    at = start + offset
    return frame[:at] + struct.pack("!H", total) + frame[at + 2 :], start, offset
