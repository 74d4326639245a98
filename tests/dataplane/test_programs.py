"""Compiled, attached, pinned: all hooks or none, and the old ones go on until the new are there.

The programs are small ones over Gale's own maps, which tell whether they find a flow.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from bpf import attach, attachments
from bpf.attach import ForeignProgram, InterfaceMissing
from bpf.attachments import all_attachments
from bpf.chain import FlowTables
from bpf.loader import LoadedObject
from bpf.pins import PinMismatch, pin
from bpf.syscall import (
    MapType,
    VerifierError,
    create_map,
    get_object,
    map_shape,
    program_info,
)
from bus.states import HookState
from conf import load_lb
from services.dataplane import programs as module
from services.dataplane.machine import look
from services.dataplane.maps import ENTRIES
from services.dataplane.programs import ProgramPlan, Programs, rings_for
from tests.bpf.harness import IMAGES, private_bpffs, private_network, program, source_file
from tests.bpf.two_tables import add_flow, finds, sources

PLAN = ProgramPlan("pub0", "priv0", False, False, 128, 32)
LARGER = replace(PLAN, conntrack_entries=256)
LARGEST = replace(PLAN, conntrack_entries=384)
UNWRAPPER = """
#include <linux/bpf.h>
int gale_unwrap(struct __sk_buff *ctx) { return 0; }
"""
STRANGER = """
#include <linux/bpf.h>
int stranger(struct xdp_md *ctx) { return XDP_PASS; }
"""


@dataclass
class Host:
    """Two veth ends and a bridge, all with an address and up; and a BPF directory."""

    netlink: IPRoute
    bpf_dir: Path

    def attach(
        self,
        plan: ProgramPlan = PLAN,
        *,
        services: int = 0,
        old_table_is_empty: bool = False,
    ) -> Programs:
        present = look(self.netlink, plan.public, plan.private)
        programs = Programs(
            plan,
            self.bpf_dir,
            IMAGES,
            self.netlink,
            services=services,
            old_table_is_empty=old_table_is_empty,
        )
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

    def knows(self, *ports: int) -> bool:
        """Whether the XDP program on the interface finds these flows."""
        fd = get_object(self.bpf_dir / "prog" / "xdp_public")
        try:
            return all(finds(fd, port) for port in ports)
        finally:
            os.close(fd)

    def flow_pins(self) -> dict[str, int]:
        """Name and buckets."""
        paths = (self.bpf_dir / "maps").glob("*flows")
        return {path.name: map_shape(get_object(path))[3] for path in paths}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(module, "SOURCES", sources())
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
        + '[dataplane]\nxdp = "generic"\n'
        + "conntrack_entries = 1024\nhalf_open_entries = 512\n"
    )
    plan = ProgramPlan.from_config(load_lb(path))
    assert plan == ProgramPlan("a", "a", True, False, 1024, 512)
    assert plan.one_arm
    sizes = {"FLOW_BUCKETS": 128, "HALF_OPEN_WAYS": 8}
    assert plan.defines == sizes | {"GALE_ONE_ARM": 1, "GALE_GENERIC_XDP": 1}
    path.write_text(local + '[dataplane]\nreply_hook = "xdp"\n')
    assert ProgramPlan.from_config(load_lb(path)).xdp_replies
    assert not PLAN.one_arm
    assert "GALE_ONE_ARM" not in PLAN.defines


@pytest.mark.parametrize(
    ("entries", "half_open", "buckets", "ways"),
    [
        (524_288, 131_072, 65_536, 4),  # the defaults
        (64, 16, 16, 4),
        (128, 32, 16, 4),
        (129, 32, 17, 4),
        (1000, 250, 125, 4),
        (1001, 250, 126, 4),
        (2**25, 2**23, 2**22, 4),
        # Of 16 places two are always left to half-open flows, and four never taken by them.
        (4096, 64, 512, 2),
        (4096, 639, 512, 2),
        (4096, 641, 512, 3),
        (4096, 2944, 512, 12),
        (4096, 4096, 512, 12),
        (64, 2**25, 16, 12),
    ],
)
def test_the_flow_table_has_twice_the_places_that_flows_may_take(
    entries: int, half_open: int, buckets: int, ways: int
) -> None:
    plan = replace(PLAN, conntrack_entries=entries, half_open_entries=half_open)
    assert plan.defines == {"FLOW_BUCKETS": buckets, "HALF_OPEN_WAYS": ways}


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
    assert programs.objects.bpf[b"flows"].info.max_entries == 16
    assert not programs.chained
    programs.close()
    pins = {each.name for each in (host.bpf_dir / "maps").iterdir()}
    # The ring buffer is none of the tables that bcc hands out.
    assert pins == {"notes", *(name.decode() for name in programs.objects.bpf)}


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


# --------------------------------------------------------------------------- a set


def attached(host: Host) -> set[tuple[str, str, str]]:
    """Interface, hook and name of what is Gale's on this machine."""
    present = all_attachments(host.netlink, host.bpf_dir)
    return {(each.interface, each.hook, each.name) for each in present if each.ours}


BOTH_ARMS = {
    ("pub0", "xdp", "gale_xdp_public"),
    ("pub0", "tc", "gale_tc_public"),
    ("priv0", "tc", "gale_tc_private"),
}
ON_THE_BRIDGE = {
    ("br0", "tc", "gale_tc_private"),
    *(BOTH_ARMS - {("priv0", "tc", "gale_tc_private")}),
}
PLANS: dict[str, tuple[dict[str, Any], set[tuple[str, str, str]]]] = {
    "two arms": ({}, BOTH_ARMS),
    "replies by XDP": ({"xdp_replies": True}, BOTH_ARMS | {("priv0", "xdp", "gale_xdp_reply")}),
    "another private": ({"private": "br0"}, ON_THE_BRIDGE),
    "another public": (
        {"public": "br0"},
        {("br0", "tc", "gale_tc_public"), ("priv0", "tc", "gale_tc_private")},
    ),
    "one arm": (
        {"private": "pub0"},
        {("pub0", "xdp", "gale_xdp_public"), ("pub0", "tc", "gale_tc_public")},
    ),
    "the other way round": (
        {"public": "priv0", "private": "pub0", "xdp_replies": True},
        {
            ("priv0", "xdp", "gale_xdp_public"),
            ("priv0", "tc", "gale_tc_public"),
            ("pub0", "xdp", "gale_xdp_reply"),
            ("pub0", "tc", "gale_tc_private"),
        },
    ),
    "generic": ({"generic_xdp": True}, BOTH_ARMS),
}


def nameless(program_id: int) -> int:
    """As without CAP_SYS_ADMIN: only pins prove what is ours."""
    raise PermissionError(program_id)


OWN = ("priv0", "tc egress", "gale_tc_own")


def test_a_machine_that_is_a_node_too_takes_its_own_answers_and_goes_on_after_a_restart(
    host: Host,
) -> None:
    first = host.attach()
    first.serve_itself(True)
    assert attached(host) == BOTH_ARMS | {OWN}
    assert ("tc_own", "priv0", "tc") in told(first.hooks())
    first.close()
    second = host.attach()
    assert attached(host) == BOTH_ARMS | {OWN}
    second.serve_itself(False)
    assert attached(host) == BOTH_ARMS
    assert "tc_own" not in host.pins()
    assert told(second.hooks()) == TWO_ARMS
    second.close()


def test_another_private_interface_takes_its_own_answers_with_it(host: Host) -> None:
    first = host.attach()
    first.serve_itself(True)
    first.close()
    second = host.attach(replace(PLAN, private="br0"))
    assert attached(host) == ON_THE_BRIDGE | {("br0", "tc egress", "gale_tc_own")}
    second.close()


@pytest.mark.parametrize(("before", "after"), list(permutations(PLANS, 2)))
def test_after_any_change_only_what_is_wanted_is_attached(
    host: Host, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    host.attach(replace(PLAN, **PLANS[before][0])).close()
    assert attached(host) == PLANS[before][1]
    with monkeypatch.context() as patch:
        patch.setattr(attach, "program_by_id", nameless)
        patch.setattr(attachments, "program_by_id", nameless)
        programs = host.attach(replace(PLAN, **PLANS[after][0]))
    assert attached(host) == PLANS[after][1]
    assert sorted(host.pins()) == sorted(hook.program for hook in programs.hooks() if hook.attached)
    assert len(host.pins()) == len(PLANS[after][1])
    programs.close()


def test_a_crash_before_the_rest_is_taken_off_forgets_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(attach, "program_by_id", nameless)
    monkeypatch.setattr(attachments, "program_by_id", nameless)
    host.attach(replace(PLAN, xdp_replies=True)).close()
    for plan in (PLANS["the other way round"][0], {"public": "priv0", "private": "br0"}):
        with monkeypatch.context() as patch:
            patch.setattr(module, "take_off_rest", crash)
            with pytest.raises(KeyboardInterrupt):
                host.attach(replace(PLAN, **plan))
    monkeypatch.undo()
    monkeypatch.setattr(module, "SOURCES", sources())
    monkeypatch.setattr(attach, "program_by_id", nameless)
    host.attach(replace(PLAN, public="br0", private="br0")).close()
    assert attached(host) == {("br0", "tc", "gale_tc_public")}
    assert list(host.pins()) == ["tc_public"]


def test_a_stranger_where_ours_was_is_left_alone(host: Host) -> None:
    """Who put something else on an interface of an earlier configuration keeps it."""
    host.attach(replace(PLAN, xdp_replies=True)).close()
    index = socket.if_nametoindex("priv0")
    host.netlink.link("set", index=index, xdp_fd=-1)
    with program(STRANGER) as loaded:
        host.netlink.link("set", index=index, xdp_fd=loaded.function("stranger", "xdp"))
        programs = host.attach(replace(PLAN, private="br0"))
    (stranger,) = (
        each for each in all_attachments(host.netlink, host.bpf_dir) if each.interface == "priv0"
    )
    assert (stranger.hook, stranger.name, stranger.ours) == ("xdp", "stranger", False)
    assert attached(host) == ON_THE_BRIDGE
    programs.close()


def test_what_cannot_be_taken_off_stands_among_the_hooks(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.attach().close()

    def refuse(*_: object) -> None:
        raise OSError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(attachments, "take_off", refuse)
        programs = host.attach(replace(PLAN, private="br0"))
    left = programs.hooks()[-1]
    assert (left.program, left.interface, left.attached) == ("gale_tc_private", "priv0", True)
    assert left.detail == "not wanted any more, and it cannot be taken off: not today"
    assert programs.taken_off == ()
    programs.close()
    again = host.attach(replace(PLAN, private="br0"))
    assert again.taken_off == ("priv0: gale_tc_private (TC bpf, prio 1)",)
    assert all(hook.interface != "priv0" for hook in again.hooks())
    again.close()


def test_a_node_agents_programs_stay(host: Host) -> None:
    """On an interface that the load balancer has no part in; and it takes no place of theirs."""
    with program(UNWRAPPER) as loaded:
        fd = loaded.function("gale_unwrap", "tc")
        pins = host.bpf_dir / "prog"
        attach.attach_tc(host.netlink, "far0", fd, pins / "unwrap_tc_far0")
        host.attach().close()
        assert attached(host) == BOTH_ARMS | {("far0", "tc", "gale_unwrap")}
        assert "unwrap_tc_far0" in host.pins()
        attach.attach_tc(host.netlink, "br0", fd, pins / "unwrap_tc_br0")
        with pytest.raises(ForeignProgram, match="br0: a TC filter that is not ours"):
            host.attach(replace(PLAN, private="br0"))


# --------------------------------------------------------------------------- another size


@pytest.mark.parametrize(
    ("services", "rings"), [(0, 16), (12, 16), (13, 80), (64, 80), (65, 320), (1_000, 1_280)]
)
def test_there_is_a_ring_for_each_service_and_some_to_spare(services: int, rings: int) -> None:
    assert rings_for(services) == rings


def test_the_rings_map_grows_with_what_it_holds_and_never_shrinks(host: Host) -> None:
    first = host.attach(services=1)
    assert first.objects.bpf[b"ring"].info.max_entries == 16 * ENTRIES
    table = first.objects.bpf[b"ring"]
    last = 16 * ENTRIES - 1
    leaf = table.Leaf()
    leaf.seat_less_id[3] = 7
    table[last] = leaf
    first.close()
    second = host.attach(services=13)
    assert second.migrated == ("ring",)
    table = second.objects.bpf[b"ring"]
    assert table.info.max_entries == 80 * ENTRIES
    assert table[last].seat_less_id[3] == 7
    second.close()
    third = host.attach(services=1)
    assert third.migrated == ()
    assert third.objects.bpf[b"ring"].info.max_entries == 80 * ENTRIES
    third.close()


def chained(programs: Programs) -> int:
    return int(programs.objects.bpf[b"settings"][0].chained)


def test_another_size_chains_the_flow_table_and_the_programs_find_all(host: Host) -> None:
    first = host.attach()
    add_flow(first.objects, 1)
    assert host.knows(1)
    assert (chained(first), first.resize_waits) == (0, "")
    settings = first.objects.bpf[b"settings"]
    settings[0] = settings.Leaf(hash_seed=3, flow_seed=4)
    first.close()
    second = host.attach(LARGER)
    assert second.flow_tables == FlowTables(32, 16, 32)
    assert second.chained
    assert second.resize_waits == ""
    add_flow(second.objects, 2)
    assert host.knows(1, 2)
    leaf = second.objects.bpf[b"settings"][0]
    assert (leaf.chained, leaf.hash_seed, leaf.flow_seed) == (1, 3, 4)
    assert second.migrated == ()
    assert host.flow_pins() == {"flows": 32, "old_flows": 16}
    second.close()
    third = host.attach(LARGER)
    assert host.knows(1, 2)
    assert third.chained
    third.close()


def test_the_hooks_get_programs_without_the_table_before_once_it_is_empty(host: Host) -> None:
    host.attach().close()
    present = host.attach(LARGER)
    add_flow(present.objects, 1)
    before = host.pins()
    following = host.attach(LARGER, old_table_is_empty=True)
    present.close()
    assert not following.chained
    assert chained(following) == 0
    assert not set(host.pins().values()) & set(before.values())
    assert told(following.hooks()) == TWO_ARMS
    assert host.flow_pins() == {"flows": 32, "old_flows": 1}
    assert host.knows(1)
    following.close()


def test_a_second_size_waits_says_so_and_is_taken_when_it_can_be(host: Host) -> None:
    host.attach().close()
    host.attach(LARGER).close()
    present = host.attach(LARGEST)
    add_flow(present.objects, 1)
    assert present.flow_tables == FlowTables(32, 16, 48)
    assert present.resize_waits == (
        "the flow table keeps its 32 buckets instead of 48:"
        " flows still live in the one before it, of 16"
    )
    following = host.attach(LARGEST, old_table_is_empty=True)
    assert following.flow_tables == FlowTables(48, 32, 48)
    assert following.resize_waits == ""
    assert chained(following) == 1
    assert host.knows(1)
    last = host.attach(LARGEST, old_table_is_empty=True)
    assert last.flow_tables == FlowTables(48, 1, 48)
    assert chained(last) == 0
    assert not host.knows(1)
    for programs in (present, following, last):
        programs.close()


def test_what_follows_a_chain_is_compiled_with_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = look(host.netlink, "pub0", "priv0")
    for plan in (PLAN, LARGER):
        programs = Programs(plan, host.bpf_dir, tmp_path, host.netlink)
        programs.attach(present)
        programs.close()
    waiting = Programs(LARGEST, host.bpf_dir, tmp_path, host.netlink)
    waiting.attach(present)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for _ in range(2):
        following = Programs(LARGEST, host.bpf_dir, tmp_path, host.netlink, old_table_is_empty=True)
        following.attach(present)
        following.close()
    assert host.flow_pins() == {"flows": 48, "old_flows": 1}
    waiting.close()


def test_the_settings_say_chained_from_before_the_first_hook_to_after_the_last(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that has a table before its own must look into it, whichever hook comes first."""
    seen: list[int] = []
    attach_tc, attach_xdp = attach.attach_tc, attach.attach_xdp
    first = host.attach()

    def read() -> None:
        seen.append(chained(first))

    def tc(*arguments: Any) -> None:
        read()
        attach_tc(*arguments)
        read()

    def xdp(*arguments: Any) -> None:
        read()
        attach_xdp(*arguments)
        read()

    monkeypatch.setattr(attach, "attach_tc", tc)
    monkeypatch.setattr(attach, "attach_xdp", xdp)
    host.attach(LARGER).close()
    assert seen == [1] * 6
    host.attach(LARGER, old_table_is_empty=True).close()
    assert seen == [1] * 12
    host.attach(LARGER).close()
    assert seen == [1] * 12 + [0] * 6
    first.close()


def test_flows_made_by_programs_of_which_only_some_could_be_attached_are_kept(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = host.attach()
    add_flow(first.objects, 1)
    first.close()
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise OSError("no memory")

        patch.setattr(attach, "attach_xdp", refuse)
        for port in (2, 3):
            present = look(host.netlink, "pub0", "priv0")
            half = Programs(LARGER, host.bpf_dir, IMAGES, host.netlink)
            with pytest.raises(OSError, match="no memory"):
                half.attach(present)
            add_flow(half.objects, port)
            half.close()
    host.attach(LARGER).close()
    assert host.knows(1, 2, 3)


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
    wrong = create_map("seats_00000000", MapType.ARRAY, 4, 48, 8192, 0)
    pin(wrong, host.bpf_dir / "maps" / "seats")
    os.close(wrong)
    files = open_files()
    for _ in range(3):
        with pytest.raises(PinMismatch, match=r"maps/seats: .* value_size 48 pinned, 64 declared"):
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


@pytest.fixture
def older_kernel(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The XDP programs call a helper that this kernel does not have."""
    xdp, tc = sources()
    call = "{\n\tlong (*unknown)(void) = (void *)9999;\n\tif (unknown())\n\t\treturn XDP_DROP;\n"
    later = source_file(Path(xdp).read_text().replace("\n{\n\tu16 port", f"\n{call}\tu16 port"))
    monkeypatch.setattr(module, "SOURCES", (str(later), tc))


@pytest.mark.parametrize("xdp_replies", [False, True])
def test_where_the_kernel_refuses_xdp_alone_tc_takes_all_and_says_why(
    host: Host, older_kernel: None, xdp_replies: bool
) -> None:
    programs = host.attach(replace(PLAN, xdp_replies=xdp_replies))
    hooks = programs.hooks()
    assert told(hooks) == TWO_ARMS[1:]
    without = [hook for hook in hooks if not hook.attached]
    names = ["gale_xdp_public", "gale_xdp_reply"][: 1 + xdp_replies]
    assert [hook.detail for hook in without] == [
        f"{name}: [Errno 22] bpf(PROG_LOAD): Invalid argument: "
        "invalid func unknown#9999; TC takes its packets"
        for name in names
    ]
    assert programs.lost(hooks) == []
    assert set(host.pins()) == {"tc_public", "tc_private"}
    programs.close()


def test_without_its_tc_program_no_xdp_program_is_attached(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What XDP passes on must find the program that does the same work."""
    attach_tc = attach.attach_tc

    def refuse(netlink: IPRoute, interface: str, *rest: Any) -> None:
        if interface == "pub0":
            raise OSError("no TC today")
        attach_tc(netlink, interface, *rest)

    monkeypatch.setattr(attach, "attach_tc", refuse)
    with pytest.raises(OSError, match="no TC today"):
        host.attach()
    assert not {place for place in attached(host) if place[0] == "pub0"}


def test_an_earlier_xdp_program_comes_off_where_the_kernel_refuses_the_new_one(
    host: Host, request: pytest.FixtureRequest
) -> None:
    host.attach().close()
    request.getfixturevalue("older_kernel")
    programs = host.attach()
    assert told(programs.hooks()) == TWO_ARMS[1:]
    (taken_off,) = programs.taken_off
    assert taken_off.startswith("pub0: gale_xdp_public (native XDP")
    programs.close()


def test_an_interface_that_has_gone_meanwhile_has_its_own_error(host: Host) -> None:
    present = look(host.netlink, "pub0", "priv0")
    programs = Programs(PLAN, host.bpf_dir, IMAGES, host.netlink)
    host.netlink.link("del", index=socket.if_nametoindex("priv0"))
    with pytest.raises(InterfaceMissing, match="priv0"):
        programs.attach(present)
    programs.close()
    with pytest.raises(InterfaceMissing, match="priv0"):
        Programs(PLAN, host.bpf_dir, IMAGES, host.netlink)
