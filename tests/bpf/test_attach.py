"""Programs on interfaces: attached, replaced without a gap, refused where others are."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from bpf import attach
from bpf.attach import (
    Flavour,
    ForeignProgram,
    InterfaceMissing,
    NativeXdpUnsupported,
    attach_tc,
    attach_xdp,
    detach_tc,
    detach_xdp,
    tc_state,
    xdp_state,
)
from bpf.attachments import all_attachments, take_off
from bpf.loader import LoadedObject
from bpf.pins import pin
from bpf.syscall import get_object, program_info
from tests.bpf.harness import private_bpffs, private_network, program, source_file

SOURCE = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include "map_macros.h"
GALE_MAP("array", int, u64, seen, 3, 0);

static __always_inline void see(int which)
{
	u64 *count = seen.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}

int gale_xdp_public(struct xdp_md *ctx) { see(0); return XDP_DROP; }
int gale_xdp_new(struct xdp_md *ctx) { see(1); return XDP_DROP; }
int gale_tc_public(struct __sk_buff *ctx) { see(0); return TC_ACT_SHOT; }
int gale_tc_new(struct __sk_buff *ctx) { see(1); return TC_ACT_SHOT; }
int gale_tc_third(struct __sk_buff *ctx) { see(2); return TC_ACT_SHOT; }
int stranger(struct xdp_md *ctx) { return XDP_PASS; }
int tc_stranger(struct __sk_buff *ctx) { return TC_ACT_OK; }
"""


FRAME = bytes(12) + b"\x88\xb5" + bytes(50)
"""Of a type for local experiments, which nobody else sends."""


@dataclass
class Machine:
    """Interface `a` is where programs go; what is sent on `b` arrives there. `br`: no driver."""

    netlink: IPRoute
    loaded: LoadedObject
    prog: Path

    @property
    def xdp_pin(self) -> Path:
        return self.prog / "xdp_public"

    @property
    def tc_pin(self) -> Path:
        return self.prog / "tc_public"

    def xdp(self, name: str = "gale_xdp_public", *, frags: bool = False) -> int:
        return self.loaded.function(name, "xdp", frags=frags)

    def tc(self, name: str = "gale_tc_public") -> int:
        return self.loaded.function(name, "tc")

    def seen(self, which: int) -> int:
        return int(self.loaded.bpf[b"seen"][which].value)


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedObject]:
    with program(SOURCE) as compiled:
        yield compiled


@pytest.fixture
def machine(loaded: LoadedObject) -> Iterator[Machine]:
    for which in range(3):
        loaded.bpf[b"seen"][which] = loaded.bpf[b"seen"].Leaf(0)
    with private_bpffs() as directory, private_network(), IPRoute() as netlink:
        netlink.link("add", ifname="a", kind="veth", peer="b")
        netlink.link("add", ifname="br", kind="bridge")
        for name in ("a", "b", "br"):
            netlink.link("set", index=socket.if_nametoindex(name), state="up")
        yield Machine(netlink, loaded, directory / "prog")


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def send(count: int) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("b", 0))
        for _ in range(count):
            sender.send(FRAME)


def pins(machine: Machine) -> dict[str, int]:
    return {path.name: program_info(get_object(path)).id for path in sorted(machine.prog.iterdir())}


# --------------------------------------------------------------------------- XDP


@pytest.mark.parametrize(
    ("interface", "flavour"), [("a", "native"), ("a", "generic"), ("br", "generic")]
)
def test_xdp_is_attached_pinned_and_stays(
    machine: Machine, interface: str, flavour: Flavour
) -> None:
    fd = machine.xdp()
    state = attach_xdp(machine.netlink, interface, fd, machine.xdp_pin, flavour)
    info = program_info(fd)
    assert (state.program, state.interface) == ("xdp_public", interface)
    assert (state.attached, state.flavour) == (True, flavour)
    assert state.detail == f"gale_xdp_public (id {info.id}, tag {info.tag})"
    assert f"id {info.id} " in tool("ip", "-d", "link", "show", interface)
    assert pins(machine) == {"xdp_public": info.id}
    assert xdp_state(machine.netlink, interface, machine.xdp_pin) == state


def test_attaching_again_changes_nothing(machine: Machine) -> None:
    first = attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    assert attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin) == first


def test_no_packet_passes_between_two_xdp_programs(machine: Machine) -> None:
    """TC, which comes after XDP, sees no packet while one program replaces the other."""
    attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    attach_tc(machine.netlink, "a", machine.tc("gale_tc_third"), machine.tc_pin)
    enough = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("b", 0))

        def keep_sending() -> None:
            while not enough.is_set():
                sender.send(FRAME)

        thread = threading.Thread(target=keep_sending)
        thread.start()
        try:
            while min(machine.seen(0), machine.seen(1)) < 200:
                for name in ("gale_xdp_new", "gale_xdp_public"):
                    attach_xdp(machine.netlink, "a", machine.xdp(name), machine.xdp_pin)
        finally:
            enough.set()
            thread.join()
    assert machine.seen(2) == 0


def test_changing_the_flavour_replaces_the_program(machine: Machine) -> None:
    attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin, "generic")
    fd = machine.xdp("gale_xdp_new")
    state = attach_xdp(machine.netlink, "a", fd, machine.xdp_pin, "native")
    assert (state.attached, state.flavour) == (True, "native")
    assert pins(machine) == {"xdp_public": program_info(fd).id}
    assert "xdpgeneric" not in tool("ip", "link", "show", "a")


def test_native_xdp_that_the_driver_does_not_know_has_an_error_of_its_own(machine: Machine) -> None:
    with pytest.raises(NativeXdpUnsupported, match="br: no native XDP: its driver knows no XDP"):
        attach_xdp(machine.netlink, "br", machine.xdp(), machine.xdp_pin)
    assert pins(machine) == {}
    assert not xdp_state(machine.netlink, "br", machine.xdp_pin).attached


def test_large_mtu_needs_a_program_that_knows_fragments(machine: Machine) -> None:
    for name in ("a", "b"):
        machine.netlink.link("set", index=socket.if_nametoindex(name), mtu=9000)
    with pytest.raises(NativeXdpUnsupported, match="MTU"):
        attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    assert attach_xdp(machine.netlink, "a", machine.xdp(frags=True), machine.xdp_pin).attached


def test_a_foreign_xdp_program_is_refused_by_name_and_left_alone(machine: Machine) -> None:
    foreign = machine.xdp("stranger")
    machine.netlink.link("set", index=socket.if_nametoindex("a"), xdp_fd=foreign)
    what = (
        f"a: an XDP program that is not ours is attached: stranger .id {program_info(foreign).id}"
    )
    with pytest.raises(ForeignProgram, match=what):
        attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    with pytest.raises(ForeignProgram):
        detach_xdp(machine.netlink, "a", machine.xdp_pin)
    state = xdp_state(machine.netlink, "a", machine.xdp_pin)
    assert not state.attached
    assert "stranger" in state.detail
    assert f"id {program_info(foreign).id} " in tool("ip", "-d", "link", "show", "a")


def test_what_was_attached_meanwhile_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is there and the change: only what was seen is replaced."""
    attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    index, foreign = socket.if_nametoindex("a"), machine.xdp("stranger")
    change = attach._pin_and_set_xdp

    def too_late(*arguments: Any) -> None:
        forced = {"attrs": [("IFLA_XDP_FD", foreign), ("IFLA_XDP_FLAGS", 1 << 2)]}
        machine.netlink.link("set", index=index, IFLA_XDP=forced)
        change(*arguments)

    monkeypatch.setattr(attach, "_pin_and_set_xdp", too_late)
    with pytest.raises(ForeignProgram):
        attach_xdp(machine.netlink, "a", machine.xdp("gale_xdp_new"), machine.xdp_pin)
    assert "stranger" in xdp_state(machine.netlink, "a", machine.xdp_pin).detail


def test_what_a_crash_between_attaching_and_renaming_left_is_ours(machine: Machine) -> None:
    old, new = machine.xdp("stranger"), machine.xdp("gale_xdp_new")
    # The name must not help here: it is known to root only.
    attach_xdp(machine.netlink, "a", old, machine.xdp_pin)
    machine.xdp_pin.rename(machine.prog / "xdp_public~next")
    assert xdp_state(machine.netlink, "a", machine.xdp_pin).attached
    state = attach_xdp(machine.netlink, "a", new, machine.xdp_pin)
    assert state.attached
    assert pins(machine) == {"xdp_public": program_info(new).id}


def test_a_program_that_cannot_be_attached_leaves_the_old_one_and_its_pin(machine: Machine) -> None:
    old = machine.xdp("stranger")
    attach_xdp(machine.netlink, "a", old, machine.xdp_pin)
    machine.xdp_pin.rename(machine.prog / "xdp_public~next")
    with pytest.raises(NativeXdpUnsupported):
        attach_xdp(machine.netlink, "a", machine.tc(), machine.xdp_pin)
    assert xdp_state(machine.netlink, "a", machine.xdp_pin).attached
    assert pins(machine) == {"xdp_public": program_info(old).id}


def test_our_own_program_is_known_to_root_without_its_pin(machine: Machine) -> None:
    attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    machine.xdp_pin.unlink()
    assert attach_xdp(machine.netlink, "a", machine.xdp("gale_xdp_new"), machine.xdp_pin).attached


def test_detaching_takes_program_and_pins(machine: Machine) -> None:
    attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    assert detach_xdp(machine.netlink, "a", machine.xdp_pin) is True
    assert pins(machine) == {}
    assert "prog/xdp" not in tool("ip", "-d", "link", "show", "a")
    assert detach_xdp(machine.netlink, "a", machine.xdp_pin) is False


# --------------------------------------------------------------------------- TC


def test_tc_is_attached_pinned_and_drops_what_it_sees(machine: Machine) -> None:
    state = attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)
    assert (state.program, state.interface) == ("tc_public", "a")
    assert (state.attached, state.flavour, state.detail) == (True, "tc", "gale_tc_public")
    shown = tool("tc", "filter", "show", "dev", "a", "ingress")
    assert "pref 1 bpf" in shown
    assert "handle 0x1 gale_tc_public direct-action" in shown
    assert pins(machine) == {"tc_public": program_info(machine.tc()).id}
    before = machine.seen(0)
    send(10)
    assert machine.seen(0) - before >= 10


def test_a_new_tc_program_replaces_the_old_one(machine: Machine) -> None:
    attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)
    attach_tc(machine.netlink, "a", machine.tc("gale_tc_new"), machine.tc_pin)
    shown = tool("tc", "filter", "show", "dev", "a", "ingress")
    assert shown.count("handle") == 1
    assert "gale_tc_new" in shown
    before = machine.seen(0)
    send(10)
    # What the kernel itself sent as the interface came up may still have been with the old one.
    assert machine.seen(0) < before + 10
    assert machine.seen(1) >= 10
    assert pins(machine) == {"tc_public": program_info(machine.tc("gale_tc_new")).id}


def test_a_foreign_filter_of_our_priority_is_refused_by_name(machine: Machine) -> None:
    pin(machine.tc("tc_stranger"), machine.prog.parent / "elsewhere" / "tc_stranger")
    tool("tc", "qdisc", "add", "dev", "a", "clsact")
    tool(
        "tc",
        "filter",
        "add",
        "dev",
        "a",
        "ingress",
        "prio",
        "1",
        "handle",
        "1",
        "bpf",
        "da",
        "object-pinned",
        str(machine.prog.parent / "elsewhere" / "tc_stranger"),
    )
    with pytest.raises(ForeignProgram, match=r"a: a TC filter that is not ours .*stranger"):
        attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)
    state = tc_state(machine.netlink, "a", machine.tc_pin)
    assert not state.attached
    assert "stranger" in state.detail
    assert detach_tc(machine.netlink, "a", machine.tc_pin) is False
    assert "stranger" in tool("tc", "filter", "show", "dev", "a", "ingress")


def put_a_stranger(machine: Machine) -> None:
    """In the place of ours, whatever is there."""
    index = socket.if_nametoindex("a")
    words = {"handle": 1, "prio": 1, "parent": attach.INGRESS, "direct_action": True}
    fd = machine.tc("tc_stranger")
    machine.netlink.tc("replace-filter", "bpf", index, fd=fd, name="stranger", **words)


def test_a_filter_that_was_attached_meanwhile_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is there and the change."""
    look = attach._refuse_foreign_filter

    def too_late(*arguments: Any) -> None:
        look(*arguments)
        put_a_stranger(machine)

    monkeypatch.setattr(attach, "_refuse_foreign_filter", too_late)
    with pytest.raises(ForeignProgram, match="a: another TC filter was attached meanwhile"):
        attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)
    assert "stranger" in tool("tc", "filter", "show", "dev", "a", "ingress")


def test_what_took_our_place_is_not_taken_off(machine: Machine) -> None:
    """After somebody looked at the whole set."""
    attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)
    seen = all_attachments(machine.netlink, machine.prog.parent)
    assert [str(each.owner) for each in seen] == ["load balancer"] * 2
    put_a_stranger(machine)
    forced = {"attrs": [("IFLA_XDP_FD", machine.xdp("stranger")), ("IFLA_XDP_FLAGS", 1 << 2)]}
    machine.netlink.link("set", index=socket.if_nametoindex("a"), IFLA_XDP=forced)
    for each in seen:
        with pytest.raises(ForeignProgram, match="attached meanwhile"):
            take_off(machine.netlink, each, machine.prog.parent)
    now = all_attachments(machine.netlink, machine.prog.parent)
    assert [(each.name, each.ours) for each in now] == [("stranger", False)] * 2
    with pytest.raises(ValueError, match="is not Gale's"):
        take_off(machine.netlink, now[0], machine.prog.parent)


def test_a_foreign_filter_of_another_kind_is_refused_by_its_kind(machine: Machine) -> None:
    tool("tc", "qdisc", "add", "dev", "a", "clsact")
    tool("tc", "filter", "add", "dev", "a", "ingress", "prio", "1", "u32", "match", "u32", "0", "0")
    with pytest.raises(ForeignProgram, match="priority 1: u32"):
        attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)


def test_foreign_filters_of_other_priorities_are_left_alone(machine: Machine) -> None:
    tool("tc", "qdisc", "add", "dev", "a", "clsact")
    tool("tc", "filter", "add", "dev", "a", "ingress", "prio", "7", "u32", "match", "u32", "0", "0")
    attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)
    assert detach_tc(machine.netlink, "a", machine.tc_pin) is True
    assert "pref 7 u32" in tool("tc", "filter", "show", "dev", "a", "ingress")


def test_the_qdisc_stays_for_an_egress_filter_of_others(machine: Machine) -> None:
    attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)
    tool("tc", "filter", "add", "dev", "a", "egress", "prio", "7", "u32", "match", "u32", "0", "0")
    assert detach_tc(machine.netlink, "a", machine.tc_pin) is True
    assert "pref 7 u32" in tool("tc", "filter", "show", "dev", "a", "egress")


def test_detaching_tc_leaves_nothing(machine: Machine) -> None:
    attach_tc(machine.netlink, "a", machine.tc(), machine.tc_pin)
    assert detach_tc(machine.netlink, "a", machine.tc_pin) is True
    assert "clsact" not in tool("tc", "qdisc", "show", "dev", "a")
    assert pins(machine) == {}
    assert detach_tc(machine.netlink, "a", machine.tc_pin) is False
    assert tc_state(machine.netlink, "a", machine.tc_pin).detail == "no TC program attached"


# --------------------------------------------------------------------------- both


def test_a_missing_interface_has_an_error_of_its_own(machine: Machine) -> None:
    with pytest.raises(InterfaceMissing, match="pub9: no such interface"):
        attach_xdp(machine.netlink, "pub9", machine.xdp(), machine.xdp_pin)
    with pytest.raises(InterfaceMissing, match="pub9: no such interface"):
        attach_tc(machine.netlink, "pub9", machine.tc(), machine.tc_pin)
    for state in (
        xdp_state(machine.netlink, "pub9", machine.xdp_pin),
        tc_state(machine.netlink, "pub9", machine.tc_pin),
    ):
        assert (state.attached, state.detail) == (False, "pub9: no such interface")


ATTACHING_PROCESS = """
import sys
from pathlib import Path
from pyroute2 import IPRoute
from bpf.attach import attach_tc, attach_xdp
from bpf.loader import compile_program
from bpf.pins import PinnedMaps

prog = Path(sys.argv[2])
maps = PinnedMaps(prog.parent)
loaded = compile_program(sys.argv[1], maps=maps)
with IPRoute() as netlink:
    attach_xdp(netlink, "a", loaded.function("gale_xdp_public", "xdp"), prog / "xdp_public")
    attach_tc(netlink, "a", loaded.function("gale_tc_public", "tc"), prog / "tc_public")
maps.commit()
loaded.bpf[b"seen"][2] = loaded.bpf[b"seen"][2].value + 1
print(loaded.bpf[b"seen"][2].value)
"""


def attaching_process(machine: Machine) -> str:
    """Run it with the capabilities of production, which leave out CAP_SYS_ADMIN."""
    capabilities = "-all,+bpf,+net_admin,+net_raw,+perfmon"
    return tool(
        *("setpriv", f"--inh-caps={capabilities}", f"--bounding-set={capabilities}"),
        *(sys.executable, "-c", ATTACHING_PROCESS, str(source_file(SOURCE)), str(machine.prog)),
    )


def test_a_process_ends_and_the_next_one_takes_over_what_it_left(machine: Machine) -> None:
    assert attaching_process(machine) == "1\n"
    first = xdp_state(machine.netlink, "a", machine.xdp_pin)
    assert first.attached
    assert tc_state(machine.netlink, "a", machine.tc_pin).attached
    assert attaching_process(machine) == "2\n"
    second = xdp_state(machine.netlink, "a", machine.xdp_pin)
    assert second.attached
    assert second.detail != first.detail


def test_without_the_privilege_to_see_names_only_pins_prove_what_is_ours(machine: Machine) -> None:
    attach_xdp(machine.netlink, "a", machine.xdp(), machine.xdp_pin)
    machine.xdp_pin.unlink()
    number = program_info(machine.xdp()).id
    with pytest.raises(subprocess.CalledProcessError) as failure:
        attaching_process(machine)
    assert f"an XDP program that is not ours is attached (id {number})" in failure.value.stderr
