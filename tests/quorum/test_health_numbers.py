"""What an LB tells the others of how it judges nodes."""

from __future__ import annotations

from pathlib import Path

from conf import load_lb
from conf.table import COMPARED
from services.quorum.health_numbers import node_health

FILE = """
[local]
net_interface_private = "eth1"
net_interface_public = "eth0"

[node_health]
checks_timeout = "1500ms"
black_list_after_fails = 5
"""


def test_numbers_are_told_as_an_operator_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_text(FILE)
    assert node_health(load_lb(file)) == {
        "checks_before_routing": "3",
        "checks_timeout": "1500ms",
        "black_list_after_fails": "5",
        "black_list_expiry": "1m",
        "min_healthy": "50",
        "probe": "tcp",
    }


def test_what_is_each_lbs_own_is_not_told(tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_text(FILE)
    config = load_lb(file)
    fields = type(config.node_health).model_fields
    fields["probe"].metadata.remove(COMPARED)
    try:
        assert "probe" not in node_health(config)
    finally:
        fields["probe"].metadata.append(COMPARED)
