"""The dataplane process as it is run: real interfaces, real TCP, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpf import loader
from bpf.clock import ticks
from bpf.loader import LoadedObject, compile_program
from bpf.pins import PinnedMaps, open_pin, pin
from bpf.syscall import MapType, create_map, map_shape
from bus.commands import CommandError
from bus.states import Counters, NodeService
from bus.words import (
    Mode,
    NodeState,
)
from conf import Paths, load_lb
from services.dataplane import main, programs, ways
from services.dataplane.kernel import Kernel
from services.dataplane.maps import EMPTY, AddressInfo, KernelState
from services.dataplane.nexthop import NextHop
from tests.bpf.harness import IMAGES, program, source_file
from tests.dataplane import maps
from tests.dataplane.flows.made import both, flow_type, requests, write
from tests.dataplane.machines import (
    CONFIG,
    NODE_PORT,
    NODES,
    PATIENCE_S,
    PORT,
    PRIVATE,
    PUBLIC,
    Connection,
    Site,
    compile_for,
    in_network,
    observed,
    run,
    site,
    table,
)

PROGRAMS = ("tc_private", "tc_public", "xdp_public")
PLANNED_MAPS = ("ring", "seats", "services", "settings")


@pytest.fixture
def lb() -> Iterator[Site]:
    with site() as made:
        yield made


def connections(lb: Site, count: int = 8) -> list[Connection]:
    """At least so many, and some to each node."""
    opened: list[Connection] = []
    while len(opened) < count or {each.node for each in opened} != set(NODES):
        opened.append(lb.connect())
        assert len(opened) < 100
    return opened


def new_ones_go_to(lb: Site, node: str, count: int = 12) -> None:
    assert {lb.connect().node for _ in range(count)} == {node}


# --------------------------------------------------------------------------- forwarding


def test_tcp_goes_through_is_listed_and_counted(lb: Site) -> None:
    lb.bring_up()
    opened = connections(lb)
    assert all(each.echo() for each in opened)

    flows = lb.ask("flows")
    assert flows["total"] == len(opened)
    assert {row["client"] for row in flows["flows"]} == {each.address for each in opened}
    assert {row["state"] for row in flows["flows"]} == {"established"}
    own = [each for each in opened if each.node == NODES[0]]
    to_one = lb.ask("flows", node=f"node-0@{NODES[0]}", service="default", limit=1)
    assert (to_one["total"], len(to_one["flows"])) == (len(own), 1)
    assert to_one["flows"][0]["client"] in {each.address for each in own}
    assert lb.ask("flows", service="another") == {"flows": [], "total": 0}

    counted = lb.until_counted(
        lambda told: (
            told.conntrack_established == len(opened)
            and sum(seat.flows for seat in told.seats) == len(opened)
        )
    )
    assert counted.snat_ports_used == len(opened) + counted.conntrack_half_open
    assert counted.conntrack_capacity == 4096
    # No port has come round yet.
    assert all(seat.snat_port_rest_seconds is None for seat in counted.seats)
    for seat, node in zip(counted.seats, NODES, strict=True):
        assert seat.flows == sum(each.node == node for each in opened)
        assert min(seat.packets_in, seat.packets_out) >= 3 * seat.flows
        assert min(seat.bytes_in, seat.bytes_out) >= 3 * 40 * seat.flows
    assert counted.verdicts["xdp_public.l4_new_flow"] == len(opened)
    assert not [reason for reason in counted.verdicts if ".drop_" in reason]


def test_a_node_that_is_dead_from_here_gets_no_new_flow_and_keeps_its_old(lb: Site) -> None:
    lb.bring_up()
    opened = connections(lb)
    nodes = table().nodes
    lb.publish_view(observed(nodes[0], NodeState.DOWN), observed(nodes[1], NodeState.UP))
    lb.until(lambda state: state.seats[0].slots == 0, "masked")
    new_ones_go_to(lb, NODES[1])
    assert all(each.echo() for each in opened)
    lb.publish_view(observed(nodes[0], NodeState.UP), observed(nodes[1], NodeState.UP))
    state = lb.until(lambda state: state.seats[0].slots, "back")
    connections(lb)
    assert state.moved_slots_total == 2 * state.seats[0].slots


def test_a_client_that_only_waits_is_told_that_its_node_is_dead(lb: Site) -> None:
    lb.bring_up()
    opened = connections(lb)
    nodes = table().nodes
    silent = replace(observed(nodes[0], NodeState.DOWN), silent=True)
    lb.publish_view(silent, observed(nodes[1], NodeState.UP))
    lost = [each for each in opened if each.node == NODES[0]]
    assert all(each.is_reset() for each in lost)
    assert all(each.echo() for each in opened if each.node == NODES[1])
    new_ones_go_to(lb, NODES[1])


def test_a_service_that_goes_keeps_its_flows_and_takes_no_new_one(lb: Site) -> None:
    lb.write_config(CONFIG + SHORT)
    lb.bring_up()
    opened = connections(lb)
    lb.publish(table(2, services=()))
    lb.until(lambda state: state.epoch == 2, "reloaded")
    assert all(each.echo() for each in opened)
    with pytest.raises(ConnectionRefusedError):
        lb.connect()
    listed = lb.ask("flows", service="default")
    assert (listed["total"], {row["service"] for row in listed["flows"]}) == (
        len(opened),
        {"default"},
    )
    for each in opened:
        each.close()
    reader = kernel(lb)

    def held() -> KernelState:
        """But for the addresses of whole networks."""
        state = reader.adopt()
        broadcast = AddressInfo(of_service=False, floating=False, snat_slice=None)
        left = {each: info for each, info in state.addresses.items() if info != broadcast}
        return replace(state, addresses=left)

    lb.until(lambda _: held() == EMPTY, "all gone")
    # It comes back as if it had never been there.
    lb.publish(table(3))
    lb.until_ready(3)
    connections(lb)


def test_a_mode_waits_until_the_nodes_are_prepared(lb: Site) -> None:
    lb.bring_up()
    reader = kernel(lb)

    def mode() -> Mode:
        (value,) = reader.adopt().services.values()
        return value.mode

    service = replace(table().services[0], mode=Mode.L3, port=NODE_PORT)
    nodes = tuple(
        replace(node, services=(NodeService("default", NODE_PORT, modes),))
        for node, modes in zip(table().nodes, [(Mode.L4, Mode.L3), (Mode.L4,)], strict=True)
    )
    wanted = table(2, nodes=nodes, services=(replace(service, port=PORT),))
    lb.publish(wanted)
    lb.until_ready(2)
    assert mode() is Mode.L4
    ready = (NodeService("default", NODE_PORT, (Mode.L4, Mode.L3)),)
    lb.publish_view(*(replace(observed(node, NodeState.UP), services=ready) for node in nodes))
    lb.until(lambda _: mode() is Mode.L3, "changed")


def test_wrong_commands_are_answered_and_kill_nobody(lb: Site) -> None:
    process = lb.start()
    lb.until(lambda state: not state.ready, "started")
    with pytest.raises(CommandError, match="knows no command 'dance'"):
        lb.ask("dance")
    lb.publish(table())
    lb.until_ready()
    for limit in ("many", -1, 1.5):
        with pytest.raises(CommandError, match=r"limit: .* is not a number of flows"):
            lb.ask("flows", limit=limit)
    assert lb.ask("flows", limit=0) == {"flows": [], "total": 0}
    assert process.poll() is None


# --------------------------------------------------------------------------- ends and starts


def frozen(lb: Site) -> None:
    """From now on whatever a process writes there is refused, which kills it."""
    for name in PLANNED_MAPS:
        run("bpftool", "map", "freeze", "pinned", str(lb.bpf_dir / "maps" / name))


def test_killed_nothing_is_lost_and_its_successor_adopts_and_writes_nothing(lb: Site) -> None:
    process = lb.bring_up()
    opened = connections(lb)
    lb.kill(process)
    assert all(each.echo() for each in opened)
    opened += connections(lb)

    frozen(lb)
    successor = lb.start()
    state = lb.until_ready()
    assert state.moved_slots_total == 0
    assert lb.started[-1].adopted == "2 seats"
    assert lb.started[-1].pid == successor.pid
    assert all(each.echo() for each in opened)
    assert lb.ask("flows")["total"] == len(opened)
    lb.until_counted(lambda told: sum(seat.flows for seat in told.seats) == len(opened))
    assert successor.poll() is None


def test_killed_at_any_moment_of_its_start(lb: Site) -> None:
    lb.kill(lb.bring_up())
    opened = connections(lb)
    began_s = time.monotonic()
    process = lb.start()
    lb.until_ready()
    took_s = time.monotonic() - began_s
    lb.kill(process)
    for tenth in range(5, 11):
        process = lb.start()
        # Not a condition that is waited for: the moments are to be spread over the start.
        time.sleep(took_s * tenth / 10)
        lb.kill(process)
        assert all(each.echo() for each in opened)
        assert lb.connect().echo()
    lb.start()
    lb.until_ready()
    assert sorted(path.name for path in (lb.bpf_dir / "prog").iterdir()) == list(PROGRAMS)
    assert all(each.echo() for each in opened)


def test_terminated_it_says_goodbye_and_the_programs_go_on(lb: Site) -> None:
    process = lb.bring_up()
    opened = connections(lb)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert "Traceback" not in lb.log()
    assert lb.attached_xdp() is not None
    assert all(each.echo() for each in opened)
    assert lb.connect().echo()


def test_a_second_copy_waits_and_takes_over(lb: Site) -> None:
    first = lb.bring_up()
    opened = connections(lb)
    number = lb.attached_xdp()
    second = lb.start()
    lb.until(lambda _: "another copy of this process runs" in lb.log(), "waiting")
    assert second.poll() is None
    assert lb.attached_xdp() == number
    lb.kill(first)
    lb.state = None
    lb.until_ready()
    lb.until(lambda _: lb.started[-1].pid == second.pid, "taken over")
    assert lb.attached_xdp() != number
    assert all(each.echo() for each in opened)


def test_a_bad_file_at_the_start_is_refused(lb: Site) -> None:
    lb.write_config(CONFIG.replace("8192", "'many'", 1))
    done = subprocess.run(
        lb.command(), env=lb.environment(), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 2
    assert f"{lb.directory / 'lb.toml'}:7: dataplane.conntrack_entries" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_touches_nothing(lb: Site) -> None:
    done = subprocess.run([*lb.command(), "--help"], capture_output=True, text=True, check=True)
    assert "gale-dataplane" in done.stdout


# --------------------------------------------------------------------------- configuration


def pinned(lb: Site, buckets: int = 1024) -> LoadedObject:
    """The pinned maps, as the process sees them; by fds of our own."""
    sizes = {"FLOW_BUCKETS": buckets, "OLD_FLOW_BUCKETS": 1}
    held = PinnedMaps(lb.bpf_dir)
    try:
        source = str(source_file(maps.SOURCE))
        return compile_program(source, maps=held, defines=dict(sizes), cache_dir=IMAGES)
    finally:
        held.close()


def kernel(lb: Site) -> Kernel:
    return Kernel(pinned(lb).bpf)


def test_a_file_gone_bad_changes_nothing_and_a_good_one_is_applied(lb: Site) -> None:
    process = lb.bring_up()
    opened = connections(lb)
    before = lb.state
    assert before is not None

    lb.write_config(CONFIG + "new_flows_per_second = -1\n")
    process.send_signal(signal.SIGHUP)
    lb.until(lambda _: "the configuration stays as it was" in lb.log(), "refused")
    refused = lb.ask("reload")
    assert refused["applied"] is False
    assert "lb.toml:9: dataplane.new_flows_per_second" in refused["problems"][0]
    assert all(each.echo() for each in opened)
    assert kernel(lb).read_settings().new_flows_per_second == 0

    lb.write_config(CONFIG + "new_flows_per_second = 70000\n")
    process.send_signal(signal.SIGHUP)
    lb.until(lambda _: kernel(lb).read_settings().new_flows_per_second == 70_000, "applied")
    assert lb.ask("reload") == {"applied": True, "problems": [], "restart_needed": []}
    assert process.poll() is None
    state = lb.until_ready()
    assert (state.hooks, state.seats) == (before.hooks, before.seats)


SHORT = 'tcp_time_wait = "1s"\ntcp_closing = "1s"\n'


def buckets(lb: Site, name: str = "flows") -> int:
    fd = must_open(lb, name)
    try:
        return map_shape(fd)[3]
    finally:
        os.close(fd)


def test_what_needs_a_restart_is_said_every_time_and_waits_for_one(lb: Site) -> None:
    for old_buckets in (1024, 1):
        compile_for(16_384, old_buckets=old_buckets)
    lb.write_config(CONFIG + SHORT)
    process = lb.bring_up()
    lb.write_config(CONFIG.replace("conntrack_entries = 8192", "conntrack_entries = 16384") + SHORT)
    for _ in range(2):
        assert lb.ask("reload")["restart_needed"] == ["dataplane.conntrack_entries"]
    # Attached again, for whatever reason, it is still as it was started.
    run("ip", "-n", lb.lb, "link", "set", "pub0", "xdp", "off")
    lb.until(lambda _: lb.attached_xdp() is not None, "attached again")
    assert buckets(lb) == 1024

    opened = connections(lb)
    lb.kill(process)
    successor = lb.start()
    lb.until_ready()
    assert (buckets(lb), buckets(lb, "old_flows")) == (2048, 1024)
    assert all(each.echo() for each in opened)
    assert lb.ask("flows")["total"] == len(opened)
    # The table before lives as long as a flow does in it.
    fresh = connections(lb)
    for each in opened[1:]:
        each.close()
    seen = lb.until_counted(lambda told: told.version).version
    lb.until_counted(lambda told: told.version > seen + 8)
    assert buckets(lb, "old_flows") == 1024
    assert opened[0].echo()
    opened[0].close()
    lb.until(lambda _: "the flow table before this one was empty" in lb.log(), "unchained")
    assert (buckets(lb), buckets(lb, "old_flows")) == (2048, 1)
    lb.until_ready()
    assert all(each.echo() for each in fresh)
    connections(lb)
    assert successor.poll() is None


def must_open(lb: Site, name: str) -> int:
    fd = open_pin(lb.bpf_dir / "maps" / name)
    assert fd is not None
    return fd


# --------------------------------------------------------------------------- the machine


def test_a_missing_interface_is_waited_for(lb: Site) -> None:
    run("ip", "-n", lb.lb, "link", "delete", "pub0")
    lb.publish(table())
    process = lb.start()
    lb.until(lambda state: "interface pub0: there is none" in state.waiting_for, "waiting")
    with pytest.raises(CommandError, match="not forwarding yet: waiting for interface pub0"):
        lb.ask("flows")
    # It was published before the state; who subscribes late gets states first.
    lb.until(lambda _: lb.degraded, "told")
    assert lb.degraded[-1].reason.startswith("interface pub0")
    lb.plug_in_public()
    assert lb.until_ready().waiting_for == ""
    connections(lb)
    assert process.poll() is None


def test_an_interface_that_goes_and_comes_back_is_attached_to_again(lb: Site) -> None:
    process = lb.bring_up()
    connections(lb)
    run("ip", "-n", lb.lb, "link", "delete", "pub0")
    state = lb.until(lambda state: state.waiting_for, "waiting")
    assert not state.ready
    lb.until(lambda state: not state.hooks[0].attached, "seen to be gone")
    lb.plug_in_public()
    lb.until_ready()
    connections(lb)
    assert process.poll() is None


def test_the_private_side_may_go_and_come_back_too(lb: Site) -> None:
    process = lb.bring_up()
    opened = connections(lb)
    run("ip", "-n", lb.lb, "link", "delete", "priv0")
    lb.until(lambda state: state.waiting_for, "waiting")
    lb.plug_in_private()
    lb.until_ready()
    assert all(each.echo() for each in opened)
    assert process.poll() is None


NEW_MAC = "02:00:5e:00:53:01"


@pytest.mark.parametrize("side", ["public", "private"])
def test_an_interface_that_changes_its_mac_keeps_its_flows(lb: Site, side: str) -> None:
    """The other end learns of it at once, as from a gratuitous ARP; and there is no quorum yet."""
    lb.kill(lb.bring_up())
    lb.silence_quorum()
    process = lb.start()
    lb.until(lambda state: state.hooks and not state.waiting_for, "attached")
    opened = connections(lb)
    other, name, own = {
        "public": (lb.client, "pub0", PUBLIC),
        "private": (lb.node, "priv0", PRIVATE),
    }[side]
    run("ip", "-n", lb.lb, "link", "set", name, "address", NEW_MAC)
    run("ip", "-n", other, "neigh", "replace", own, "dev", name, "lladdr", NEW_MAC)
    assert all(each.echo() for each in opened)
    lb.until(lambda _: "interfaces have changed" in lb.log(), "seen")
    connections(lb)
    assert all(each.echo() for each in opened)
    counted = "xdp_public.l4_established"
    by_xdp = lb.until_counted(lambda told: counted in told.verdicts).verdicts[counted]

    def is_by_xdp_again(told: Counters) -> bool:
        assert all(each.echo() for each in opened)
        return told.verdicts[counted] > by_xdp + 20 * len(opened)

    lb.until_counted(is_by_xdp_again)
    assert process.poll() is None


def test_a_public_interface_that_becomes_narrow_says_so_to_the_nodes(lb: Site) -> None:
    lb.bring_up()
    opened = connections(lb)
    for end in (lb.lb, lb.client):
        run("ip", "-n", end, "link", "set", "pub0", "mtu", "1300")
    lb.until(lambda _: "interfaces have changed" in lb.log(), "seen")
    assert all(each.echo(b"x" * 60_000 + b"\n") for each in opened)
    told = lb.until_counted(lambda told: told.verdicts.get("tc_private.too_big_answered", 0))
    assert not [name for name in told.verdicts if name.endswith("drop_too_big")]


def test_an_interface_that_is_renamed_is_waited_for_and_its_flows_go_on(lb: Site) -> None:
    """Programs hang on the device, not on its name."""
    lb.bring_up()
    opened = connections(lb)
    run("ip", "-n", lb.lb, "link", "set", "pub0", "name", "wan0")
    lb.until(lambda state: state.waiting_for.startswith("interface pub0"), "waiting")
    assert all(each.echo() for each in opened)
    run("ip", "-n", lb.lb, "link", "set", "wan0", "name", "pub0")
    lb.until_ready()
    assert all(each.echo() for each in opened)
    connections(lb)


def test_an_interface_that_went_while_nobody_looked(lb: Site) -> None:
    """Killed; the interface is made anew, under another number; and there is no quorum yet."""
    lb.kill(lb.bring_up())
    lb.silence_quorum()
    run("ip", "-n", lb.lb, "link", "delete", "pub0")
    lb.plug_in_public()
    lb.start()
    lb.until(lambda state: state.hooks and not state.waiting_for, "attached")
    connections(lb)


def test_what_an_operator_took_off_is_put_back(lb: Site) -> None:
    lb.bring_up()
    opened = connections(lb)
    run("ip", "-n", lb.lb, "link", "set", "pub0", "xdp", "off")
    assert all(each.echo() for each in opened)
    lb.until(lambda _: lb.attached_xdp() is not None, "attached again")
    lb.inside(lb.lb, "tc", "qdisc", "delete", "dev", "priv0", "clsact")
    lb.until(
        lambda _: (
            "gale_tc_private" in lb.inside(lb.lb, "tc", "filter", "show", "dev", "priv0", "ingress")
        ),
        "attached again",
    )
    lb.until_ready()
    assert all(each.echo() for each in opened)


def test_what_is_taken_off_while_it_is_being_attached_is_put_back(lb: Site) -> None:
    """Whatever is not there a second later is missing, whether or not it ever was."""
    lb.bring_up()
    for _ in range(3):
        run("ip", "-n", lb.lb, "link", "set", "pub0", "xdp", "off")
        lb.until(lambda _: lb.attached_xdp() is not None, "attached again")
        lb.inside(lb.lb, "tc", "qdisc", "delete", "dev", "priv0", "clsact")
        lb.until(
            lambda _: (
                "gale_tc_private"
                in lb.inside(lb.lb, "tc", "filter", "show", "dev", "priv0", "ingress")
            ),
            "attached again",
        )
    lb.until_ready()


# --------------------------------------------------------------------------- what XDP cannot send


def sent_by(lb: Site, interface: str, hook: str, reason: str) -> None:
    """Wait until this is who sends requests to this device, and why."""
    lb.until(
        lambda state: any(
            (each.interface, each.carries, each.hook) == (interface, "requests", hook)
            and reason in each.reason
            for each in state.outputs
        ),
        f"{hook} sends by {interface}: {reason}",
    )


def test_a_device_that_stops_taking_frames_from_xdp_is_left_to_tc(lb: Site) -> None:
    """Of a veth, whose other end loses its GRO and has it again: no connection notices."""
    lb.bring_up()
    opened = connections(lb)
    for gro, hook, reason in (
        ("off", "tc", "its other end has neither GRO nor an XDP program"),
        ("on", "xdp", "takes frames from XDP"),
    ):
        lb.inside(lb.node, "ethtool", "-K", "priv0", "gro", gro)
        sent_by(lb, "priv0", hook, reason)
        assert all(each.echo() for each in opened)
        connections(lb)


def test_a_bridge_as_the_private_interface(lb: Site) -> None:
    lb.rebuild_private_as_bridge()
    lb.bring_up()
    sent_by(lb, "priv0", "tc", "a bridge: it takes no frames from XDP")
    assert all(each.echo() for each in connections(lb))
    lb.until_counted(lambda counted: counted.verdicts.get("xdp_public.slow_output", 0) > 0)


STRANGER = """
#include <linux/bpf.h>
int stranger(struct xdp_md *ctx) { return XDP_PASS; }
"""


def test_a_foreign_program_is_named_left_alone_and_replaced_when_it_has_gone(lb: Site) -> None:
    with program(STRANGER) as loaded:
        pin(loaded.function("stranger", "xdp"), lb.bpf_dir.parent / "stranger")
    path = str(lb.bpf_dir.parent / "stranger")
    lb.inside(lb.lb, "ip", "link", "set", "pub0", "xdp", "pinned", path)
    number = lb.attached_xdp()
    lb.publish(table())
    process = lb.start()
    state = lb.until(lambda state: state.waiting_for, "waiting")
    assert "pub0: an XDP program that is not ours is attached: stranger" in state.waiting_for
    assert lb.attached_xdp() == number
    # Not even the hooks that are free are taken, or half of the work would be done.
    assert "gale" not in lb.inside(lb.lb, "tc", "filter", "show", "dev", "pub0", "ingress")
    before = open_files(process.pid)
    lb.until_waited(process)
    assert open_files(process.pid) == before
    run("ip", "-n", lb.lb, "link", "set", "pub0", "xdp", "off")
    lb.until_ready()
    connections(lb)


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_a_pin_that_does_not_fit_is_named_while_the_old_programs_forward(lb: Site) -> None:
    lb.kill(lb.bring_up())
    opened = connections(lb)
    number = lb.attached_xdp()
    wrong = create_map("sources", MapType.LRU_HASH, 4, 24, 65_536, 0)
    kept = must_open(lb, "sources")
    pin(wrong, lb.bpf_dir / "maps" / "sources")

    process = lb.start()
    state = lb.until(lambda state: state.waiting_for, "waiting")
    assert state.waiting_for.startswith("maps/sources: its layout is another one")
    assert "value_size 24 pinned, 16 declared" in state.waiting_for
    before = open_files(process.pid)
    lb.until_waited(process)
    assert open_files(process.pid) == before
    assert lb.attached_xdp() == number
    assert all(each.echo() for each in opened)
    opened += connections(lb)

    pin(kept, lb.bpf_dir / "maps" / "sources")
    lb.until_ready()
    assert lb.attached_xdp() != number
    assert all(each.echo() for each in opened)


def test_forgotten_neighbours_are_resolved_again_and_lose_nothing(lb: Site) -> None:
    process = lb.bring_up()
    opened = connections(lb)
    for _ in range(3):
        run("ip", "-n", lb.lb, "neigh", "flush", "all")
        assert all(each.echo() for each in opened)
        opened.append(lb.connect())
    lb.until_ready()
    assert process.poll() is None


def test_a_node_that_changes_its_mac_is_followed(lb: Site) -> None:
    lb.bring_up()
    opened = connections(lb)
    mac = "02:00:00:00:77:01"
    run("ip", "-n", lb.node, "link", "set", "priv0", "address", mac)
    lb.inside(lb.lb, "ip", "neigh", "flush", "all")
    reader = kernel(lb)
    lb.until(
        lambda _: (
            {
                seat.next_hop and seat.next_hop.destination_mac
                for seat in reader.adopt().seats.values()
            }
            == {mac}
        ),
        "followed",
    )
    assert all(each.echo() for each in opened)


def test_nodes_without_a_seat_disturb_nobodys_next_hop(lb: Site) -> None:
    """A table with a node that has no seat makes the process watch more addresses, then fewer."""
    lb.bring_up()
    for epoch in range(2, 6):
        run("ip", "-n", lb.lb, "neigh", "flush", "all")
        down = (NodeState.UP, NodeState.DOWN if epoch % 2 else NodeState.UP)
        lb.publish(table(epoch, down))
        lb.until_ready(epoch)


def test_what_is_left_out_is_said_once_by_name_and_the_others_serve(lb: Site) -> None:
    lb.bring_up()
    (served,) = table().services
    for epoch in range(2, 5):
        lb.publish(table(epoch, services=(served, replace(served, name="twice"))))
        state = lb.until_ready(epoch)
        assert [line.partition(": ")[0] for line in state.left_out] == ["service twice"]
    assert lb.log().count("left out") == 1
    assert all(each.echo() for each in connections(lb))
    lb.publish(table(5))
    assert lb.until_ready(5).left_out == ()


class Resolving:
    """Next hops that are resolved at the very moment the plan has been made without them."""

    def __init__(self) -> None:
        self.watched: frozenset[str] = frozenset()
        self.watches = 0

    def watch(self, addresses: frozenset[str]) -> None:
        self.watched, self.watches = addresses, self.watches + 1

    def serve(self, now_ms: int) -> dict[str, NextHop | None]:
        mac = "02:00:00:00:00:0c" if self.watches > 1 else None
        hop = NextHop(7, "02:00:00:00:00:0b", mac, 1500, None, PRIVATE)
        return dict.fromkeys(self.watched, hop)

    def next_ms(self, now_ms: int) -> int | None:
        return None

    def narrowed(self, addresses: object) -> None:
        """No path is."""

    def close(self) -> None:
        """It holds nothing."""


def test_news_of_a_neighbour_while_planning_is_not_lost(
    lb: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this test's own process, turn by turn, inside the LB's namespace."""
    monkeypatch.setattr(ways, "NextHopMonitor", Resolving)
    paths = Paths(lb.directory / "lb.toml", Path(), lb.run_dir, lb.state_dir, lb.bpf_dir)
    lb.publish(table(1, (NodeState.UP, NodeState.DOWN)))
    end_s = time.monotonic() + PATIENCE_S
    with in_network(lb.lb):
        process = main.DataplaneProcess(paths, load_lb(paths.lb_config))
        try:
            while not (state := lb.look()) or not state.seats or not state.seats[0].resolved:
                process._step(time.monotonic_ns() // 1_000_000)
                assert time.monotonic() < end_s, state
                time.sleep(0.005)
            assert len(state.seats) == 1
        finally:
            process.close()


# --------------------------------------------------------------------------- what it costs


def test_an_idle_process_is_idle_and_small(lb: Site) -> None:
    process = lb.bring_up()
    connections(lb)
    spent_s = cpu_s(process.pid)
    versions = lb.until_counted(lambda told: told.version).version
    lb.until_counted(lambda told: told.version >= versions + 5)
    # In five seconds; the goal is far lower, but so may be the speed of this machine.
    assert cpu_s(process.pid) - spent_s < 1.0
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident_kb = int(status.split("VmRSS:")[1].split()[0])
    assert resident_kb < 100_000


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_no_turn_of_the_loop_is_long_with_a_quarter_of_a_million_flows(lb: Site) -> None:
    """In this test's own process, turn by turn: census, counters and the longest listing."""
    compile_for(524_288)
    paths = Paths(lb.directory / "lb.toml", Path(), lb.run_dir, lb.state_dir, lb.bpf_dir)
    lb.write_config(CONFIG.replace("conntrack_entries = 8192", "conntrack_entries = 524288"))
    lb.publish(table())
    with in_network(lb.lb):
        process = main.DataplaneProcess(paths, load_lb(paths.lb_config))
        try:
            step_until(process, lambda: bool((state := lb.look()) and state.ready))
            flows = pinned(lb, 65_536).bpf[b"flows"]
            number = np.arange(250_000, dtype=np.uint32)
            now = ticks(time.monotonic_ns())
            write(flows, both(requests(flow_type(flows), len(number), now, key_saddr=number)))
            spent_ms = while_listing(lb, process)
        finally:
            process.close()
    # The goal is 10 ms, and 8 were seen, in CPU time; but machines differ, and neighbours take
    # caches away.
    assert sorted(spent_ms)[-3] < 20, sorted(spent_ms)[-20:]


def test_the_loop_goes_on_while_programs_for_more_services_are_compiled(
    lb: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that dies meanwhile is to be masked."""
    real, may_end = loader.fill_cache, threading.Event()

    def fill_cache(*arguments: Any) -> None:
        assert may_end.wait(3 * PATIENCE_S)
        real(*arguments)

    monkeypatch.setattr(programs, "fill_cache", fill_cache)
    paths = Paths(lb.directory / "lb.toml", Path(), lb.run_dir, lb.state_dir, lb.bpf_dir)
    lb.write_config(CONFIG)
    lb.publish(table())
    (served,) = table().services
    many = tuple(replace(served, name=f"s{n}", port=served.port + n) for n in range(13))
    with in_network(lb.lb):
        process = main.DataplaneProcess(paths, load_lb(paths.lb_config))
        try:
            step_until(process, lambda: is_planned(lb, process, 1))
            lb.publish(table(2, services=many))
            step_until(process, lambda: is_planned(lb, process, 2))
            assert rings_of(process) == 16
            lb.publish(table(3, (NodeState.UP, NodeState.DOWN), services=many))
            step_until(process, lambda: is_planned(lb, process, 3))
            assert rings_of(process) == 16
            may_end.set()
            step_until(process, lambda: rings_of(process) == 80)
            step_until(process, lambda: len(process._held.services) == 13)
        finally:
            may_end.set()
            process.close()


def is_planned(lb: Site, process: main.DataplaneProcess, epoch: int) -> bool:
    lb.look()
    return process._planned_epoch == epoch


def rings_of(process: main.DataplaneProcess) -> int:
    assert process._forwarding is not None
    return process._forwarding.kernel.max_rings


def while_listing(lb: Site, process: main.DataplaneProcess) -> list[float]:
    """What each turn took from a listing's request to its answer, and to the third count."""
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(
        target=lambda: answers.append(lb.ask("flows", limit=10_000, service="default"))
    )
    counted = process._counts_version
    asking.start()
    spent_ms = step_until(
        process,
        lambda: (
            bool(answers)
            and process._counts_version > counted + 2
            and process._forwarding is not None
            and process._forwarding.census is not None
            and process._forwarding.census.established == 250_000
        ),
    )
    asking.join()
    assert (answers[0]["total"], len(answers[0]["flows"])) == (250_000, 10_000)
    return spent_ms


def step_until(process: main.DataplaneProcess, is_so: Callable[[], bool]) -> list[float]:
    """What each turn of the loop took, in ms of CPU time."""
    end_s = time.monotonic() + 3 * PATIENCE_S
    spent_ms = []
    while not is_so():
        began_ns = time.thread_time_ns()
        process._step(time.monotonic_ns() // 1_000_000)
        spent_ms.append((time.thread_time_ns() - began_ns) / 1e6)
        assert time.monotonic() < end_s
    return spent_ms
