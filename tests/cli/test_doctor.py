"""`gale doctor`: each trouble made for real in a namespace, the rest of the rules as tables."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from bpf.attachments import Attachment, Owner
from conf import LbConfig, Paths, load_lb
from conf.node import ServedService
from services.cli.doctor import lb, links, node, system
from services.cli.doctor.finding import Finding
from services.cli.doctor.firewall import firewall_findings
from services.cli.doctor.lb import PORT_RANGE, RESERVED_PORTS, parse_ports, port_findings
from services.cli.doctor.links import (
    client_address_findings,
    link_findings,
    mtu_findings,
    program_findings,
    return_path_findings,
    xdp_findings,
)
from services.cli.doctor.node import ARP_ANNOUNCE, ARP_IGNORE, direct_return_findings
from services.cli.doctor.reach import reach_finding
from services.cli.doctor.system import JIT, bpf_directory_findings, kernel_findings
from services.cli.machine import Link, Listener, Machine, mount_of
from services.quorum import table
from tests.cli.files import LB_CONFIG
from tests.cli.network import Namespace, call

FULL_XDP = 0b111


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level.value for finding in findings]


# --------------------------------------------------------------------------- for real


def examine(namespace: Namespace) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit code, and the findings by their level."""
    result = namespace.gale("doctor", "--json")
    assert result.stderr == ""
    answer = orjson.loads(result.stdout)
    assert answer["ok"] is (result.returncode == 0)
    by_level: dict[str, list[dict[str, str]]] = {"ok": [], "warn": [], "fail": []}
    for finding in answer["checks"]:
        by_level[finding["level"]].append(finding)
    return result.returncode, by_level


def test_a_good_machine_before_and_after_the_programs_are_attached(namespace: Namespace) -> None:
    for attached in (False, True):
        if attached:
            namespace.attach_ours()
        code, found = examine(namespace)
        assert (code, found["fail"]) == (0, [])
        # Nothing of Gale's runs here, and the shell that runs the tests may have any PATH.
        assert {each["check"] for each in found["warn"]} - {"PATH"} == {"processes"}
        forwards = "by what it was told last" if attached else "nothing is forwarded"
        (told,) = [each for each in found["warn"] if each["check"] == "processes"]
        assert forwards in told["message"]
        ours = [each for each in found["ok"] if "is Gale's" in each["message"]]
        assert len(ours) == (3 if attached else 0)
    assert list(namespace.mount.glob("**/gale_doctor*")) == []


def ingress_qdisc(namespace: Namespace) -> None:
    namespace.run("tc", "qdisc", "add", "dev", "priv0", "ingress")


def first_filter(namespace: Namespace) -> None:
    namespace.attach_tc("pub0", "neighbour", 1)


def foreign_xdp(namespace: Namespace) -> None:
    namespace.attach_xdp("pub0", "firewall")


def floating_vip_of_the_kernel(namespace: Namespace) -> None:
    text = namespace.config.read_text() + '[[virtual_ips]]\naddress = "10.80.0.100"\n'
    namespace.config.write_text(text)
    namespace.run("ip", "address", "add", "10.80.0.100/32", "dev", "pub0")


def a_bridge_port(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "br0", "type", "bridge")
    namespace.run("ip", "link", "set", "priv0", "master", "br0")


def a_stranger_on_node_port(namespace: Namespace) -> None:
    namespace.listen(7070)


def a_full_disk(namespace: Namespace) -> None:
    namespace.state_dir.mkdir()
    call("mount", "-t", "tmpfs", "-o", "size=64k", "none", str(namespace.state_dir))


def a_dataplane_without_programs(namespace: Namespace) -> None:
    namespace.listen_unix("dataplane")


TROUBLES: list[tuple[str | Callable[[Namespace], None], str, str, str]] = [
    ("ip link set priv0 down", "priv0", "is down", "ip link set priv0 up"),
    ("ip link set priv0-far down", "priv0", "has no carrier", "peer"),
    ("ip link del pub0", "local.net_interface_public", "is no interface", ""),
    ("ip address flush dev priv0", "local.net_interface_private", "no IPv4 address", ""),
    (
        "sysctl -qw net.ipv4.ip_local_port_range=20000,60999",
        "SNAT ports",
        "20000-60999 shares 12768 ports",
        "sysctl -w net.ipv4.ip_local_reserved_ports=1536-32767",
    ),
    (foreign_xdp, "pub0", "firewall", "xdp off"),
    (first_filter, "pub0", "has the place of Gale's filter", "another priority"),
    (ingress_qdisc, "priv0", "ingress qdisc", "tc qdisc del dev priv0 ingress"),
    (floating_vip_of_the_kernel, "virtual_ips[0].address", "is an address of pub0", ""),
    (a_bridge_port, "priv0", "is a port of br0", "ip link set priv0 nomaster"),
    (a_stranger_on_node_port, "ports", "7070 (local.node_port) is taken", "ss -ltnp"),
    (a_full_disk, "state directory", "cannot be stored", "make room"),
    (a_dataplane_without_programs, "processes", "nothing is forwarded", "gale status"),
]


@pytest.mark.parametrize(("trouble", "check", "message", "remedy"), TROUBLES)
def test_what_stops_packets_fails(
    namespace: Namespace,
    trouble: str | Callable[[Namespace], None],
    check: str,
    message: str,
    remedy: str,
) -> None:
    if isinstance(trouble, str):
        words = [word.replace(",", " ") for word in trouble.split()]
        namespace.run(*words)
    else:
        trouble(namespace)
    code, found = examine(namespace)
    assert code == 1
    (failure,) = (each for each in found["fail"] if each["check"] == check)
    assert message in failure["message"]
    assert remedy in failure["remedy"]


def test_reserved_ports_are_nobody_elses(namespace: Namespace) -> None:
    namespace.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65000")
    namespace.run("sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=1536-32767")
    assert examine(namespace)[0] == 0


def test_what_only_costs_is_a_warning(namespace: Namespace) -> None:
    namespace.attach_tc("pub0", "neighbour", 7)
    namespace.run("ip", "link", "set", "pub0", "mtu", "3000")
    namespace.run("ethtool", "-K", "priv0-far", "gro", "off")
    code, found = examine(namespace)
    assert (code, found["fail"]) == (0, [])
    said = {each["check"]: each for each in found["warn"]}
    assert "sees only what Gale's filter leaves" in said["pub0"]["message"]
    assert said["MTU"]["remedy"] == "ip link set priv0 mtu 3000"
    assert "GRO off" in said["XDP"]["message"]
    assert "gro on" in said["XDP"]["remedy"]


def floating(namespace: Namespace, address: str, more: str) -> None:
    namespace.config.write_text(
        namespace.config.read_text() + f'[[virtual_ips]]\naddress = "{address}"\n{more}'
    )


def test_what_loses_some_packets_is_a_warning(namespace: Namespace) -> None:
    floating(namespace, "10.99.0.1", 'snat_addresses = ["10.98.0.1", "10.81.0.99"]\n')
    namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    namespace.run("ip", "address", "add", "10.80.0.11/24", "dev", "priv0")
    namespace.run("nft", "add", "table", "inet", "filter")
    chain = "{ type filter hook input priority 0; policy drop; }"
    namespace.run("nft", "add", "chain", "inet", "filter", "input", chain)
    namespace.run("nft", "add", "rule", "inet", "filter", "input", "tcp", "dport", "5555", "accept")
    damaged = namespace.state_dir / "quorum.state.damaged"
    namespace.state_dir.mkdir()
    damaged.touch()
    peers = '[{ ip = "10.81.0.10", port = 9000 }, { ip = "127.0.0.1", port = 1 }]'
    namespace.config.write_text(
        f"{namespace.config.read_text()}[load_balancer_quorum]\naddresses = {peers}\n"
    )
    code, found = examine(namespace)
    assert (code, found["fail"]) == (0, [])
    said = {each["check"]: each for each in found["warn"]}
    assert "the kernel routes between interfaces (priv0, pub0)" in said["forwarding"]["message"]
    assert "10.99.0.1 is in no network of pub0" in said["VIP"]["message"]
    outside = [each for each in found["warn"] if each["check"] == "SNAT"]
    assert [each["message"].split()[0] for each in outside] == ["10.98.0.1"]
    assert outside[0]["remedy"].startswith("a route to it on the nodes, via 10.8")
    assert "are both in 10.80.0.0/24" in said["ARP"]["message"]
    assert said["firewall"]["remedy"].startswith("nft add rule inet filter input tcp dport")
    closed = [each["remedy"] for each in found["warn"] if each["check"] == "firewall"]
    assert not [remedy for remedy in closed if "5555" in remedy]
    assert any("7070" in remedy for remedy in closed)
    assert said["state files"]["remedy"] == f"look at the disk, then rm {damaged}"
    assert said["peer"]["message"] == "127.0.0.1:1: no answer"  # the firewall drops it


def test_vlans_whose_tags_are_taken_off() -> None:
    ours = Attachment("pub0", "xdp", "native", 3, "gale_xdp_public", Owner.LB)
    there = link("pub0", vlans=("pub0.5",), strips_tags=True, attached=(ours,))
    (found,) = links.tag_findings(there)
    assert found.remedy == "ethtool -K pub0 rxvlan off"
    assert list(links.tag_findings(replace(there, strips_tags=False))) == []
    assert list(links.tag_findings(replace(there, vlans=()))) == []


def test_the_table_of_checks(namespace: Namespace) -> None:
    told = orjson.loads(namespace.gale("doctor", "--list", "--json").stdout)
    names = {kind: [each["check"] for each in checks] for kind, checks in told.items()}
    assert all(len(set(each)) == len(each) for each in names.values())
    assert len({*names["lb"], *names["node"]}) >= 35
    assert namespace.gale("doctor", "--list").stdout.count("\n") > 40


def test_lines_for_people(namespace: Namespace) -> None:
    namespace.run("ip", "link", "set", "priv0", "down")
    result = namespace.gale("doctor")
    assert result.returncode == 1
    assert "fail  priv0: is down -> ip link set priv0 up" in result.stdout.splitlines()
    assert "ok    pub0: up, 10.80.0.10, MTU 1500" in result.stdout.splitlines()


def test_a_bad_file_is_wrong_use(namespace: Namespace) -> None:
    namespace.config.write_text(LB_CONFIG + "node_port = 0\n")
    result = namespace.gale("doctor")
    assert result.returncode == 2
    assert result.stderr.startswith(f"{namespace.config}:5: local.node_port")


# --------------------------------------------------------------------------- a node


NODE_CONFIG = """\
[load_balancer]
addresses = [{{ ip = "127.0.0.1", port = {port} }}]

[[services]]
name = "web"
port = {served}
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("0.0.0.0", 0)) as made:
        yield made


def node_report(path: Path, port: int, served: int) -> tuple[int, Any]:
    from typer.testing import CliRunner

    from services.cli.main import app

    path.write_text(NODE_CONFIG.format(port=port, served=served))
    result = CliRunner().invoke(app, ["-c", str(path), "doctor", "--json"])
    return result.exit_code, {each["check"]: each for each in orjson.loads(result.stdout)["checks"]}


def test_a_node_that_reaches_its_lb_and_serves(tmp_path: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    _, found = node_report(tmp_path / "node.toml", port, port)  # this machine may have its faults
    assert found["load balancer"]["level"] == "ok"
    assert found["load balancer"]["message"] == f"127.0.0.1:{port} answers"
    assert found["web"]["level"] == "ok"


def test_a_node_whose_lb_and_server_are_away(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        code, found = node_report(tmp_path / "node.toml", port, port)
    assert code == 1
    assert found["load balancer"]["message"] == f"127.0.0.1:{port}: nobody listens there"
    assert "local.node_port" in found["load balancer"]["remedy"]
    assert found["web"]["level"] == "warn"


def test_an_agent_that_does_not_answer(tmp_path: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    _, found = node_report(tmp_path / "node.toml", port, port)
    assert found["agent"]["level"] == "warn"
    assert "does not answer on port 5556" in found["agent"]["message"]


def test_a_server_on_loopback_alone(tmp_path: Path, namespace: Namespace) -> None:
    namespace.run("ip", "link", "set", "lo", "down")
    for name, value in (("tcp_rfc1337", 1), ("tcp_timestamps", 0)):
        namespace.run("sysctl", "-qw", f"net.ipv4.{name}={value}")
    namespace.run("sysctl", "-qw", "net.core.somaxconn=128")
    namespace.listen(8081, "127.0.0.1")
    namespace.config.write_text(NODE_CONFIG.format(port=7070, served=8081))
    code, found = examine(namespace)
    assert code == 1
    failed = {each["check"]: each for each in found["fail"]}
    assert "listens on 127.0.0.1 alone (tcp/8081)" in failed["web"]["message"]
    assert failed["lo"]["remedy"] == "ip link set lo up"
    warned = {each["check"]: each["remedy"] for each in found["warn"]}
    assert warned["TIME_WAIT"] == "sysctl -w net.ipv4.tcp_rfc1337=0"
    assert warned["timestamps"] == "sysctl -w net.ipv4.tcp_timestamps=1"
    assert warned["backlog"] == "sysctl -w net.core.somaxconn=4096"


def test_no_carrier_anywhere_on_a_node(namespace: Namespace) -> None:
    namespace.config.write_text(NODE_CONFIG.format(port=7070, served=80))
    for name in ("pub0", "priv0", "pub0-far", "priv0-far"):
        namespace.run("ip", "link", "set", name, "down")
    _, found = examine(namespace)
    failed = {each["check"]: each for each in found["fail"]}
    assert "no interface is up with a carrier" in failed["links"]["message"]


def test_a_node_without_c_is_found_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    """An LB's file is the first that is looked for; where there is none, a node's; or both."""
    from services.cli import doctor
    from services.cli.invocation import Invocation

    monkeypatch.delenv("GALE_CONFIG", raising=False)
    paths = Paths(lb_config=tmp_path / "lb.toml", node_config=tmp_path / "node.toml")
    asked = Invocation(config=None, json=False)
    assert doctor.files_of(asked, paths) == (paths.node_config,)
    paths.lb_config.touch()
    assert doctor.files_of(asked, paths) == (paths.lb_config,)
    paths.node_config.touch()
    assert doctor.files_of(asked, paths) == (paths.lb_config, paths.node_config)


def test_a_server_of_datagrams_is_looked_for_among_those() -> None:
    status = {"services": [{"name": "dns", "protocol": "udp"}], "network": {}}
    held = Listener("0.0.0.0", 5300, "udp")

    def judged(*listening: Listener) -> list[str]:
        config = ServedService(name="dns", port=5300)
        ground = SimpleNamespace(
            status=status, config=SimpleNamespace(services=(config,)), listening=listening
        )
        return levels(node.server_findings(ground))  # type: ignore[arg-type]

    assert judged(held) == ["ok"]
    assert judged() == ["warn"]
    assert judged(replace(held, port=5301)) == ["warn"]


def test_a_name_nobody_knows() -> None:
    finding = reach_finding("nobody.invalid", 7070)
    assert (finding.level.value, finding.remedy) == ("fail", "DNS, mDNS or /etc/hosts")


# --------------------------------------------------------------------------- rules


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., LbConfig]:
    def made(more: str = "") -> LbConfig:
        path = tmp_path / "lb.toml"
        path.write_text(LB_CONFIG + more)
        return load_lb(path)

    return made


def link(name: str, **more: Any) -> Link:
    plain = Link(name, "", 1_500, True, True, ("10.0.0.1",), False, FULL_XDP, False, ())
    return replace(plain, **more)


def machine(*links: Link, **more: Any) -> Machine:
    there = links or (link("pub0"), link("priv0"))
    plain = Machine({each.name: each for each in there}, (), (6, 8), True, {})
    return replace(plain, **more)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, ["ok", "ok"]),
        ({"kernel": (5, 15)}, ["warn", "ok"]),
        ({"sysctls": {JIT: "0\n"}}, ["ok", "fail"]),
        ({"sysctls": {JIT: "1\n"}}, ["ok", "ok"]),
        ({"root": False}, ["ok", "ok", "warn"]),
    ],
)
def test_kernel(more: dict[str, Any], wanted: list[str]) -> None:
    assert levels(kernel_findings(machine(**more))) == wanted


@pytest.mark.parametrize(("limit", "wanted"), [(65_536, 3), (-1, 2)])
def test_an_old_kernel_counts_bpf_memory_as_locked(
    monkeypatch: pytest.MonkeyPatch, limit: int, wanted: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    found = levels(kernel_findings(machine(kernel=(4, 19))))
    assert (found[0], len(found)) == ("fail", wanted)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, ["ok"]),
        ({"up": False, "carrier": False}, ["fail"]),
        ({"carrier": False}, ["fail"]),
        ({"lro": True}, ["ok", "warn"]),
        ({"lro": None}, ["ok"]),
    ],
)
def test_link(more: dict[str, Any], wanted: list[str]) -> None:
    assert levels(link_findings(link("pub0", **more))) == wanted


def test_programs() -> None:
    ours = Attachment("pub0", "xdp", "native", 3, "gale_xdp_public", Owner.LB)
    foreign = replace(ours, name="", owner=Owner.STRANGER)
    filters = [
        Attachment("pub0", "tc", "bpf", 0, "other", Owner.STRANGER, prio, 1) for prio in (1, 2)
    ]
    there = link("pub0", old_ingress=True, attached=(ours, foreign, *filters))
    assert levels(program_findings(there)) == ["fail", "ok", "fail", "fail", "warn"]


def test_costs_of_bpf() -> None:
    def judged(**sysctls: str) -> list[str]:
        names = {"harden": system.JIT_HARDEN, "stats": system.BPF_STATS}
        found = {names[name]: value for name, value in sysctls.items()}
        return levels(system.bpf_cost_findings(machine(sysctls=found)))

    assert judged(harden="1", stats="0") == ["ok", "ok"]
    assert judged(harden="2") == ["warn", "ok"]
    assert judged(stats="1") == ["ok", "warn"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("none [integrity] confidentiality", ["ok"]),
        ("none integrity [confidentiality]", ["fail"]),
        (None, []),
    ],
)
def test_lockdown(tmp_path: Path, text: str | None, wanted: list[str]) -> None:
    file = tmp_path / "lockdown"
    if text is not None:
        file.write_text(text)
    assert levels(system.lockdown_findings(file)) == wanted


@pytest.mark.parametrize(
    ("offsets", "wanted"), [("0 0", "ok"), ("864000 0", "fail"), ("0 5", "fail"), ("-1 0", "fail")]
)
def test_a_time_namespace(tmp_path: Path, offsets: str, wanted: str) -> None:
    file = tmp_path / "timens_offsets"
    file.write_text(f"monotonic {offsets}\nboottime 7 0\n")
    assert levels(system.clock_findings(file)) == [wanted]


@pytest.mark.parametrize(
    ("count", "most", "wanted"),
    [("10", "100", "ok"), ("90", "100", "ok"), ("91", "100", "fail"), (None, None, "ok")],
)
def test_conntrack(count: str | None, most: str | None, wanted: str) -> None:
    told = {system.CONNTRACK_COUNT: count, system.CONNTRACK_MAX: most}
    there = {name: value for name, value in told.items() if value is not None}
    assert levels(system.conntrack_findings(machine(sysctls=there))) == [wanted]


@pytest.mark.parametrize(
    ("uid", "hardest", "wanted"), [(0, 0, "ok"), (1000, 0, "warn"), (1000, 50, "ok")]
)
def test_real_time(uid: int, hardest: int, wanted: str) -> None:
    assert levels(system.sched_findings(uid, hardest)) == [wanted]


def test_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: (1024, 1024)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    (found,) = system.descriptor_findings()
    assert (found.level.value, "supervisord.conf" in found.remedy) == ("warn", True)
    limits[resource.RLIMIT_NOFILE] = (1024, 4096)
    assert levels(system.descriptor_findings()) == ["ok"]


def test_programs_that_are_not_in_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = system.path_findings(("gale-agent",))
    assert (found.level.value, "gale-agent not found" in found.message) == ("warn", True)
    (tmp_path / "gale-agent").touch(0o755)
    assert levels(system.path_findings(("gale-agent",))) == ["ok"]


def test_a_run_directory_too_deep_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90)
    found = list(system.directory_findings(Paths(run_dir=deep, state_dir=tmp_path)))
    assert [each.check for each in found if each.level.value == "fail"] == ["socket paths"]


def test_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.uname()
    assert levels(system.byte_order_findings()) == ["ok"]
    other = SimpleNamespace(**{name: getattr(here, name) for name in ("sysname", "release")})
    other.machine = "aarch64"
    monkeypatch.setattr(os, "uname", lambda: other)
    assert levels(system.byte_order_findings()) == ["fail"]


def test_a_flow_table_larger_than_memory(config: Callable[..., LbConfig]) -> None:
    ground = SimpleNamespace(config=config(), running=frozenset())
    assert levels(lb.memory_findings(ground, 1 << 40)) == ["ok"]  # type: ignore[arg-type]
    assert levels(lb.memory_findings(ground, 1 << 20)) == ["fail"]  # type: ignore[arg-type]


def test_replies_longer_than_the_public_side() -> None:
    public, private = link("pub0", mtu=1500), link("priv0", mtu=9000)
    assert levels(links.jumbo_findings(public, private)) == ["warn"]
    assert levels(links.jumbo_findings(replace(public, mtu=9000), private)) == ["ok"]


def test_a_firewall_that_names_the_port_lets_it_in() -> None:
    chain = {"family": "ip", "table": "t", "name": "in", "hook": "input", "policy": "drop"}

    def judged(*expressions: Any, policy: str = "drop") -> list[str]:
        rules: list[dict[str, Any]] = [{"chain": chain | {"policy": policy}}]
        rules += [{"rule": {"expr": [each]}} for each in expressions]
        return levels(firewall_findings({7070: "nodes"}, rules))

    assert judged() == ["warn"]
    assert judged(policy="accept") == ["ok"]
    for right in (7070, {"set": [22, 7070]}, {"range": [7000, 7100]}):
        assert judged({"match": {"right": right}}) == ["ok"]
    assert judged({"match": {"right": {"range": [1, 1024]}}}) == ["warn"]


@pytest.mark.parametrize(
    ("public", "private", "kind", "wanted"),
    [
        (0b11, 0b100, "", "ok"),
        (0b11, 0b100, "veth", "ok"),
        (0b11, 0b011, "veth", "warn"),
        (0b11, 0b011, "", "warn"),
        (0b01, 0b111, "", "warn"),
        (0b00, 0b000, "veth", "warn"),
        (None, 0b111, "", "warn"),
        (0b11, None, "veth", "warn"),
    ],
)
def test_xdp(
    config: Callable[..., LbConfig], public: Any, private: Any, kind: str, wanted: str
) -> None:
    there = machine(
        link("pub0", xdp_features=public), link("priv0", kind=kind, xdp_features=private)
    )
    assert levels(xdp_findings(config(), there)) == [wanted]


@pytest.mark.parametrize(
    ("public", "private", "mode", "wanted"),
    [
        (1_500, 1_500, "l4", ["ok"]),
        (1_500, 9_000, "l4", ["ok"]),
        (1_500, 1_499, "l4", ["warn"]),
        (1_500, 1_519, "l3", ["warn"]),
        (1_500, 1_520, "l3", ["ok"]),
        (9_000, 9_000, "l2", ["ok", "warn"]),
    ],
)
def test_mtu(
    config: Callable[..., LbConfig], public: int, private: int, mode: str, wanted: list[str]
) -> None:
    there = machine(link("pub0", mtu=public), link("priv0", mtu=private))
    assert levels(mtu_findings(config(f'mode = "{mode}"\n'), there)) == wanted


@pytest.mark.parametrize(
    ("mtu", "mode", "wanted", "remedy"),
    [
        (1_500, "l4", ["ok"], ""),
        (1_500, "l3", ["warn"], "ip link set pub0 mtu 1520"),
        (1_520, "l3", ["ok"], ""),
        (9_000, "l3", ["ok", "warn"], ""),
    ],
)
def test_mtu_of_one_interface(
    tmp_path: Path, mtu: int, mode: str, wanted: list[str], remedy: str
) -> None:
    """What the remedy asks for is enough."""
    path = tmp_path / "lb.toml"
    vip = '[[virtual_ips]]\naddress = "10.80.0.100"\n'
    path.write_text(f'{LB_CONFIG.replace("priv0", "pub0")}mode = "{mode}"\n{vip}')
    said = list(mtu_findings(load_lb(path), machine(link("pub0", mtu=mtu))))
    assert levels(iter(said)) == wanted
    assert said[0].remedy == remedy


SNATLESS = '[[services]]\nname = "web"\nport = 80\nsnat = false\n'


@pytest.mark.parametrize(
    ("of_all", "of_link", "more", "wanted"),
    [
        ("0", "0", SNATLESS, ["ok", "ok"]),
        ("0", "1", "", ["ok", "ok"]),
        ("0", "1", SNATLESS, ["warn", "warn"]),
        ("1", "0", SNATLESS, ["warn", "warn"]),
        ("1", "2", SNATLESS, ["ok", "ok"]),
    ],
)
def test_rp_filter(
    config: Callable[..., LbConfig], of_all: str, of_link: str, more: str, wanted: list[str]
) -> None:
    names = {"all": of_all, "pub0": of_link, "priv0": of_link}
    sysctls = {f"net/ipv4/conf/{name}/rp_filter": value for name, value in names.items()}
    assert levels(return_path_findings(config(more), machine(sysctls=sysctls))) == wanted


@pytest.mark.parametrize(
    ("port_range", "reserved", "wanted"),
    [
        ("32768\t60999\n", "", "ok"),
        ("32767\t60999\n", "\n", "fail"),
        ("1024\t1536\n", "", "fail"),
        ("1024\t1535\n", "", "ok"),
        ("1024\t65535\n", "1536-32767\n", "ok"),
        ("1024\t65535\n", "1536-8000,8002-32767\n", "fail"),
        ("1024\t65535\n", "1536-8000,8001,8002-32767\n", "ok"),
    ],
)
def test_ports(
    config: Callable[..., LbConfig], port_range: str, reserved: str, wanted: str
) -> None:
    there = machine(sysctls={PORT_RANGE: port_range, RESERVED_PORTS: reserved})
    assert levels(port_findings(config(), there)) == [wanted]


def test_listeners_are_named(config: Callable[..., LbConfig]) -> None:
    ports = (22, 5_555, 7_070, 9_999, 40_000)
    listeners = tuple(Listener("0.0.0.0", port) for port in ports)
    _, said = port_findings(config(), machine(listeners=listeners))
    assert said.message.startswith("5555 (api_port), 7070 (node_port), 9999 lie among")


@pytest.mark.parametrize(
    ("public", "private", "service", "wanted"),
    [
        ("10.80.0.0/24", "10.80.0.0/24", "snat = false", ["fail"]),
        ("10.80.0.0/16", "10.80.1.0/24", "snat = false", ["fail"]),
        ("10.80.0.0/24", "10.81.0.0/24", "snat = false", ["ok"]),
        ("10.80.0.0/24", "10.80.0.0/24", "", []),
        ("10.80.0.0/24", "10.80.0.0/24", 'mode = "l2"', []),
    ],
)
def test_client_addresses_are_kept_only_across_networks(
    tmp_path: Path, public: str, private: str, service: str, wanted: list[str]
) -> None:
    path = tmp_path / "lb.toml"
    path.write_text(f'{LB_CONFIG}[[services]]\nname = "web"\nport = 80\n{service}\n')
    there = machine(link("pub0", networks=(public,)), link("priv0", networks=(private,)))
    assert levels(client_address_findings(load_lb(path), there)) == wanted


def test_a_shared_network_is_found_on_the_machine(namespace: Namespace) -> None:
    namespace.config.write_text(f'{LB_CONFIG}[[services]]\nname = "web"\nport = 80\nsnat = false\n')
    _, found = examine(namespace)
    assert "snat" not in {each["check"] for each in found["fail"]}
    namespace.run("ip", "address", "add", "10.80.0.77/24", "dev", "priv0")
    code, found = examine(namespace)
    (said,) = [each for each in found["fail"] if each["check"] == "snat"]
    assert code == 1
    assert said["message"].startswith("clients and nodes share 10.80.0.0/24")


def test_the_ports_are_those_of_the_node_table() -> None:
    ports = lb.SNAT_PORTS
    assert (ports[0], len(ports)) == (table.FIRST_PORT, table.OWN_ADDRESS_PORTS)


def test_parse_ports() -> None:
    assert parse_ports("\n") == set()
    assert parse_ports("8080,9000-9002\n") == {8080, 9000, 9001, 9002}


def test_a_directory_elsewhere_is_no_bpffs(tmp_path: Path) -> None:
    (finding,) = bpf_directory_findings(tmp_path / "v1")
    assert finding.level.value == "fail"
    assert "is not in a BPF file system" in finding.message


def test_mount_of() -> None:
    assert mount_of(Path("/proc/self/net")) == (Path("/proc"), "proc")
    assert mount_of(Path("/no/such/place"))[0] == Path("/")


# --------------------------------------------------------------------------- direct return


VIP = "10.80.0.100"
SILENT = {ARP_IGNORE: "1", ARP_ANNOUNCE: "2"}


def on_lo(*addresses: str) -> Link:
    return link("lo", addresses=("127.0.0.1", *addresses))


def unwrapping(**more: Any) -> Link:
    attached = Attachment("priv0", "tc", "bpf", 0, "gale_unwrap", Owner.NODE, 1, 1)
    return link("priv0", attached=(attached,), **more)


def network(*needed: str, **more: Any) -> dict[str, Any]:
    plain = {"managed": True, "needed": needed, "tunnelled": [], "refused": [], "waiting_for": []}
    return plain | more


def test_direct_return_that_nobody_asks_for() -> None:
    assert levels(direct_return_findings(network(), machine())) == ["ok"]


def test_a_node_ready_for_direct_return() -> None:
    ready = machine(on_lo(VIP), unwrapping(), sysctls=SILENT)
    assert levels(direct_return_findings(network(VIP, tunnelled=[VIP]), ready)) == ["ok"] * 4


@pytest.mark.parametrize(
    ("there", "sysctls", "more", "message"),
    [
        ((on_lo(),), SILENT, {}, f"{VIP} is not on lo"),
        ((on_lo(), link("eth0", addresses=(VIP,))), SILENT, {}, f"{VIP} is not on lo but on eth0"),
        ((on_lo(VIP),), {ARP_ANNOUNCE: "2"}, {}, "arp_ignore is 0"),
        ((on_lo(VIP),), SILENT | {ARP_ANNOUNCE: "1"}, {}, "arp_announce is 1"),
        ((on_lo(VIP), link("priv0")), SILENT, {"tunnelled": [VIP]}, "attached to no interface"),
        ((on_lo(VIP),), SILENT, {"refused": [VIP]}, "reaches its load balancer"),
        ((on_lo(),), SILENT, {"refused": [VIP]}, "reaches its load balancer"),
    ],
)
def test_what_stops_direct_return(
    there: tuple[Link, ...], sysctls: dict[str, str], more: dict[str, Any], message: str
) -> None:
    found = list(direct_return_findings(network(VIP, **more), machine(*there, sysctls=sysctls)))
    (failed,) = [each for each in found if each.level.value == "fail"]
    assert message in failed.message
    assert failed.remedy


def test_an_operator_may_unwrap_by_a_device_of_his_own() -> None:
    said = network(VIP, tunnelled=[VIP], managed=False, waiting_for=["something"])
    there = machine(on_lo(VIP), sysctls=SILENT)
    assert levels(direct_return_findings(said, there)) == ["ok", "ok", "ok", "warn", "warn"]
