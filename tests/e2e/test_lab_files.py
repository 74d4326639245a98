"""The lab's configuration: what is written is what Gale reads, with the extra file laid over it."""

from __future__ import annotations

from pathlib import Path

import tomli

from conf import load_lb, load_node
from e2e.lab import Plan
from e2e.lab.files import lb_config, node_config, overlaid, toml_text

LAB = Plan(lbs=2, nodes=3)


def test_written_toml_reads_back_as_it_was() -> None:
    for document in (lb_config(LAB, "lb-1"), node_config(LAB, "node-2")):
        assert tomli.loads(toml_text(document)) == document


def test_gale_takes_the_files(tmp_path: Path) -> None:
    (tmp_path / "lb.toml").write_text(toml_text(lb_config(LAB, "lb-1")))
    (tmp_path / "node.toml").write_text(toml_text(node_config(LAB, "node-2")))
    lb = load_lb(tmp_path / "lb.toml")
    assert lb.local.name == "lb-1"
    assert [service.port for service in lb.services] == [8080, 9000]
    assert lb.node_health.checks_timeout_ms == 1000
    node = load_node(tmp_path / "node.toml")
    assert [address.host for address in node.load_balancer.addresses] == [
        "10.81.0.10",
        "10.81.0.11",
    ]


def test_the_extra_file_is_laid_over_key_by_key() -> None:
    extra = {"node_health": {"checks_timeout": "3s"}, "bus": {"events": "tcp://10.81.0.10:5600"}}
    merged = overlaid(lb_config(LAB, "lb-0"), extra)
    assert merged["node_health"] == {"checks_before_routing": 3, "checks_timeout": "3s"}
    assert merged["bus"] == extra["bus"]
    assert merged["local"]["name"] == "lb-0"


def test_names_and_addresses_others_rely_on() -> None:
    assert [link.address for link in LAB.links("lb-1")] == ["10.80.0.11", "10.81.0.11"]
    assert [link.address for link in LAB.links("node-2")] == ["10.81.0.22"]
    assert [link.address for link in LAB.links("client")] == ["10.80.0.2"]
    assert [link.address for link in LAB.links("router")] == ["10.80.0.254", "10.81.0.254"]
    assert LAB.api_port("lb-1") == 5561
