"""Putting programs on interfaces, and telling whether they are there.

Everything is netlink: an attachment belongs to the interface, so it outlives the process, and only
`detach_*` (by `gale detach`) takes it away. A new program takes the old one's place in one step, no
packet sees neither.

**Whose is it?** An interface's XDP program is known by its id alone, and asking the kernel for a
program by id is left to CAP_SYS_ADMIN. So a program is ours if its id is that of our pin: the new
program is pinned beside (`xdp_public~next`) *before* it is attached and takes the pin's name after,
thus at whatever point the process dies, one of the two pins is what is attached. If the pin is
missing, root may look the program up by its id and accept it by its name, `gale_*`. Everything else
is foreign and refused, by the kernel as well: the request names the program it means to replace
(XDP_FLAGS_REPLACE). TC filters tell their name to everybody; ours is handle 1 of priority 1, with
direct action, on the ingress of clsact, and filters of other priorities are left alone. Where a
machine is load balancer and node there are two more (`Spot`).

A load balancer's programs and a node agent's (`gale_unwrap`, pinned as `unwrap_...`) may share a
machine and a BPF directory. To a load balancer the agent's are a stranger's.

What is attached on the whole machine, and what of it is wanted no longer: see `attachments`.

XDP is native (in the driver) or generic (in the kernel, on finished sk_buffs), never both: changing
from one to the other takes the old one off first, and TC has the packets meanwhile.

What fails: `InterfaceMissing` (wait for it), `ForeignProgram` (say so, leave it), and
`NativeXdpUnsupported`, when the driver refuses: the caller goes on with TC alone.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf.pins import open_pin, pin
from bpf.syscall import ProgramInfo, program_by_id, program_info

Flavour = Literal["native", "generic"]

OUR_PREFIX = "gale_"
OUR_PRIORITY, OUR_HANDLE = 1, 1
UNWRAPPER = "gale_unwrap"
UNWRAPPER_PINS = "unwrap_"
"""What the names of a node agent's pins begin with."""
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
NATIVE: Final = "native"
GENERIC: Final = "generic"
OFFLOADED: Final = "offloaded"
_MODE_FLAG = {NATIVE: 1 << 2, GENERIC: 1 << 1, OFFLOADED: 1 << 3}
_FLAVOURS: dict[str, Flavour] = {"xdp": "native", "xdpgeneric": "generic"}
_REPLACE_FLAG = 1 << 4
_NO_PROGRAM = -1

_REFUSALS = {
    errno.EOPNOTSUPP: "its driver knows no XDP",
    errno.ERANGE: "its MTU, or its peer's, is too large for the driver's XDP",
}


class InterfaceMissing(Exception):  # noqa: N818 - a state of the machine, not a mistake
    """There is no such interface, yet."""


class ForeignProgram(Exception):  # noqa: N818 - likewise
    """Somebody else's program is where ours should be; it is left alone."""


class NativeXdpUnsupported(Exception):  # noqa: N818 - likewise
    """The interface's driver does not take this XDP program."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where on an interface a TC filter of ours stands: ingress or egress, and its priority."""

    parent: int
    priority: int = OUR_PRIORITY


FIRST, FIRST_ON_EGRESS = Spot(INGRESS), Spot(EGRESS)
BEHIND_THE_LB = Spot(INGRESS, OUR_PRIORITY + 1)
"""The unwrapper's on a machine that is an LB too: it gets what the LB's program leaves."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One place of an interface for one of our programs, and what was found there."""

    program: str
    """The pin's name."""
    interface: str
    attached: bool
    flavour: str
    """native, generic, tc; or empty while not attached."""
    detail: str


@dataclass(frozen=True, slots=True)
class _Link:
    netlink: IPRoute
    name: str
    index: int


@dataclass(frozen=True, slots=True)
class _AttachedXdp:
    id: int
    flavour: str
    """As in `Hook`; "offloaded" and the like are certainly not ours."""


# --------------------------------------------------------------------------- XDP


def attach_xdp(
    netlink: IPRoute, interface: str, fd: int, pin_path: Path, flavour: Flavour = "native"
) -> Hook:
    """Attach an XDP program and pin it, in one step in the place of ours that was there."""
    with _interface(netlink, interface) as link:
        present = _attached_xdp(link)
        old_fd = _own_program(interface, present, pin_path)
        try:
            expected_fd = old_fd
            if present is not None and present.flavour != flavour:
                _set_xdp(link, None, old_fd, present.flavour)
                expected_fd = None
            _pin_and_set_xdp(link, fd, expected_fd, flavour, pin_path)
        finally:
            if old_fd is not None:
                os.close(old_fd)
    return xdp_state(netlink, interface, pin_path)


def _pin_and_set_xdp(
    link: _Link, fd: int, expected_fd: int | None, flavour: Flavour, pin_path: Path
) -> None:
    beside = _beside(pin_path)
    if expected_fd is not None:
        # After a crash before the rename below, what is attached is pinned under `beside` only.
        pin(expected_fd, pin_path)
    pin(fd, beside)
    try:
        _set_xdp(link, fd, expected_fd, flavour)
    except BaseException:
        beside.unlink()
        raise
    beside.rename(pin_path)


def detach_xdp(netlink: IPRoute, interface: str, pin_path: Path) -> bool:
    """Take our program off and remove its pins; False when none was attached."""
    with _interface(netlink, interface) as link:
        present = _attached_xdp(link)
        old_fd = _own_program(interface, present, pin_path)
        if present is not None and old_fd is not None:
            _set_xdp(link, None, old_fd, present.flavour)
            os.close(old_fd)
    for path in (_beside(pin_path), pin_path):
        path.unlink(missing_ok=True)
    return present is not None


def remove_xdp(netlink: IPRoute, interface: str, fd: int, flavour: str) -> None:
    """Take exactly this program off; raises `ForeignProgram` if it is another by now."""
    with _interface(netlink, interface) as link:
        _set_xdp(link, None, fd, flavour)


def xdp_state(netlink: IPRoute, interface: str, pin_path: Path) -> Hook:
    """What is on the interface now."""
    try:
        with _interface(netlink, interface) as link:
            present = _attached_xdp(link)
        own_fd = _own_program(interface, present, pin_path)
    except (InterfaceMissing, ForeignProgram) as reason:
        return Hook(pin_path.name, interface, False, "", str(reason))
    if present is None or own_fd is None:
        return Hook(pin_path.name, interface, False, "", "no XDP program attached")
    try:
        detail = _describe(program_info(own_fd))
    finally:
        os.close(own_fd)
    return Hook(pin_path.name, interface, True, present.flavour, detail)


def _attached_xdp(link: _Link) -> _AttachedXdp | None:
    attribute = link.netlink.get_links(link.index)[0].get_attr("IFLA_XDP")
    if attribute is None:
        return None
    identity = attribute.get_attr("IFLA_XDP_PROG_ID")
    how = attribute.get_attr("IFLA_XDP_ATTACHED")
    if how is None:
        return None
    # Native and offloaded at once have no single id.
    return _AttachedXdp(identity or 0, _FLAVOURS.get(how, how))


def _own_program(interface: str, present: _AttachedXdp | None, pin_path: Path) -> int | None:
    """The fd of the attached program, which is ours; None when nothing is attached."""
    if present is None:
        return None
    for path in (pin_path, _beside(pin_path), *_kin(pin_path)):
        fd = open_pin(path)
        if fd is None:
            continue
        if program_info(fd).id == present.id:
            return fd
        os.close(fd)
    try:
        fd = program_by_id(present.id)
    except OSError:
        raise ForeignProgram(
            f"{interface}: an XDP program that is not ours is attached (id {present.id})"
        ) from None
    info = program_info(fd)
    if present.flavour in _FLAVOURS.values() and _is_ours(info.name, pin_path):
        return fd
    os.close(fd)
    raise ForeignProgram(
        f"{interface}: an XDP program that is not ours is attached: {_describe(info)}"
    )


def _kin(pin_path: Path) -> list[Path]:
    """The other pins of whose pin this is: an interface's part may have been another one."""
    if not pin_path.parent.exists():
        return []
    others = sorted(pin_path.parent.iterdir())
    return [path for path in others if is_unwrappers(path.name) == is_unwrappers(pin_path.name)]


def is_unwrappers(pin: str) -> bool:
    """Whether a pin of this name is a node agent's."""
    return pin.startswith(UNWRAPPER_PINS)


def _set_xdp(link: _Link, fd: int | None, expected_fd: int | None, flavour: str) -> None:
    attributes = [
        ("IFLA_XDP_FD", _NO_PROGRAM if fd is None else fd),
        ("IFLA_XDP_EXPECTED_FD", _NO_PROGRAM if expected_fd is None else expected_fd),
        ("IFLA_XDP_FLAGS", _MODE_FLAG[flavour] | _REPLACE_FLAG),
    ]
    try:
        link.netlink.link("set", index=link.index, IFLA_XDP={"attrs": attributes})
    except NetlinkError as error:
        if error.code in (errno.EEXIST, errno.EBUSY):
            raise ForeignProgram(
                f"{link.name}: another XDP program was attached meanwhile"
            ) from None
        if error.code in (errno.EPERM, errno.ENODEV, errno.EBADF) or flavour != "native":
            raise
        reason = _REFUSALS.get(error.code, os.strerror(error.code))
        raise NativeXdpUnsupported(f"{link.name}: no native XDP: {reason}") from None


# --------------------------------------------------------------------------- TC


def attach_tc(
    netlink: IPRoute, interface: str, fd: int, pin_path: Path, spot: Spot = FIRST
) -> Hook:
    """Attach a TC program to ingress or egress and pin it, in the place of ours that was there."""
    with _interface(netlink, interface) as link:
        _add_clsact(link)
        there = _filters_in_our_place(link, spot)
        _refuse_foreign_filter(interface, there, pin_path, spot)
        try:
            netlink.tc(
                # To add one fails if somebody else has put a filter there meanwhile.
                "replace-filter" if OUR_HANDLE in there else "add-filter",
                "bpf",
                link.index,
                handle=OUR_HANDLE,
                prio=spot.priority,
                parent=spot.parent,
                fd=fd,
                name=program_info(fd).name,
                direct_action=True,
            )
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            raise ForeignProgram(f"{interface}: another TC filter was attached meanwhile") from None
    _pin_filter(fd, pin_path)
    return tc_state(netlink, interface, pin_path, spot)


def _pin_filter(fd: int, pin_path: Path) -> None:
    """On a machine that is a load balancer too, the directory is not the agent's: its filter is
    known by its name alone there.
    """
    try:
        pin(fd, pin_path)
    except PermissionError:
        if not is_unwrappers(pin_path.name):
            raise


def detach_tc(netlink: IPRoute, interface: str, pin_path: Path, spot: Spot = FIRST) -> bool:
    """Take our filter off, and clsact with it if nobody else uses it; False when there was none."""
    with _interface(netlink, interface) as link:
        attached = _is_ours(_filters_in_our_place(link, spot).get(OUR_HANDLE), pin_path)
        if attached:
            _delete_filter(link, spot)
    pin_path.unlink(missing_ok=True)
    return attached


def remove_filter(netlink: IPRoute, interface: str, name: str, spot: Spot = FIRST) -> None:
    """Take our filter off if it still has this name, and clsact if nobody else uses it.

    Raises `ForeignProgram` if it has another name by now.
    """
    with _interface(netlink, interface) as link:
        present = _filters_in_our_place(link, spot).get(OUR_HANDLE)
        if present != name:
            raise ForeignProgram(f"{interface}: another TC filter was attached meanwhile")
        _delete_filter(link, spot)


def _delete_filter(link: _Link, spot: Spot) -> None:
    netlink = link.netlink
    netlink.tc(
        "del-filter", "bpf", link.index, handle=OUR_HANDLE, prio=spot.priority, parent=spot.parent
    )
    if not any(netlink.get_filters(index=link.index, parent=at) for at in (INGRESS, EGRESS)):
        netlink.tc("del", "clsact", link.index)


def tc_state(netlink: IPRoute, interface: str, pin_path: Path, spot: Spot = FIRST) -> Hook:
    """What is on the interface's ingress, or egress, now."""
    try:
        with _interface(netlink, interface) as link:
            names = _filters_in_our_place(link, spot)
        _refuse_foreign_filter(interface, names, pin_path, spot)
    except (InterfaceMissing, ForeignProgram) as reason:
        return Hook(pin_path.name, interface, False, "", str(reason))
    if OUR_HANDLE not in names:
        return Hook(pin_path.name, interface, False, "", "no TC program attached")
    return Hook(pin_path.name, interface, True, "tc", names[OUR_HANDLE])


def _add_clsact(link: _Link) -> None:
    try:
        link.netlink.tc("add", "clsact", link.index)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def _filters_in_our_place(link: _Link, spot: Spot) -> dict[int, str]:
    """Handle -> name of the filters of our priority there; of other kinds, their kind."""
    names = {}
    for entry in link.netlink.get_filters(index=link.index, parent=spot.parent):
        # Each priority is listed once more without a handle, before its filters.
        if entry["info"] >> 16 != spot.priority or not entry["handle"]:
            continue
        name = entry.get_attr("TCA_KIND")
        if name == "bpf":
            name = entry.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME") or "bpf"
        names[entry["handle"]] = name
    return names


def _refuse_foreign_filter(
    interface: str, names: dict[int, str], pin_path: Path, spot: Spot
) -> None:
    for name in names.values():
        if not _is_ours(name, pin_path):
            raise ForeignProgram(
                f"{interface}: a TC filter that is not ours has priority {spot.priority}: {name}"
            )


def _is_ours(name: str | None, pin_path: Path) -> bool:
    """An agent sees for itself whether it is its own or the load balancer's of the machine."""
    if name is None or not name.startswith(OUR_PREFIX):
        return False
    return is_unwrappers(pin_path.name) or not name.startswith(UNWRAPPER)


# --------------------------------------------------------------------------- both


def refuse_foreign(netlink: IPRoute, interface: str, xdp_pin: Path | None, tc_pin: Path) -> None:
    """Raise `ForeignProgram` if ours could not be attached; nothing is changed. None: TC alone."""
    with _interface(netlink, interface) as link:
        if xdp_pin is not None:
            own_fd = _own_program(interface, _attached_xdp(link), xdp_pin)
            if own_fd is not None:
                os.close(own_fd)
        _refuse_foreign_filter(interface, _filters_in_our_place(link, FIRST), tc_pin, FIRST)


@contextmanager
def _interface(netlink: IPRoute, name: str) -> Iterator[_Link]:
    """The interface; if it is not there, or goes away within, raises `InterfaceMissing`."""
    try:
        link = _Link(netlink, name, socket.if_nametoindex(name))
    except OSError:
        raise InterfaceMissing(f"{name}: no such interface") from None
    try:
        yield link
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
        raise InterfaceMissing(f"{name}: went away") from None


def _beside(pin_path: Path) -> Path:
    return pin_path.with_name(f"{pin_path.name}~next")


def _describe(info: ProgramInfo) -> str:
    return f"{info.name} (id {info.id}, tag {info.tag})"
