"""`gale detach`: the only thing that removes the programs from the interfaces.

Stopping a process, or all of them, leaves the kernel forwarding by the last state; that is the
promise. So taking the load balancer out of the packets' way is a command of its own, which takes
the load balancer's programs off all interfaces, those of an earlier configuration included, and
nothing else, and then unpins them. What a node agent on this machine has attached and pinned stays.
`--keep-maps` leaves the maps, conntrack with them, to whoever attaches next.

A running dataplane would only put its programs back, so its lock is taken first and held to the
end: if it cannot be had, a dataplane runs, and `--force` is needed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf.attach import ForeignProgram, InterfaceMissing, is_unwrappers
from bpf.attachments import Attachment, Owner, all_attachments, take_off
from bus import topics
from conf import Paths
from services.cli.invocation import NO, Invocation, print_json
from services.cli.machine import mount_of

PROGRAMS = "prog"


@dataclass(slots=True)
class _Outcome:
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """With the reason."""
    failed: list[str] = field(default_factory=list)


def detach(
    context: typer.Context,
    keep_maps: Annotated[
        bool, typer.Option("--keep-maps", help="Leave the pinned maps: conntrack and counters.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even while the dataplane process runs.")
    ] = False,
) -> None:
    """Take Gale's programs off the interfaces: from then on this LB forwards nothing."""
    invocation = Invocation.of(context)
    local = invocation.lb_config().local
    paths = Paths.from_environment()
    outcome = _Outcome()
    with _dataplane_locked_out(paths.run_dir) as locked_out:
        if not locked_out and not force:
            typer.echo(
                "the dataplane process runs and would attach its programs again;"
                " supervisorctl stop gale:dataplane first, or use --force",
                err=True,
            )
            raise typer.Exit(NO)
        with IPRoute() as netlink:
            named = {local.net_interface_public, local.net_interface_private}
            _clear(netlink, named, paths.bpf_dir, outcome)
        if not outcome.failed:
            _unpin(paths.bpf_dir, outcome, keep_maps=keep_maps)
    _report(outcome, as_json=invocation.json)
    raise typer.Exit(NO if outcome.failed else 0)


@contextmanager
def _dataplane_locked_out(run_dir: Path) -> Iterator[bool]:
    """Hold the lock of the dataplane's publisher; False: a process has it."""
    path = topics.publisher_path(run_dir, topics.DATAPLANE)
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _clear(netlink: IPRoute, named: set[str], bpf_dir: Path, outcome: _Outcome) -> None:
    """`named`: the interfaces of the configuration, of which strangers' programs are told too."""
    present = all_attachments(netlink, bpf_dir)
    for each in present:
        if each.owner is Owner.LB:
            _take_off(netlink, each, bpf_dir, outcome)
        elif each.owner is Owner.NODE:
            outcome.left.append(f"{each.interface}: {each} is the node agent's")
        elif each.interface in named:
            outcome.left.append(f"{each.interface}: {each} is not Gale's")
    there = {link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
    outcome.left.extend(f"{name}: no such interface" for name in sorted(named - there))


def _take_off(netlink: IPRoute, attachment: Attachment, bpf_dir: Path, outcome: _Outcome) -> None:
    interface = attachment.interface
    try:
        take_off(netlink, attachment, bpf_dir)
    except (InterfaceMissing, ForeignProgram) as went:
        outcome.left.append(str(went))
    except (NetlinkError, OSError) as error:
        reason = os.strerror(error.code) if isinstance(error, NetlinkError) else error.strerror
        outcome.failed.append(f"{interface}: {reason}; are you root?")
    else:
        outcome.removed.append(f"{interface}: {attachment}")


def _unpin(bpf_dir: Path, outcome: _Outcome, *, keep_maps: bool) -> None:
    """Remove the pins, and the directories that are empty then."""
    if not bpf_dir.exists():
        return
    if mount_of(bpf_dir)[1] != "bpf":
        outcome.left.append(f"{bpf_dir}: not in a BPF file system")
        return
    kept = 0
    for directory, _, names in os.walk(bpf_dir, topdown=False):
        here = Path(directory)
        for name in names:
            if "." in name:  # the file system's own: nobody can make such a name there
                continue
            if here == bpf_dir / PROGRAMS and is_unwrappers(name):
                outcome.left.append(f"{here / name}: the node agent's pin")
                continue
            if keep_maps and here != bpf_dir / PROGRAMS:
                kept += 1
                continue
            try:
                (here / name).unlink()
                outcome.removed.append(f"{here / name}: pin")
            except OSError as error:
                outcome.failed.append(f"{here / name}: {error.strerror}")
        if not os.path.ismount(here) and not any(here.iterdir()):
            here.rmdir()
    if kept:
        outcome.left.append(f"{bpf_dir}: {kept} pinned maps, as asked")


def _report(outcome: _Outcome, *, as_json: bool) -> None:
    if as_json:
        print_json(outcome)
        return
    for line in outcome.removed:
        typer.echo(f"removed  {line}")
    for line in outcome.left:
        typer.echo(f"left     {line}")
    for line in outcome.failed:
        typer.echo(f"failed   {line}", err=True)
    if not (outcome.removed or outcome.left or outcome.failed):
        typer.echo("nothing of Gale's was attached or pinned")
