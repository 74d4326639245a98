"""What a good file becomes: the original description's two, the shipped two, and the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from conf import ConfigError, Endpoint, LbConfig, NodeConfig, Paths, load_lb, load_node
from conf.loading import kind_of
from conf.source import Problem, Source, key_text
from conf.values import duration_text

HERE = Path(__file__).parent
SHIPPED = HERE.parent.parent / "conf"

LOCAL = """
[local]
net_interface_private = "eth1"
net_interface_public = "eth0"
"""


def _lb(tmp_path: Path, text: str) -> LbConfig:
    file = tmp_path / "lb.toml"
    file.write_text(LOCAL + text)
    return load_lb(file)


def _node(tmp_path: Path, text: str) -> NodeConfig:
    file = tmp_path / "node.toml"
    file.write_text('[load_balancer]\naddresses = [{ ip = "10.0.0.1", port = 1 }]\n' + text)
    return load_node(file)


def test_original_lb_file_loads_as_it_stands() -> None:
    config = load_lb(HERE / "original_lb.toml")
    assert config.local.node_port == 7070
    assert config.local.clients_port == 8080
    assert config.local.net_interface_private == "wlo1"
    assert config.local.net_interface_public == "wlo1"
    assert config.node_health.checks_before_routing == 3
    assert config.node_health.checks_timeout_ms == 5_000
    assert config.node_health.black_list_after_fails == 5
    assert config.node_health.black_list_expiry_ms == 300_000
    assert config.quorum.enforce_single_configuration is False
    assert [(peer.host, peer.port) for peer in config.quorum.addresses] == [
        ("192.168.1.2", 8081),
        ("192.168.1.3", 8081),
        ("192.168.1.4", 8081),
    ]


def test_original_node_file_loads_as_it_stands() -> None:
    config = load_node(HERE / "original_node.toml")
    assert [str(lb) for lb in config.load_balancer.addresses] == [
        "192.168.1.2:8082",
        "192.168.1.3:8082",
        "192.168.1.4:8082",
    ]


def test_shipped_pair_matches() -> None:
    lb, node = load_lb(SHIPPED / "lb.toml"), load_node(SHIPPED / "node.toml")
    assert {each.port for each in node.load_balancer.addresses} == {lb.local.node_port}


@pytest.mark.parametrize("name", ["lb.toml", "node.toml"])
def test_commented_out_keys_of_the_shipped_files_are_right(name: str, tmp_path: Path) -> None:
    """An operator takes the `# ` away; what then stands there must load, default or example."""
    lines = (SHIPPED / name).read_text().splitlines()
    file = tmp_path / name
    file.write_text(
        "\n".join(
            line.replace("# ", "", 1) if line.lstrip().startswith("# ") and _is_toml(line) else line
            for line in lines
        )
    )
    loaded = load_lb(file) if name == "lb.toml" else load_node(file)
    assert loaded.services[0].name in ("web", "default")
    uncommented = sum(
        old != new for old, new in zip(lines, file.read_text().split("\n"), strict=True)
    )
    assert uncommented >= 8


def _is_toml(line: str) -> bool:
    text = line.strip().removeprefix("# ")
    # mode l3's key stands beside mode l4's in the example: only one of the two can be taken.
    if text.startswith("encap"):
        return False
    return text.startswith(("[", "{ ")) or (" = " in text and text.split(" = ")[0].isidentifier())


def test_defaults(tmp_path: Path) -> None:
    config = _lb(tmp_path, "")
    assert config.local.node_port == 7070
    assert config.local.clients_port == 8080
    assert config.local.api_port == 5555
    assert config.local.mode == "l4"
    assert config.local.name
    health = config.node_health
    assert (health.checks_before_routing, health.checks_timeout_ms) == (3, 5_000)
    assert (health.black_list_after_fails, health.black_list_expiry_ms) == (-1, 60_000)
    quorum = config.quorum
    assert (quorum.heartbeat_ms, quorum.lease_ms, quorum.promise_ms) == (25, 112, 125)
    assert quorum.election_jitter_ms == 60
    assert quorum.addresses == ()
    assert not quorum.witness
    assert not quorum.enforce_single_configuration
    assert config.virtual_ips == ()
    assert config.security.keys is None
    assert config.security.api_token_file is None
    assert config.bus.events is None
    dataplane = config.dataplane
    assert (dataplane.reply_hook, dataplane.xdp) == ("tc", "native")
    assert (dataplane.conntrack_entries, dataplane.half_open_entries) == (524_288, 131_072)
    assert dataplane.new_flows_per_second_per_source == 0
    assert (dataplane.tcp_established_ms, dataplane.tcp_closing_ms) == (7_440_000, 240_000)
    assert (dataplane.tcp_time_wait_ms, dataplane.udp_ms) == (60_000, 120_000)
    assert dataplane.udp_one_sided_ms == 30_000


def test_default_service_stands_for_none(tmp_path: Path) -> None:
    (service,) = _lb(tmp_path, 'clients_port = 81\nmode = "l2"\n').services
    assert (service.name, service.protocol) == ("default", "tcp")
    assert (service.port, service.node_port) == (81, 81)
    assert service.mode == "l2"
    assert service.address is None
    assert service.affinity == "flow"
    assert service.snat
    assert service.snat_addresses == ()
    assert service.on_node_down is None
    assert service.no_flow == "reset"


def test_service_is_filled_in(tmp_path: Path) -> None:
    text = """mode = "l3"
    [[virtual_ips]]
    address = "10.0.0.8"
    [[virtual_ips]]
    address = "10.0.0.9"
    snat_address = "10.1.0.9"
    [[services]]
    name = "a"
    port = 80
    encap = "gue"
    [[services]]
    name = "b"
    port = 80
    address = "10.0.0.9"
    mode = "l4"
    node_port = 8080
    [[services]]
    name = "dns"
    port = 80
    protocol = "udp"
    affinity = "client"
    """
    config = _lb(tmp_path, text)
    a, b, dns = config.services
    assert (a.address, a.mode, a.node_port, a.encap) == ("10.0.0.8", "l3", 80, "gue")
    assert (b.address, b.mode, b.node_port) == ("10.0.0.9", "l4", 8080)
    assert (dns.protocol, dns.affinity) == ("udp", "client")
    assert [vip.snat_addresses for vip in config.virtual_ips] == [(), ("10.1.0.9",)]


def test_several_snat_addresses(tmp_path: Path) -> None:
    text = """
    [[virtual_ips]]
    address = "10.0.0.9"
    snat_addresses = ["10.1.0.9", "10.1.0.8"]
    [[services]]
    name = "a"
    port = 80
    snat_addresses = ["10.1.0.7", "10.1.0.9"]
    on_node_down = "keep"
    no_flow = "drop"
    [[services]]
    name = "b"
    port = 81
    snat_addresses = ["10.1.0.7"]
    on_node_down = "reset"
    """
    config = _lb(tmp_path, text)
    assert config.virtual_ips[0].snat_addresses == ("10.1.0.9", "10.1.0.8")
    a, b = config.services
    assert (a.snat_addresses, a.on_node_down, a.no_flow) == (
        ("10.1.0.7", "10.1.0.9"), "keep", "drop",
    )  # fmt: skip
    assert (b.snat_addresses, b.on_node_down, b.no_flow) == (("10.1.0.7",), "reset", "reset")


def test_idle_times_of_flows(tmp_path: Path) -> None:
    text = """
    [dataplane]
    tcp_established = "1s"
    tcp_closing = "2s"
    tcp_time_wait = "168h"
    udp = "3s"
    udp_one_sided = "1500ms"
    """
    dataplane = _lb(tmp_path, text).dataplane
    assert (dataplane.tcp_established_ms, dataplane.tcp_closing_ms) == (1_000, 2_000)
    assert (dataplane.tcp_time_wait_ms, dataplane.udp_ms) == (604_800_000, 3_000)
    assert dataplane.udp_one_sided_ms == 1_500


def test_replication_port_is_the_one_after(tmp_path: Path) -> None:
    text = '[load_balancer_quorum]\naddresses = [{ hostname = "lb-0.local", port = 8081 }]\n'
    quorum = _lb(tmp_path, text).quorum
    assert quorum.replication_port_of(quorum.addresses[0]) == 8082
    quorum = _lb(tmp_path, text + "replication_port = 9000\n").quorum
    assert quorum.replication_port_of(quorum.addresses[0]) == 9000


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [("250ms", 250), ("5s", 5_000), ("5m", 300_000), ("1h", 3_600_000), ("090s", 90_000)],
)
def test_durations(tmp_path: Path, text: str, duration_ms: int) -> None:
    config = _lb(tmp_path, f'[node_health]\nblack_list_expiry = "{text}"\n')
    assert config.node_health.black_list_expiry_ms == duration_ms


def test_the_longest_duration_is_one(tmp_path: Path) -> None:
    config = _lb(tmp_path, '[node_health]\nchecks_timeout = "24h"\n')
    assert config.node_health.checks_timeout_ms == 86_400_000


def test_durations_are_written_shortest() -> None:
    durations = (1, 250, 1_000, 1_500, 60_000, 90_000, 3_600_000, 0)
    expected = ["1ms", "250ms", "1s", "1500ms", "1m", "90s", "1h", "0s"]
    assert [duration_text(each) for each in durations] == expected


def test_longest_lease_that_is_covered(tmp_path: Path) -> None:
    text = '[load_balancer_quorum]\nlease = "240ms"\npromise = "250ms"\n'
    assert _lb(tmp_path, text).quorum.lease_ms == 240
    text = '[load_balancer_quorum]\npromise = "117ms"\n'
    assert _lb(tmp_path, text).quorum.promise_ms == 117


def test_a_script_instead_of_arp(tmp_path: Path) -> None:
    assert _lb(tmp_path, "").quorum.announce == "arp"
    text = """
    [load_balancer_quorum]
    announce = "exec"
    announce_command = "/usr/local/sbin/move"
    """
    quorum = _lb(tmp_path, text).quorum
    assert (quorum.announce, quorum.announce_command) == ("exec", Path("/usr/local/sbin/move"))


def test_witness_among_others(tmp_path: Path) -> None:
    text = """
    [load_balancer_quorum]
    witness = true
    addresses = [{ ip = "10.0.0.1", port = 1 }, { ip = "10.0.0.2", port = 1 }]
    """
    assert _lb(tmp_path, text).quorum.witness


def test_equal_ports_of_different_protocols_or_vips_are_no_duplicates(tmp_path: Path) -> None:
    text = """
    [[services]]
    name = "a"
    port = 53
    [[services]]
    name = "b"
    port = 53
    protocol = "udp"
    """
    assert len(_lb(tmp_path, text).services) == 2


def test_a_udp_service_may_have_the_number_of_a_tcp_port_of_the_lb(tmp_path: Path) -> None:
    """Also where both sides are one interface, so that a service of TCP may not."""
    text = LOCAL.replace("eth1", "eth0")
    text += '[[services]]\nname = "dns"\nport = 7070\nprotocol = "udp"\n'
    path = tmp_path / "lb.toml"
    path.write_text(text)
    assert load_lb(path).services[0].port == 7070


@pytest.mark.parametrize("endpoint", ["tcp://*:1", "tcp://10.0.0.1:5556", "tcp://eth0:65535"])
def test_events_endpoints(tmp_path: Path, endpoint: str) -> None:
    assert _lb(tmp_path, f'[bus]\nevents = "{endpoint}"\n').bus.events == endpoint


def test_node_defaults(tmp_path: Path) -> None:
    config = _node(tmp_path, "")
    assert config.node.name
    assert config.node.weight == 1
    assert config.node.manage_network
    assert config.node.unwrap == "tc"
    assert config.services == ()
    assert config.local.api_port == 5556


def test_node_services(tmp_path: Path) -> None:
    text = """
    [node]
    name = "node-0"
    weight = 3
    manage_network = false
    unwrap = "xdp"
    [[services]]
    name = "default"
    port = 8080
    [[services]]
    name = "web"
    port = 80
    check = { type = "http", path = "/healthz?x=1", interval = "1s", timeout = "250ms" }
    [[services]]
    name = "dns"
    port = 53
    check = { type = "udp" }
    """
    config = _node(tmp_path, text)
    assert (config.node.name, config.node.weight) == ("node-0", 3)
    assert not config.node.manage_network
    assert config.node.unwrap == "xdp"
    plain, web, dns = (service.check for service in config.services)
    assert (plain.type, plain.path, plain.interval_ms, plain.timeout_ms) == ("tcp", "/", 500, 500)
    assert (web.type, web.path, web.interval_ms, web.timeout_ms) == (
        "http", "/healthz?x=1", 1_000, 250,
    )  # fmt: skip
    assert dns.type == "udp"


def test_configuration_is_frozen() -> None:
    config = load_lb(HERE / "original_lb.toml")
    with pytest.raises(ValidationError, match="frozen"):
        config.local.node_port = 1
    assert config == load_lb(HERE / "original_lb.toml")


def test_endpoint_says_what_it_was_given() -> None:
    assert str(Endpoint(hostname="lb-0.local", port=1)) == "lb-0.local:1"
    assert Endpoint(ip="10.0.0.1", port=1).host == "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", LbConfig),
        ("[local]\napi_port = 1", LbConfig),
        ("[node_health]", LbConfig),
        ("[load_balancer]", NodeConfig),
        ("[node]\n[local]", NodeConfig),
        ("[load_balancr]\n[[services]]", NodeConfig),
        ("[load_balancer_qorum]", LbConfig),
        ("node = 1", LbConfig),
    ],
)
def test_kind_of_a_file(tmp_path: Path, text: str, kind: type) -> None:
    file = tmp_path / "file.toml"
    file.write_text(text)
    assert kind_of(Source.read(file)) is kind


def test_problem_is_one_line() -> None:
    problem = Problem("lb.toml", 3, "local.node_port", "0 is no port")
    assert str(problem) == "lb.toml:3: local.node_port: 0 is no port"
    assert key_text(("a", 0, "b c", 'd"', 1, 2)) == 'a[0]."b c"."d\\""[1][2]'


def test_paths_default_to_production() -> None:
    paths = Paths.from_environment({})
    assert paths.lb_config == Path("/etc/gale/lb.toml")
    assert paths.node_config == Path("/etc/gale/node.toml")
    assert paths.run_dir == Path("/run/gale")
    assert paths.state_dir == Path("/var/lib/gale")
    assert paths.bpf_dir == Path("/sys/fs/bpf/gale/v1")


def test_paths_move_as_a_whole() -> None:
    paths = Paths.from_environment(
        {
            "GALE_CONFIG": "/x/gale.toml",
            "GALE_RUN_DIR": "/x/run",
            "GALE_STATE_DIR": "/x/state",
            "GALE_BPF_DIR": "/x/bpf",
        }
    )
    assert paths.lb_config == paths.node_config == Path("/x/gale.toml")
    assert (paths.run_dir, paths.state_dir) == (Path("/x/run"), Path("/x/state"))
    assert paths.bpf_dir == Path("/x/bpf")
    assert Paths.from_environment({"GALE_RUN_DIR": ""}) == Paths()


def test_the_other_file_of_a_machine_that_is_both_stands_beside_its_own(tmp_path: Path) -> None:
    lb, node = tmp_path / "lb.toml", tmp_path / "node.toml"
    usual = Paths(lb_config=lb, node_config=node)
    as_lb, as_node = (Paths.from_environment({"GALE_CONFIG": str(each)}) for each in (lb, node))
    other = Paths.from_environment({"GALE_CONFIG": str(tmp_path / "gale.toml")})
    assert {each.node_beside for each in (usual, as_lb, other)} == {None}
    for each in (lb, node, tmp_path / "gale.toml"):
        each.touch()
    assert (usual.node_beside, usual.lb_beside) == (node, lb)
    assert (as_lb.node_beside, as_lb.lb_beside) == (node, None)
    assert (as_node.node_beside, as_node.lb_beside) == (None, lb)
    assert (other.node_beside, other.lb_beside) == (None, None)


def test_a_host_name_that_is_no_name_is_refused_unless_another_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "my node")
    with pytest.raises(ConfigError, match=r'node.name: the host.s name "my node" is no name'):
        _node(tmp_path, "")
    assert _node(tmp_path, '[node]\nname = "n1"\n').node.name == "n1"
