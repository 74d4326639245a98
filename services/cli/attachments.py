"""What is attached to an interface, and which of it is Gale's: read, and taken away, by netlink.

The dataplane leaves its programs where they are when it ends; nothing of it needs to run to find
them. An XDP program is Gale's if it is pinned in `<BPF directory>/prog`, or if its name starts with
`gale_` (pins may be lost; telling the name of a program by its id takes root); a TC filter tells
its name to everybody. Everything else is somebody else's, and nothing here takes that away: the
request that removes an XDP program names the one it means, so that another one attached in the same
moment stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf.syscall import ProgramInfo, get_object, program_by_id, program_info

OUR_PREFIX = "gale_"
OUR_PRIORITY = 1
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3

_NATIVE, _GENERIC, _OFFLOADED = "native", "generic", "offloaded"
_XDP_FLAGS = {_NATIVE: 1 << 2, _GENERIC: 1 << 1, _OFFLOADED: 1 << 3}
_XDP_REPLACE = 1 << 4
_XDP_IDS = {
    "IFLA_XDP_DRV_PROG_ID": _NATIVE,
    "IFLA_XDP_SKB_PROG_ID": _GENERIC,
    "IFLA_XDP_HW_PROG_ID": _OFFLOADED,
}


class NoSuchInterfaceError(Exception):
    """The interface is not there, or went away meanwhile."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One program, or one TC filter of any kind, on one interface."""

    interface: str
    hook: str
    """xdp, or tc for the ingress of clsact."""
    flavour: str
    """XDP: native, generic or offloaded; TC: the kind of the filter."""
    program_id: int
    """Of XDP; 0 for TC."""
    name: str
    """Empty: the kernel does not tell."""
    ours: bool
    priority: int = 0
    handle: int = 0

    def __str__(self) -> str:
        name = self.name or "a program"
        what = f"{self.flavour} XDP" if self.hook == "xdp" else f"TC {self.flavour}"
        number = f"prio {self.priority}" if self.hook == "tc" else f"id {self.program_id}"
        return f"{name} ({what}, {number})"


# --------------------------------------------------------------------------- reading


def attachments(netlink: IPRoute, interface: str, bpf_dir: Path) -> list[Attachment]:
    """XDP programs and ingress filters of `interface`; raises `NoSuchInterfaceError`."""
    index = _index(interface)
    pinned = _pinned_ids(bpf_dir)
    with _present(interface):
        return [
            *_xdp_programs(netlink, interface, index, pinned),
            *_filters(netlink, interface, index),
        ]


def _pinned_ids(bpf_dir: Path) -> set[int]:
    """Ids of the programs pinned in `<bpf_dir>/prog`, as far as these may be opened."""
    ids: set[int] = set()
    try:
        paths = sorted((bpf_dir / "prog").iterdir())
    except OSError:
        return ids
    for path in paths:
        with contextlib.suppress(OSError):
            ids.add(_info(get_object(path)).id)
    return ids


def _xdp_programs(
    netlink: IPRoute, interface: str, index: int, pinned: set[int]
) -> Iterator[Attachment]:
    attribute = netlink.get_links(index)[0].get_attr("IFLA_XDP")
    if attribute is None:
        return
    for key, flavour in _XDP_IDS.items():
        program_id = attribute.get_attr(key)
        if program_id:
            name = _name_of(program_id)
            ours = program_id in pinned or name.startswith(OUR_PREFIX)
            yield Attachment(interface, "xdp", flavour, program_id, name, ours)


def _filters(netlink: IPRoute, interface: str, index: int) -> Iterator[Attachment]:
    for entry in netlink.get_filters(index=index, parent=INGRESS):
        # Each priority is listed once more without a handle, before its filters.
        if not entry["handle"]:
            continue
        kind, name = entry.get_attr("TCA_KIND"), ""
        if kind == "bpf":
            name = entry.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME") or ""
        ours = kind == "bpf" and name.startswith(OUR_PREFIX)
        yield Attachment(interface, "tc", kind, 0, name, ours, entry["info"] >> 16, entry["handle"])


# --------------------------------------------------------------------------- taking away


def take_off(netlink: IPRoute, attachment: Attachment) -> None:
    """Remove one of ours from its interface; clsact too, once nobody else uses it."""
    if not attachment.ours:
        raise ValueError(f"{attachment.interface}: {attachment} is not Gale's")
    index = _index(attachment.interface)
    with _present(attachment.interface):
        if attachment.hook == "xdp":
            _remove_xdp(netlink, index, attachment)
        else:
            netlink.tc(
                "del-filter",
                "bpf",
                index,
                handle=attachment.handle,
                prio=attachment.priority,
                parent=INGRESS,
            )
            if not any(netlink.get_filters(index=index, parent=at) for at in (INGRESS, EGRESS)):
                netlink.tc("del", "clsact", index)


def _remove_xdp(netlink: IPRoute, index: int, attachment: Attachment) -> None:
    fd = program_by_id(attachment.program_id)
    try:
        attributes = [
            ("IFLA_XDP_FD", -1),
            ("IFLA_XDP_EXPECTED_FD", fd),
            ("IFLA_XDP_FLAGS", _XDP_FLAGS[attachment.flavour] | _XDP_REPLACE),
        ]
        netlink.link("set", index=index, IFLA_XDP={"attrs": attributes})
    finally:
        os.close(fd)


# --------------------------------------------------------------------------- the kernel's programs


def _name_of(program_id: int) -> str:
    """Empty without the privilege to ask."""
    try:
        return _info(program_by_id(program_id)).name
    except OSError:
        return ""


def _info(fd: int) -> ProgramInfo:
    """Of a program's fd, which is closed."""
    try:
        return program_info(fd)
    finally:
        os.close(fd)


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise NoSuchInterfaceError(f"{interface}: no such interface") from None


@contextmanager
def _present(interface: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
        raise NoSuchInterfaceError(f"{interface}: went away") from None
