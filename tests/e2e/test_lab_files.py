"""The lab's configuration: what is written is what Gale reads, with the extra file laid over it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli

from conf import load_lb, load_node
from e2e.lab import ExtraFileError, Lab, LabError, Plan, plan, servers
from e2e.lab import lab as lab_module
from e2e.lab.files import (
    groups,
    lb_config,
    node_config,
    read_extra,
    services,
    toml_text,
    uses_outer_headers,
    web_port,
)

LAB = Plan(lbs=2, nodes=3)


def test_written_toml_reads_back_as_it_was() -> None:
    for document in (lb_config(LAB, "lb-1", {}), node_config(LAB, "node-2", plan.SERVICES)):
        assert tomli.loads(toml_text(document)) == document


def test_gale_takes_the_files(tmp_path: Path) -> None:
    (tmp_path / "lb.toml").write_text(toml_text(lb_config(LAB, "lb-1", {})))
    (tmp_path / "node.toml").write_text(toml_text(node_config(LAB, "node-2", plan.SERVICES)))
    lb = load_lb(tmp_path / "lb.toml")
    assert lb.local.name == "lb-1"
    assert [service.port for service in lb.services] == [8080, 9000, 5300]
    assert lb.node_health.checks_timeout_ms == 1000
    node = load_node(tmp_path / "node.toml")
    assert [address.host for address in node.load_balancer.addresses] == [
        "10.81.0.10",
        "10.81.0.11",
    ]
    assert [service.check.type for service in node.services] == ["http", "tcp", "udp"]


def test_the_extra_file_is_laid_over_key_by_key() -> None:
    extra = {"node_health": {"checks_timeout": "3s"}, "bus": {"events": "tcp://10.81.0.10:5600"}}
    merged = lb_config(LAB, "lb-0", extra)
    assert merged["node_health"] == {"checks_before_routing": 3, "checks_timeout": "3s"}
    assert merged["bus"] == extra["bus"]
    assert merged["local"]["name"] == "lb-0"


MIXED = {
    "services": [
        {"name": "web", "port": 80, "node_port": 8080},
        {"name": "dns", "port": 53, "protocol": "udp", "mode": "l3"},
        {"name": "bulk", "port": 5201, "affinity": "client"},
        {"name": "talk", "port": 7777},
    ]
}


def test_services_of_the_extra_file_are_served_and_checked() -> None:
    served = services(LAB, MIXED)
    assert [(service.name, service.port) for service in served] == [
        ("web", 8080), ("dns", 53), ("bulk", 5201), ("talk", 7777),
    ]  # fmt: skip
    checks = [servers.check(service)["type"] for service in served]
    assert checks == ["http", "udp", "udp", "tcp"]
    text = servers.supervisor_conf("node-0", served)
    assert "programs=nginx,echo,udp,iperf3\n" in text
    assert 'echo.py" node-0 7777 9000\n' in text
    assert 'udp.py" node-0 53 5201 5300\n' in text
    assert web_port(LAB, MIXED) == 80


SHARED = Plan(lbs=3, shared=True)


def test_machines_that_are_both_stand_in_the_lab_once() -> None:
    assert SHARED.node_names == SHARED.lb_names == SHARED.supervised
    assert SHARED.machines == ("client", "router", "lb-0", "lb-1", "lb-2")
    assert LAB.supervised == ("lb-0", "lb-1", "node-0", "node-1", "node-2")


def test_a_machine_that_is_both_runs_both_groups_each_with_its_own_file() -> None:
    both = groups(SHARED, "lb-1")
    assert both["gale.conf"] == "", "as it was shipped"
    last = both["gale-node.conf"].splitlines()[-1]
    assert last == 'environment=GALE_CONFIG="/run/gale/lab/lb-1/node.toml"'
    assert plan.environment("lb-1")["GALE_CONFIG"] == "/run/gale/lab/lb-1/lb.toml"
    assert groups(LAB, "lb-1") == {"gale.conf": ""}
    assert groups(LAB, "node-1") == {"gale-node.conf": ""}


def test_a_node_that_is_an_lb_too_knows_all_lbs_by_the_private_network() -> None:
    config = node_config(SHARED, "lb-2", plan.SERVICES)
    assert config["node"] == {"name": "lb-2"}
    assert [each["ip"] for each in config["load_balancer"]["addresses"]] == [
        "10.81.0.10", "10.81.0.11", "10.81.0.12",
    ]  # fmt: skip


def test_without_iperf3_in_the_file_none_is_run() -> None:
    assert "iperf3" not in servers.supervisor_conf("node-0", plan.SERVICES)


def test_outer_headers_need_room_if_any_service_has_them() -> None:
    assert uses_outer_headers(LAB, MIXED)
    assert uses_outer_headers(Plan(mode="l3"), {})
    assert not uses_outer_headers(LAB, {})


def test_names_and_addresses_others_rely_on() -> None:
    assert [link.address for link in LAB.links("lb-1")] == ["10.80.0.11", "10.81.0.11"]
    assert [link.address for link in LAB.links("node-2")] == ["10.81.0.22"]
    assert [link.address for link in LAB.links("client")] == ["10.80.0.2"]
    assert [link.address for link in LAB.links("router")] == ["10.80.0.254", "10.81.0.254"]
    assert LAB.api_port("lb-1") == 5561


def test_on_one_interface_all_are_on_one_network() -> None:
    lab = Plan(lbs=2, nodes=2, one_interface=True)
    assert [link.address for link in lab.links("lb-1")] == ["10.80.0.11"]
    assert [link.address for link in lab.links("node-1")] == ["10.80.0.21"]
    lb, node = lb_config(lab, "lb-1", {}), node_config(lab, "node-1", plan.SERVICES)
    sides = {lb["local"][f"net_interface_{side}"] for side in ("public", "private")}
    assert sides == {"pub0"}
    (unit,) = lb["virtual_ips"]
    assert unit["snat_addresses"] == [f"10.80.0.{host}" for host in range(101, 105)]
    heard = [*lb["load_balancer_quorum"]["addresses"], *node["load_balancer"]["addresses"]]
    assert {each["ip"] for each in heard} == {"10.80.0.10", "10.80.0.11"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "TOML"),
        ("[node_health]\nchecks_timeout = 5\n", "node_health.checks_timeout"),
        ("[local]\nnode_porrt = 7\n", "local.node_porrt"),
        ("services = 7\n", "EXTRA"),
        ("services = [7]\n", "EXTRA"),
        ("local = 7\n", "EXTRA"),
        ("[node_health]\nsince = 2026-01-01\n", "EXTRA"),
        ("[[services]]\nname = 'a'\nport = 1\n[[services]]\nname = 'a'\nport = 2\n", "services[1]"),
    ],
)
def test_an_extra_file_that_no_lb_would_take_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    def down(_say: object) -> None:
        raise AssertionError("the running lab is taken down")

    extra = tmp_path / "EXTRA.toml"
    extra.write_text(text)
    monkeypatch.setattr(lab_module, "down", down)
    monkeypatch.setattr(lab_module, "require_root", lambda: None)
    with pytest.raises(ExtraFileError, match=re.escape(str(extra))) as caught:
        Lab(LAB).up(lambda _: None, extra)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("who", "process", "says"),
    [
        ("nosuch", "health", "no nosuch in this lab; there are client, router, lb-0, node-0"),
        ("nosuch", "supervisord", "no nosuch in this lab; there are client, router, lb-0, node-0"),
        ("client", "health", "client runs no processes of its own; lb-0, node-0 do"),
    ],
)
def test_who_is_not_there_is_said_with_who_is(who: str, process: str, says: str) -> None:
    lab = Lab(Plan(nodes=1))
    with pytest.raises(LabError, match=re.escape(says)):
        lab.pid(who, process)
    with pytest.raises(LabError, match="lb-0 has no server; the nodes are node-0"):
        lab.set_server("lb-0", running=True)


def test_an_extra_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExtraFileError, match="No such file"):
        read_extra(LAB, tmp_path / "absent.toml")


def test_an_extra_file_that_is_well_is_read(tmp_path: Path) -> None:
    extra = tmp_path / "extra.toml"
    extra.write_text('[node_health]\nchecks_timeout = "3s"\n')
    assert read_extra(LAB, extra) == {"node_health": {"checks_timeout": "3s"}}
    assert read_extra(LAB, None) == {}


def test_with_keys_every_machine_is_told_whom_to_trust(tmp_path: Path) -> None:
    lab = Plan(lbs=2, nodes=1, keys=True)
    lb, node = tmp_path / "lb.toml", tmp_path / "node.toml"
    lb.write_text(toml_text(lb_config(lab, "lb-1", {})))
    node.write_text(toml_text(node_config(lab, "node-0", services(lab, {}))))
    read_lb = load_lb(lb)
    assert read_lb.security.keys == plan.keys("lb-1")
    assert [each.key_name for each in read_lb.quorum.addresses] == ["lb-0", "lb-1"]
    read = load_node(node)
    assert read.security.keys == plan.keys("node-0")
    assert [each.key_name for each in read.load_balancer.addresses] == ["lb-0", "lb-1"]
