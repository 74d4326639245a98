"""Compiled, attached, pinned: all hooks or none, and the old ones go on until the new are there."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from bpf.attach import ForeignProgram, InterfaceMissing
from bpf.loader import LoadedObject
from bpf.pins import PinMismatch, pin
from bpf.syscall import MapType, VerifierError, create_map, get_object, map_shape, program_info
from bus.messages import HookState
from conf import load_lb
from services.dataplane.machine import look
from services.dataplane.programs import ProgramPlan, Programs
from tests.bpf.harness import IMAGES, private_bpffs, private_network, program

PLAN = ProgramPlan("pub0", "priv0", False, False, 4096, 4096)
STRANGER = """
#include <linux/bpf.h>
int stranger(struct xdp_md *ctx) { return XDP_PASS; }
"""


@dataclass
class Host:
    """Two veth ends and a bridge, all with an address and up; and a BPF directory."""

    netlink: IPRoute
    bpf_dir: Path

    def attach(self, plan: ProgramPlan = PLAN) -> Programs:
        present = look(self.netlink, plan.public, plan.private)
        programs = Programs(plan, self.bpf_dir, IMAGES, self.netlink)
        try:
            programs.attach(present)
        except BaseException:
            programs.close()
            raise
        return programs

    def pins(self, kind: str = "prog") -> dict[str, int]:
        directory = self.bpf_dir / kind
        paths = sorted(directory.iterdir()) if directory.exists() else []
        return {path.name: program_info(get_object(path)).id for path in paths}

    def filters(self, name: str) -> str:
        shown = ("tc", "filter", "show", "dev", name, "ingress")
        return subprocess.run(shown, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def host() -> Iterator[Host]:
    with private_bpffs() as directory, private_network(), IPRoute() as netlink:
        netlink.link("add", ifname="pub0", kind="veth", peer="far0")
        netlink.link("add", ifname="priv0", kind="veth", peer="far1")
        netlink.link("add", ifname="br0", kind="bridge")
        for number, name in enumerate(("pub0", "priv0", "br0", "far0", "far1")):
            index = socket.if_nametoindex(name)
            netlink.link("set", index=index, state="up")
            netlink.addr("add", index=index, address=f"10.9.{number}.1", prefixlen=24)
        yield Host(netlink, directory)


def told(hooks: tuple[HookState, ...]) -> list[tuple[str, str, str]]:
    return [(hook.program, hook.interface, hook.flavour) for hook in hooks if hook.attached]


TWO_ARMS = [
    ("xdp_public", "pub0", "native"),
    ("tc_public", "pub0", "tc"),
    ("tc_private", "priv0", "tc"),
]

# --------------------------------------------------------------------------- what is asked for


def test_the_plan_is_what_the_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "lb.toml"
    local = '[local]\nnet_interface_public = "a"\nnet_interface_private = "b"\n'
    path.write_text(local)
    assert ProgramPlan.from_config(load_lb(path)) == ProgramPlan(
        "a", "b", False, False, 524_288, 131_072
    )
    path.write_text(
        local.replace('"b"', '"a"')
        + '[dataplane]\nxdp = "generic"\nreply_hook = "xdp"\n'
        + "conntrack_entries = 1024\nhalf_open_entries = 512\n"
    )
    plan = ProgramPlan.from_config(load_lb(path))
    assert plan == ProgramPlan("a", "a", True, True, 1024, 512)
    assert plan.one_arm
    assert plan.defines == {
        "CONNTRACK_ENTRIES": 1024,
        "HALF_OPEN_ENTRIES": 512,
        "GALE_ONE_ARM": 1,
    }
    assert not PLAN.one_arm
    assert "GALE_ONE_ARM" not in PLAN.defines


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, TWO_ARMS),
        ({"generic_xdp": True}, [("xdp_public", "pub0", "generic"), *TWO_ARMS[1:]]),
        (
            {"xdp_replies": True},
            [TWO_ARMS[0], ("xdp_private", "priv0", "native"), *TWO_ARMS[1:]],
        ),
        ({"private": "pub0"}, TWO_ARMS[:2]),
        ({"private": "pub0", "xdp_replies": True}, TWO_ARMS[:2]),
    ],
)
def test_every_hook_that_is_asked_for_is_taken(
    host: Host, changes: dict[str, Any], wanted: list[tuple[str, str, str]]
) -> None:
    programs = host.attach(replace(PLAN, **changes))
    assert told(programs.hooks()) == wanted
    assert sorted(host.pins()) == sorted(name for name, *_ in wanted)
    assert programs.objects.bpf[b"est"].info.max_entries == 4096
    programs.close()
    assert len(list((host.bpf_dir / "maps").iterdir())) == len(programs.objects.bpf)


def test_without_native_xdp_tc_takes_the_requests_and_the_state_says_why(host: Host) -> None:
    programs = host.attach(replace(PLAN, public="br0"))
    first, *others = programs.hooks()
    assert (first.attached, first.flavour) == (False, "")
    assert first.detail == "br0: no native XDP: its driver knows no XDP; TC takes its packets"
    assert all(hook.attached for hook in others)
    assert programs.lost((first, *others)) == []
    assert sorted(host.pins()) == ["tc_private", "tc_public"]
    programs.close()


def test_a_large_mtu_takes_a_program_that_knows_of_fragments(host: Host) -> None:
    for name in ("pub0", "far0"):
        host.netlink.link("set", index=socket.if_nametoindex(name), mtu=9000)
    programs = host.attach()
    assert told(programs.hooks()) == TWO_ARMS
    programs.close()


# --------------------------------------------------------------------------- the next process


def test_a_second_process_replaces_all_and_keeps_the_maps(host: Host) -> None:
    first = host.attach()
    table = first.objects.bpf[b"sources"]
    table[table.Key(7)] = table.Leaf(since=1, flows=2)
    before = host.pins()
    first.close()
    second = host.attach()
    assert told(second.hooks()) == TWO_ARMS
    after = host.pins()
    assert sorted(after) == sorted(before)
    assert not set(after.values()) & set(before.values())
    table = second.objects.bpf[b"sources"]
    assert table[table.Key(7)].flows == 2
    assert second.migrated == ()
    second.close()


def test_another_size_migrates_and_says_which(host: Host) -> None:
    host.attach().close()
    programs = host.attach(replace(PLAN, conntrack_entries=8192))
    assert programs.migrated == ("est",)
    programs.close()
    assert map_shape(get_object(host.bpf_dir / "maps" / "est"))[3] == 8192


def test_what_was_taken_off_shows(host: Host) -> None:
    programs = host.attach()
    host.netlink.tc("del", "clsact", socket.if_nametoindex("priv0"))
    host.netlink.link("set", index=socket.if_nametoindex("pub0"), xdp_fd=-1)
    states = programs.hooks()
    assert [hook.attached for hook in states] == [False, True, False]
    assert programs.lost(states) == ["xdp_public", "tc_private"]
    assert [hook.detail for hook in states][::2] == [
        "no XDP program attached",
        "no TC program attached",
    ]
    host.netlink.link("del", index=socket.if_nametoindex("priv0"))
    assert programs.hooks()[2].detail == "priv0: no such interface"
    programs.close()


# --------------------------------------------------------------------------- refusals


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def nothing_changed(host: Host, before: dict[str, int]) -> None:
    assert host.pins() == before
    assert all(str(number) for number in before.values())
    if not before:
        assert "gale" not in host.filters("pub0") + host.filters("priv0")


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("place", ["pub0", "priv0"])
def test_where_a_stranger_is_no_hook_at_all_is_taken(
    host: Host, place: str, was_there: bool
) -> None:
    plan = replace(PLAN, xdp_replies=True)
    if was_there:
        host.attach(plan).close()
    before = host.pins()
    with program(STRANGER) as loaded:
        index = socket.if_nametoindex(place)
        host.netlink.link("set", index=index, xdp_fd=-1)
        host.netlink.link("set", index=index, xdp_fd=loaded.function("stranger", "xdp"))
    files = open_files()
    for _ in range(3):
        with pytest.raises(ForeignProgram, match=f"{place}: an XDP program that is not ours"):
            host.attach(plan)
    assert open_files() == files
    nothing_changed(host, before)


def test_a_strangers_filter_is_found_before_anything_is_taken(host: Host) -> None:
    index = socket.if_nametoindex("priv0")
    host.netlink.tc("add", "clsact", index)
    add = ("tc", "filter", "add", "dev", "priv0", "ingress", "prio", "1")
    subprocess.run((*add, "u32", "match", "u32", "0", "0"), check=True)
    with pytest.raises(ForeignProgram, match="priority 1: u32"):
        host.attach()
    assert host.pins() == {}
    assert "gale" not in host.filters("pub0")


def test_strangers_on_the_private_xdp_hook_are_none_of_our_business(host: Host) -> None:
    with program(STRANGER) as loaded:
        index = socket.if_nametoindex("priv0")
        host.netlink.link("set", index=index, xdp_fd=loaded.function("stranger", "xdp"))
    programs = host.attach()
    assert told(programs.hooks()) == TWO_ARMS
    programs.close()


def test_a_pin_that_does_not_fit_leaves_all_as_it_was_and_no_file_open(host: Host) -> None:
    host.attach().close()
    before = host.pins()
    wrong = create_map("half", MapType.LRU_HASH, 16, 48, 4096, 0)
    pin(wrong, host.bpf_dir / "maps" / "half")
    os.close(wrong)
    files = open_files()
    for _ in range(3):
        with pytest.raises(PinMismatch, match="maps/half: value_size 48 pinned, 64 declared"):
            host.attach()
    assert open_files() == files
    nothing_changed(host, before)


def test_a_program_that_the_verifier_refuses_leaves_all_as_it_was(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.attach().close()
    before = host.pins()

    def refuse(*_: object, **__: object) -> int:
        raise VerifierError("R0 !read_ok")

    monkeypatch.setattr(LoadedObject, "function", refuse)
    with pytest.raises(VerifierError):
        host.attach()
    nothing_changed(host, before)


def test_an_interface_that_has_gone_meanwhile_has_its_own_error(host: Host) -> None:
    present = look(host.netlink, "pub0", "priv0")
    programs = Programs(PLAN, host.bpf_dir, IMAGES, host.netlink)
    host.netlink.link("del", index=socket.if_nametoindex("priv0"))
    with pytest.raises(InterfaceMissing, match="priv0"):
        programs.attach(present)
    programs.close()
    with pytest.raises(InterfaceMissing, match="priv0"):
        Programs(PLAN, host.bpf_dir, IMAGES, host.netlink)
