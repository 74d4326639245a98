"""A machine prepared for direct return and taken back: real, in a network namespace each."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bpf.syscall import ProgramKind
from e2e.hosts import wait_for
from services.node import host as host_module
from services.node.clamp import TABLE, clamp
from services.node.direct import NOTHING_NEEDED, Need
from services.node.host import Host, Order, Report, open_flows
from services.node.record import FILE_NAME
from tests.bpf.harness import IMAGES, private_bpffs, private_network
from tests.cli.network import program
from tests.node.host_state import ip, read_setting, snapshot, tool, write_setting

VIP, OTHER = "10.80.0.100", "10.80.0.101"
LB = "10.81.0.10"
L2 = Need(frozenset({VIP}))
L3 = Need(frozenset({VIP}), frozenset({VIP}), 20)
GUE = replace(L3, header_bytes=32)


@dataclass
class Machine:
    """A node with `priv0`, by which its LB and the default route are reached."""

    directory: Path
    bpf_dir: Path
    hosts: list[Host] = field(default_factory=list)

    def host(self, *, beside_lb: bool = False) -> Host:
        """An agent that starts."""
        host = Host(self.directory, self.bpf_dir, IMAGES, beside_lb=beside_lb)
        self.hosts.append(host)
        return host

    @property
    def record(self) -> Path:
        return self.directory / FILE_NAME

    def take_back(self) -> Report:
        return self.host().settle(Order())


def order(need: Need = L3, **options: Any) -> Order:
    return Order(need, lbs=frozenset({LB}), **options)


@pytest.fixture
def machine() -> Iterator[Machine]:
    directory = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    with private_bpffs() as bpf_dir, private_network():
        tool("ip", "link", "set", "lo", "up")
        add_interface("priv0", "10.81.0.20/24")
        tool("ip", "route", "add", "default", "via", "10.81.0.254")
        for name in ("all", "priv0"):
            for setting in ("arp_ignore", "arp_announce", "rp_filter"):
                write_setting(f"{name}/{setting}", 0)
        made = Machine(directory, bpf_dir)
        yield made
        for host in made.hosts:
            host.close()
    shutil.rmtree(directory)


def add_interface(name: str, address: str) -> None:
    tool("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
    tool("ip", "link", "set", f"{name}-far", "up")
    tool("ip", "link", "set", name, "up")
    tool("ip", "address", "add", address, "dev", name)


def loopback() -> list[str]:
    (link,) = ip("-4", "address", "show", "dev", "lo")
    return [entry["local"] for entry in link["addr_info"]]


def filters() -> str:
    return tool("tc", "filter", "show", "dev", "priv0", "ingress")


def our_routes() -> list[dict[str, Any]]:
    with contextlib.suppress(Exception):
        return list(ip("-4", "route", "show", "table", str(TABLE)))
    return []


# --------------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    "wanted",
    [order(L2), order(L3), order(GUE), order(L3, hook="xdp")],
    ids=["l2", "ipip", "gue", "xdp"],
)
def test_prepared_twice_and_taken_back(machine: Machine, wanted: Order) -> None:
    before = snapshot()
    host = machine.host()
    assert host.settle(wanted).missing == ()
    prepared = snapshot()
    assert VIP in loopback()
    assert (read_setting("all/arp_ignore"), read_setting("all/arp_announce")) == ("1", "2")
    assert ("gale_unwrap" in filters()) is (bool(wanted.need.tunnelled) and wanted.hook == "tc")
    assert (prepared["xdp"]["priv0"] is not None) is (wanted.hook == "xdp")
    assert host.settle(wanted).missing == ()
    assert snapshot() == prepared
    report = host.settle(Order())
    assert (report.missing, bool(report.taken)) == ((), False)
    assert snapshot() == before
    assert not machine.record.exists()
    assert [path for path in machine.bpf_dir.rglob("*") if path.is_file()] == []


def test_the_vip_is_the_source_of_nothing_else(machine: Machine) -> None:
    machine.host().settle(order())
    (entry,) = [a for a in ip("-4", "address", "show", "dev", "lo")[0]["addr_info"]
                if a["local"] == VIP]  # fmt: skip
    assert (entry["scope"], entry["prefixlen"]) == ("host", 32)


def test_the_way_back_of_a_vip_has_a_smaller_mss(machine: Machine) -> None:
    tool("ip", "route", "add", "10.7.0.0/16", "via", "10.81.0.7", "mtu", "1400", "advmss", "1000")
    machine.host().settle(order(GUE))
    mss = {route["dst"]: route["metrics"][0]["advmss"] for route in our_routes()}
    assert mss == {"default": 1428, "10.81.0.0/24": 1428, "10.7.0.0/16": 1000}
    (way,) = ip("route", "get", "10.80.0.2", "from", VIP)
    assert (way["gateway"], way["dev"]) == ("10.81.0.254", "priv0")
    assert f"from {VIP} lookup {TABLE}" in tool("ip", "rule")


def test_the_copy_of_the_routes_follows(machine: Machine) -> None:
    host = machine.host()
    host.settle(order())
    tool("ip", "route", "replace", "default", "via", "10.81.0.253")
    tool("ip", "route", "add", "10.6.0.0/16", "nexthop", "via", "10.81.0.3", "nexthop", "via",
         "10.81.0.4", "weight", "3")  # fmt: skip
    tool("ip", "route", "add", "blackhole", "10.5.0.0/16")
    tool("ip", "link", "set", "priv0", "mtu", "1400")
    assert host.settle(order()).missing == ()
    copied = {route["dst"]: route for route in our_routes()}
    assert copied.keys() == {"default", "10.81.0.0/24", "10.6.0.0/16", "10.5.0.0/16"}
    assert copied["default"]["gateway"] == "10.81.0.253"
    assert copied["default"]["metrics"] == [{"advmss": 1340}]
    assert [hop["weight"] for hop in copied["10.6.0.0/16"]["nexthops"]] == [1, 3]
    assert copied["10.5.0.0/16"]["type"] == "blackhole"
    tool("ip", "route", "del", "10.6.0.0/16")
    host.settle(order())
    assert "10.6.0.0/16" not in {route["dst"] for route in our_routes()}


def test_a_need_that_shrinks_takes_back_only_that(machine: Machine) -> None:
    host = machine.host()
    host.settle(order(Need(frozenset({VIP, OTHER}), frozenset({VIP, OTHER}), 32)))
    assert {VIP, OTHER} < set(loopback())
    host.settle(order(Need(frozenset({VIP, OTHER}), frozenset({VIP}), 20)))
    assert {VIP, OTHER} < set(loopback())
    assert OTHER not in tool("ip", "rule")
    host.settle(order(L2))
    assert loopback() == ["127.0.0.1", VIP]
    assert "gale_unwrap" not in filters()
    assert (our_routes(), read_setting("all/arp_ignore")) == ([], "1")


def test_from_tc_to_xdp_and_back(machine: Machine) -> None:
    host = machine.host()
    host.settle(order())
    host.settle(order(hook="xdp"))
    assert "gale_unwrap" not in filters()
    assert snapshot()["xdp"]["priv0"]["prog"]["name"] == "gale_unwrap"
    host.settle(order(hook="tc"))
    assert "gale_unwrap" in filters()
    assert snapshot()["xdp"]["priv0"] is None


def test_the_address_is_never_there_unsilenced(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = machine.host()
    seen: list[tuple[str, str, str]] = []
    change = host._address

    def watched(verb: str, address: str) -> None:
        seen.append((verb, read_setting("all/arp_ignore"), read_setting("all/arp_announce")))
        change(verb, address)

    monkeypatch.setattr(host, "_address", watched)
    host.settle(order())
    host.settle(Order())
    assert seen == [("add", "1", "2"), ("del", "1", "2")]


def test_an_address_that_cannot_be_silenced_is_not_added(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def refuse(place: Path, text: str) -> int:
        if place.name == "arp_announce":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return write(place, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    assert "arp_announce" in machine.host().settle(order(L2)).hindrance
    assert VIP not in loopback()


def test_the_silence_stays_for_as_long_as_the_address_does(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = machine.host()
    host.settle(order(L2))

    def refuse(verb: str, address: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(host, "_address", refuse)
        host.settle(Order())
    assert VIP in loopback()
    assert (read_setting("all/arp_ignore"), read_setting("all/arp_announce")) == ("1", "2")
    host.settle(Order())
    assert VIP not in loopback()
    assert (read_setting("all/arp_ignore"), read_setting("all/arp_announce")) == ("0", "0")


# --------------------------------------------------------------------------- restarts


def test_a_restart_replaces_and_never_detaches(machine: Machine) -> None:
    before = snapshot()
    machine.host().settle(order())
    prepared, first = snapshot(), filters()
    report = machine.host().settle(order())
    assert report.missing == ()
    assert filters() != first  # another program
    assert {**snapshot(), "filters": None} == {**prepared, "filters": None}
    assert machine.take_back().missing == ()
    assert snapshot() == before


def test_who_has_not_heard_all_lbs_keeps_what_was_prepared(machine: Machine) -> None:
    machine.host().settle(order())
    prepared = snapshot()
    host = machine.host()
    host.settle(Order(NOTHING_NEEDED, complete=False))
    without_ids = {**snapshot(), "filters": None}
    assert without_ids == {**prepared, "filters": None}
    assert "gale_unwrap" in filters()
    host.settle(order(L2, complete=False))
    assert "gale_unwrap" in filters()
    host.settle(order(L2))
    assert "gale_unwrap" not in filters()


class KilledError(BaseException):
    """Death at a certain step."""


STEPS = ("_set", "_address")


@pytest.mark.parametrize("last", range(9))
@pytest.mark.parametrize("direction", ["there", "back"])
def test_killed_between_any_two_steps(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, last: int, direction: str
) -> None:
    tool("ip", "address", "add", f"{OTHER}/32", "dev", "lo")
    write_setting("all/arp_announce", 1)
    before = snapshot()
    host = machine.host()
    if direction == "back":
        host.settle(order())
    left = iter(range(last))

    def deadly(step: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            done = step(*arguments, **options)
            if next(left, None) is None:
                raise KilledError
            return done

        return wrapped

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(host, name, deadly(getattr(host, name)))
        patch.setattr(host._record, "save", deadly(host._record.save))
        patch.setattr(host._unwrapper, "ensure", deadly(host._unwrapper.ensure))
        patch.setattr(host._unwrapper, "remove", deadly(host._unwrapper.remove))
        patch.setattr(host_module, "clamp", deadly(clamp))
        with contextlib.suppress(KilledError):
            host.settle(order() if direction == "there" else Order())
    after_death = machine.host()
    assert after_death.settle(order()).missing == ()
    assert VIP in loopback()
    assert after_death.settle(Order()).missing == ()
    assert snapshot() == before


def test_a_record_of_another_network_is_nothing_here(machine: Machine) -> None:
    machine.host().settle(order(L2))
    record = json.loads(machine.record.read_text())
    machine.record.write_text(json.dumps({**record, "where": "elsewhere"}))
    machine.take_back()
    assert VIP in loopback()


def test_a_damaged_record_is_set_aside(machine: Machine) -> None:
    machine.record.write_text("{")
    assert machine.host().settle(order()).missing == ()
    assert machine.record.with_name("prepared.json.damaged").read_text() == "{"


def test_what_never_was_a_record_is_set_aside_and_not_waited_for(machine: Machine) -> None:
    os.mkfifo(machine.record)
    assert machine.host().settle(order()).missing == ()
    assert machine.record.with_name("prepared.json.damaged").is_fifo()


# --------------------------------------------------------------------------- the operator's


def test_what_the_operator_prepared_stays(machine: Machine) -> None:
    tool("ip", "address", "add", f"{VIP}/32", "dev", "lo", "label", "lo:web")
    write_setting("all/arp_ignore", 2)
    write_setting("all/arp_announce", 2)
    before = snapshot()
    host = machine.host()
    report = host.settle(order(L2))
    assert (report.missing, report.taken.addresses, dict(report.taken.settings)) == (
        (), frozenset(), {},
    )  # fmt: skip
    assert snapshot() == before
    host.settle(Order())
    assert snapshot() == before


def test_what_the_operator_changes_later_stays_too(machine: Machine) -> None:
    host = machine.host()
    host.settle(order(L2))
    write_setting("all/arp_ignore", 2)
    host.settle(order(L2))
    host.settle(Order())
    assert (read_setting("all/arp_ignore"), read_setting("all/arp_announce")) == ("2", "0")


def test_a_foreign_filter_stays_and_is_told(machine: Machine) -> None:
    tool("tc", "qdisc", "add", "dev", "priv0", "clsact")
    pin = machine.bpf_dir / "stranger"
    os.close(program("stranger", ProgramKind.TC, pin))
    words = f"filter add dev priv0 ingress prio 1 bpf da pinned {pin}"
    tool("tc", *words.split())
    host = machine.host()
    report = host.settle(order())
    assert "not ours has priority 1: stranger" in report.hindrance
    assert "stranger" in filters()
    tool("tc", "filter", "del", "dev", "priv0", "ingress", "prio", "1")
    assert host.settle(order()).hindrance == ""
    assert "gale_unwrap" in filters()


def test_the_load_balancers_own_program_keeps_its_place(machine: Machine) -> None:
    tool("tc", "qdisc", "add", "dev", "priv0", "clsact")
    pin = machine.bpf_dir / "gale_tc_private"
    os.close(program("gale_tc_private", ProgramKind.TC, pin))
    words = f"filter add dev priv0 ingress prio 1 handle 1 bpf da pinned {pin}"
    tool("tc", *words.split())
    host = machine.host()
    before = filters()
    report = host.settle(order())
    assert report.hindrance.startswith("unwrapper: priv0: gale_tc_private")
    assert report.hindrance.endswith("has the unwrapper's place")
    host.settle(Order())
    assert filters() == before


def places() -> list[tuple[int, str]]:
    """Priority and name of each filter."""
    shown = json.loads(tool("tc", "-j", "filter", "show", "dev", "priv0", "ingress") or "[]")
    options = [(each["pref"], each.get("options", {})) for each in shown]
    return [(pref, each["bpf_name"]) for pref, each in options if "bpf_name" in each]


def test_on_a_machine_that_is_an_lb_too_the_unwrapper_stands_behind_the_lb_s_program(
    machine: Machine,
) -> None:
    tool("tc", "qdisc", "add", "dev", "priv0", "clsact")
    pin = machine.bpf_dir / "gale_tc_private"
    os.close(program("gale_tc_private", ProgramKind.TC, pin))
    words = f"filter add dev priv0 ingress prio 1 handle 1 bpf da pinned {pin}"
    tool("tc", *words.split())
    host = machine.host(beside_lb=True)
    assert host.settle(order()).hindrance == ""
    assert [priority for priority, _ in places()] == [1, 2]
    assert places()[1][1].startswith("gale_unwrap")
    host.settle(Order())
    assert [priority for priority, _ in places()] == [1]


def test_an_agent_whose_machine_becomes_an_lb_makes_room_for_it_and_back(machine: Machine) -> None:
    for beside_lb, priority in ((False, 1), (True, 2), (False, 1)):
        assert machine.host(beside_lb=beside_lb).settle(order()).hindrance == ""
        assert [each for each, _ in places()] == [priority]
    machine.take_back()
    assert places() == []


def test_who_is_its_own_only_lb_has_nothing_to_unwrap(machine: Machine) -> None:
    report = machine.host().settle(Order(L3, lbs=frozenset({"10.81.0.20"})))
    assert report.hindrance == ""
    assert VIP in loopback()
    assert places() == []


def test_an_address_of_another_interface_is_told(machine: Machine) -> None:
    tool("ip", "address", "add", f"{VIP}/24", "dev", "priv0")
    report = machine.host().settle(order(L2))
    assert report.hindrance == f"{VIP} is an address of priv0, expected it on lo alone"


@pytest.mark.parametrize("need", [L2, L3], ids=["l2", "l3"])
def test_the_address_of_an_lb_stays_reachable(machine: Machine, need: Need) -> None:
    """Also if it was another's when it was taken."""
    host = machine.host()
    for lbs in (frozenset({LB}), frozenset({LB, VIP}), frozenset({VIP})):
        report = host.settle(Order(need, lbs=lbs))
        assert (VIP in loopback()) is (VIP not in lbs)
        assert ("reaches its load balancer" in report.hindrance) is (VIP in lbs)
    (way,) = ip("route", "get", VIP)
    assert way["dev"] == "priv0"


def test_who_may_not_touch_the_network_looks_only(machine: Machine) -> None:
    before = snapshot()
    host = machine.host()
    report = host.settle(order(L2, managed=False))
    assert snapshot() == before
    assert f"{VIP} is not on lo" in report.missing
    assert report.hindrance == ""
    host.settle(order(L2))
    host.settle(order(L2, managed=False))
    assert snapshot() == before


def test_an_agent_that_may_nothing_tells_it(machine: Machine) -> None:
    host = machine.host()
    machine.directory.chmod(0o500)
    machine.record.mkdir()  # also root cannot write a file there
    report = host.settle(order(L2))
    assert report.hindrance.startswith("record: Is a directory")
    assert VIP not in loopback()
    machine.record.rmdir()
    assert host.settle(order(L2)).hindrance == ""


@pytest.mark.parametrize("crossed", [False, True])
def test_strict_filtering(machine: Machine, crossed: bool) -> None:
    write_setting("all/rp_filter", 1)
    if crossed:
        add_interface("pub0", "10.80.0.20/24")
    before = snapshot()
    host = machine.host()
    host.settle(order())
    assert read_setting("priv0/rp_filter") == ("2" if crossed else "0")
    host.settle(Order())
    assert snapshot() == before


def test_what_somebody_takes_away_comes_back(machine: Machine) -> None:
    host = machine.host()
    host.settle(order())
    prepared = snapshot()
    tool("ip", "address", "del", f"{VIP}/32", "dev", "lo")
    tool("tc", "qdisc", "del", "dev", "priv0", "clsact")
    tool("ip", "rule", "del", "from", VIP)
    host.settle(order())
    assert {**snapshot(), "filters": None} == {**prepared, "filters": None}
    assert "gale_unwrap" in filters()


def test_an_interface_that_is_made_anew(machine: Machine) -> None:
    host = machine.host()
    host.settle(order())
    tool("ip", "link", "del", "priv0")
    assert "nowhere to unwrap" in host.settle(order()).hindrance
    add_interface("priv0", "10.81.0.20/24")
    assert host.settle(order()).hindrance == ""
    assert "gale_unwrap" in filters()


def test_connections_that_need_the_address_are_counted() -> None:
    with private_network():
        tool("ip", "link", "set", "lo", "up")
        tool("ip", "address", "add", f"{VIP}/32", "dev", "lo")
        for server in (
            socket.create_server((VIP, 80)),
            socket.create_server(("::", 81), family=socket.AF_INET6, dualstack_ipv6=True),
        ):
            port = server.getsockname()[1]
            assert open_flows(frozenset({VIP})) == 0
            with socket.create_connection((VIP, port), source_address=("127.0.0.1", 0)):
                assert open_flows(frozenset({VIP})) == 1
                assert open_flows(frozenset({OTHER})) == 0
            accepted, _ = server.accept()
            accepted.close()
            server.close()


def test_who_has_closed_in_order_needs_the_address_no_more() -> None:
    """The side that closes first waits in TIME_WAIT for a minute."""
    with private_network():
        tool("ip", "link", "set", "lo", "up")
        tool("ip", "address", "add", f"{VIP}/32", "dev", "lo")
        with socket.create_server((VIP, 80)) as server:
            client = socket.create_connection((VIP, 80), source_address=("127.0.0.1", 0))
            accepted, _ = server.accept()
            assert open_flows(frozenset({VIP})) == 1
            accepted.close()
            client.close()
            wait_for(lambda: "TIME-WAIT" in tool("ss", "-tan"), "the connection to be over")
            assert open_flows(frozenset({VIP})) == 0
