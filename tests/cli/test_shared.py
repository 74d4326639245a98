"""`gale check --host` on a machine that is a load balancer and a node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.machine import Listener
from services.cli.main import app
from services.machine import Address

LB = """\
[local]
net_interface_public = "{public}"
net_interface_private = "{private}"
[load_balancer_quorum]
addresses = [{{ ip = "10.81.0.10", port = 8090 }}, {{ ip = "10.81.0.11", port = 8090 }}]
[[virtual_ips]]
address = "10.80.0.100"
{snat}
[[services]]
name = "web"
port = 80
{service}
"""
NODE = """\
[load_balancer]
addresses = [{{ ip = "{own}", port = 7070 }}, {{ ip = "10.81.0.11", port = 7070 }}]
[node]
name = "lb-0"
{node}
{services}
"""
SNAT = 'snat_address = "10.81.0.100"'
ADDRESSES = [
    Address("lo", "127.0.0.1", 254, 8),
    Address("lo", "10.80.0.100", 254, 32),
    Address("pub0", "10.80.0.10", 0, 24),
    Address("priv0", "10.81.0.10", 0, 24),
]


@dataclass
class Machine:
    """Its two files, and what `gale check --host` says of them."""

    directory: Path

    def write_lb(
        self,
        service: str = "",
        snat: str = SNAT,
        public: str = "pub0",
        private: str = "priv0",
    ) -> None:
        text = LB.format(service=service, snat=snat, public=public, private=private)
        (self.directory / "lb.toml").write_text(text)

    def write_node(self, own: str = "10.81.0.10", node: str = "", services: str = "") -> None:
        text = NODE.format(own=own, node=node, services=services)
        (self.directory / "node.toml").write_text(text)

    def problems(self, file: str = "lb.toml") -> list[tuple[str, str]]:
        words = ["check", str(self.directory / file), "--host", "--json"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code in (0, 1), result.stdout
        found = [(each["key"], each["message"]) for each in json.loads(result.stdout)["problems"]]
        assert result.exit_code == bool(found)
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """An LB, until its other file is written too; its interfaces are two."""
    interfaces: dict[str, set[str]] = {}
    for each in ADDRESSES:
        interfaces.setdefault(each.interface, set()).add(each.address)
    own = {"pub0": "10.80.0.10", "priv0": "10.81.0.10"}
    monkeypatch.setattr("services.cli.host.own_addresses", lambda: interfaces)
    monkeypatch.setattr("services.cli.host.all_addresses", lambda: ADDRESSES)
    monkeypatch.setattr("services.cli.host.own_address", own.get)
    monkeypatch.setattr("services.cli.host.listeners", lambda: (Listener("0.0.0.0", 80),))
    monkeypatch.setenv("GALE_CONFIG", str(tmp_path / "lb.toml"))
    made = Machine(tmp_path)
    made.write_lb()
    made.write_node()
    return made


@pytest.mark.parametrize("service", ['mode = "l4"', 'mode = "l2"', 'mode = "l3"'])
def test_every_mode_is_well_where_it_can_be(machine: Machine, service: str) -> None:
    machine.write_lb(service)
    assert machine.problems() == []
    assert machine.problems("node.toml") == []


BOTH = "this machine is a node, too: "
ONE = {"public": "priv0", "private": "priv0"}


@pytest.mark.parametrize(
    ("lb", "key", "message"),
    [
        ({"service": "snat = false"}, "services[0].snat", "web has snat = false"),
        ({"snat": ""}, "services[0].mode", "web has no SNAT address but this machine's own"),
        (
            {"snat": 'snat_address = "10.80.0.101"'},
            "services[0].mode",
            "10.80.0.101, which nodes see, is in no network of priv0, expected one of its network",
        ),
        ({"service": 'mode = "l2"', **ONE}, "services[0].mode", "web of mode l2 on one interface"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    machine: Machine, lb: dict[str, str], key: str, message: str
) -> None:
    machine.write_lb(**lb)
    ((found_key, found),) = machine.problems()
    assert found_key == key
    assert found.startswith(BOTH + message)
    (machine.directory / "node.toml").unlink()
    assert not any(BOTH in found for _, found in machine.problems())


def test_a_service_that_this_node_does_not_serve_is_no_concern(machine: Machine) -> None:
    machine.write_lb("snat = false")
    machine.write_node(services='[[services]]\nname = "other"\nport = 90')
    assert machine.problems() == []


def test_the_files_of_another_machine_are_looked_at_by_themselves(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write_lb("snat = false")
    monkeypatch.setenv("GALE_CONFIG", "/etc/gale/lb.toml")
    assert not any(BOTH in found for _, found in machine.problems())


def test_a_vip_on_lo_is_the_node_s_and_without_one_a_mistake(machine: Machine) -> None:
    assert machine.problems() == []
    (machine.directory / "node.toml").unlink()
    found = dict(machine.problems())
    assert "is an address of lo" in found["virtual_ips[0].address"]
    assert "this machine listens there itself" in found["services[0].port"]


@pytest.mark.parametrize(
    ("node", "key", "message"),
    [
        ({"services": "[local]\napi_port = 7070"}, "local.api_port", "7070 is its local.node_port"),
        (
            {"services": '[[services]]\nname = "web"\nport = 8091'},
            "services[0].port",
            "8091 is its load_balancer_quorum.replication_port",
        ),
        (
            {"own": "127.0.0.1"},
            "load_balancer.addresses[0]",
            "127.0.0.1 is this machine, which the other LBs do not know by it, expected the address"
            " of priv0: 10.81.0.10",
        ),
        ({"own": "10.80.0.10"}, "load_balancer.addresses[0]", "10.80.0.10 is this machine"),
    ],
)
def test_of_the_node_s_file(machine: Machine, node: dict[str, str], key: str, message: str) -> None:
    machine.write_node(**node)
    ((found_key, found),) = machine.problems("node.toml")
    assert found_key == key
    assert message in found


def test_the_unwrapper_cannot_be_in_xdp(machine: Machine) -> None:
    machine.write_node(node='unwrap = "xdp"')
    assert machine.problems("node.toml") == []
    machine.write_lb('mode = "l3"')
    ((key, message),) = machine.problems("node.toml")
    assert (key, 'expected unwrap = "tc"' in message) == ("node.unwrap", True)
