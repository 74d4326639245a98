"""What is attached on this machine, whose it is, and the taking off of what is wanted no longer.

The load balancer's programs stay where they are when its process ends. What is on the interfaces is
therefore a set, read from the kernel: wanted minus present is attached (`attach`), present minus
wanted is taken off, on every interface of the network namespace, whatever the configuration called
public or private when it was attached.

**Whose?** A program pinned in `<BPF directory>/prog` is the load balancer's, or the node agent's if
the pin is called `unwrap_...`. Without a pin the name decides: `gale_...`. (Telling the name of an
XDP program by its id takes root; a TC filter tells its name to everybody.) All else is somebody
else's, and nothing here takes that away: the request that removes an XDP program names the one it
means, so that another one attached in the same moment stays.

**Remembered.** An interface's new program takes the pin of its predecessor, and without a pin
nobody but root can prove that a program left on an interface configured earlier is ours. So before
anything is attached `set_aside` renames the pin of every program that is attached elsewhere than it
should be to `former_<id>`; it goes once the program has been taken off.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf.attach import (
    BEHIND_THE_LB,
    FIRST,
    FIRST_ON_EGRESS,
    GENERIC,
    NATIVE,
    OFFLOADED,
    OUR_HANDLE,
    OUR_PREFIX,
    OUR_PRIORITY,
    UNWRAPPER,
    ForeignProgram,
    InterfaceMissing,
    is_unwrappers,
    remove_filter,
    remove_xdp,
)
from bpf.syscall import ProgramInfo, get_object, program_by_id, program_info

XDP, TC, TC_EGRESS = "xdp", "tc", "tc egress"
SPOTS = {TC: FIRST, TC_EGRESS: FIRST_ON_EGRESS}
Place = tuple[str, str]
"""An interface, and xdp, tc or tc egress."""
FORMER = "former_"
_XDP_IDS = {
    "IFLA_XDP_DRV_PROG_ID": NATIVE,
    "IFLA_XDP_SKB_PROG_ID": GENERIC,
    "IFLA_XDP_HW_PROG_ID": OFFLOADED,
}


class Owner(StrEnum):
    LB = "load balancer"
    NODE = "node agent"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One program, or one TC filter of any kind, on one interface."""

    interface: str
    hook: str
    """xdp, or tc for the ingress of clsact, or tc egress."""
    flavour: str
    """XDP: native, generic or offloaded; TC: the kind of the filter."""
    program_id: int
    """Of XDP; 0 for TC."""
    name: str
    """Empty: the kernel does not tell."""
    owner: Owner
    priority: int = 0
    handle: int = 0

    @property
    def ours(self) -> bool:
        """Whether it is Gale's, the agent's included."""
        return self.owner is not Owner.STRANGER

    @property
    def place(self) -> Place:
        return self.interface, self.hook

    def __str__(self) -> str:
        name = self.name or "a program"
        tc = "TC egress" if self.hook == TC_EGRESS else "TC"
        what = f"{self.flavour} XDP" if self.hook == XDP else f"{tc} {self.flavour}"
        number = f"id {self.program_id}" if self.hook == XDP else f"prio {self.priority}"
        return f"{name} ({what}, {number})"


# --------------------------------------------------------------------------- reading


def attachments(netlink: IPRoute, interface: str, bpf_dir: Path) -> list[Attachment]:
    """XDP programs and filters of `interface`; raises `InterfaceMissing`.

    Strangers' filters on egress are not among them: they are in nobody's way.
    """
    try:
        index = socket.if_nametoindex(interface)
        link = netlink.get_links(index)[0]
        return list(_of_link(netlink, link, _pins(bpf_dir)))
    except (OSError, NetlinkError):
        raise InterfaceMissing(f"{interface}: no such interface") from None


def all_attachments(netlink: IPRoute, bpf_dir: Path) -> list[Attachment]:
    """Of every interface of this network namespace, in the order of their names."""
    pins = _pins(bpf_dir)
    qdiscs = netlink.get_qdiscs()
    filtered = {each["index"] for each in qdiscs if each.get_attr("TCA_KIND") == "clsact"}
    found: list[Attachment] = []
    for link in netlink.get_links():
        with contextlib.suppress(NetlinkError):  # it went away meanwhile
            found += _of_link(netlink, link, pins, filters=link["index"] in filtered)
    return sorted(found, key=lambda each: (each.interface, each.hook != XDP, each.priority))


def _pins(bpf_dir: Path) -> dict[int, Path]:
    """The programs pinned in `<bpf_dir>/prog`, as far as these may be opened, by their id."""
    found: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for path in sorted((bpf_dir / "prog").iterdir()):
            with contextlib.suppress(OSError):
                found[_info(get_object(path)).id] = path
    return found


def _of_link(
    netlink: IPRoute, link: Any, pins: dict[int, Path], *, filters: bool = True
) -> Iterator[Attachment]:
    name = link.get_attr("IFLA_IFNAME")
    attribute = link.get_attr("IFLA_XDP")
    for key, flavour in _XDP_IDS.items():
        number = attribute.get_attr(key) if attribute is not None else None
        if number:
            program = _name_of(number)
            yield Attachment(name, XDP, flavour, number, program, _owner(number, program, pins))
    for hook, spot in SPOTS.items() if filters else ():
        for entry in netlink.get_filters(index=link["index"], parent=spot.parent):
            # Each priority is listed once more without a handle, before its filters.
            found = _filter(name, hook, entry, pins) if entry["handle"] else None
            if found is not None and (hook == TC or found.ours):
                yield found


def _filter(interface: str, hook: str, entry: Any, pins: dict[int, Path]) -> Attachment:
    kind, name, owner = entry.get_attr("TCA_KIND"), "", Owner.STRANGER
    priority, handle = entry["info"] >> 16, entry["handle"]
    if kind == "bpf":
        name = entry.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME") or ""
        if handle == OUR_HANDLE and priority in (OUR_PRIORITY, BEHIND_THE_LB.priority):
            owner = _owner(0, name, pins)
    return Attachment(interface, hook, kind, 0, name, owner, priority, handle)


def _owner(program_id: int, name: str, pins: dict[int, Path]) -> Owner:
    pin = pins.get(program_id)
    if pin is not None:
        return Owner.NODE if is_unwrappers(pin.name) else Owner.LB
    if name.startswith(UNWRAPPER):
        return Owner.NODE
    return Owner.LB if name.startswith(OUR_PREFIX) else Owner.STRANGER


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


# --------------------------------------------------------------------------- taking off


def set_aside(netlink: IPRoute, bpf_dir: Path, wanted: Mapping[Place, str]) -> None:
    """Keep the pin of what is attached elsewhere than it should be, by another name.

    `wanted`: the places, and the name of the pin of what is to be there.
    """
    pins = _pins(bpf_dir)
    for each in all_attachments(netlink, bpf_dir):
        path = pins.get(each.program_id)
        if path is None or each.owner is not Owner.LB or wanted.get(each.place) == path.name:
            continue
        path.rename(path.with_name(f"{FORMER}{each.program_id}"))


def take_off_rest(
    netlink: IPRoute, bpf_dir: Path, wanted: Mapping[Place, str]
) -> dict[Attachment, str]:
    """Take off what is the load balancer's and on no `wanted` place, and remove its pins.

    Each with why it could not be taken off; empty: it was.
    """
    outcome = {
        each: _try(netlink, each, bpf_dir)
        for each in all_attachments(netlink, bpf_dir)
        if each.owner is Owner.LB and each.place not in wanted
    }
    kept = {each.program_id for each, problem in outcome.items() if problem}
    for number, path in _pins(bpf_dir).items():
        if not (is_unwrappers(path.name) or path.name in wanted.values() or number in kept):
            path.unlink()
    return outcome


def _try(netlink: IPRoute, attachment: Attachment, bpf_dir: Path) -> str:
    try:
        take_off(netlink, attachment, bpf_dir)
    except InterfaceMissing:
        return ""
    except (ForeignProgram, NetlinkError, OSError) as problem:
        return str(problem)
    return ""


def take_off(netlink: IPRoute, attachment: Attachment, bpf_dir: Path) -> None:
    """Remove one of ours from its interface; clsact too, once nobody else uses it.

    Raises `ForeignProgram` if somebody else's is there by now, `InterfaceMissing`, NetlinkError, or
    OSError for want of privilege.
    """
    if not attachment.ours:
        raise ValueError(f"{attachment.interface}: {attachment} is not Gale's")
    first = SPOTS.get(attachment.hook)
    if first is not None:
        spot = replace(first, priority=attachment.priority)
        remove_filter(netlink, attachment.interface, attachment.name, spot)
        return
    pin = _pins(bpf_dir).get(attachment.program_id)
    fd = program_by_id(attachment.program_id) if pin is None else get_object(pin)
    try:
        remove_xdp(netlink, attachment.interface, fd, attachment.flavour)
    finally:
        os.close(fd)
