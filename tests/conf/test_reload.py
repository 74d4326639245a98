"""What a running process takes of a new file: all but what needs a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf import LbConfig, load_lb, taken

BASE = {
    "local.name": '"lb-0"',
    "local.net_interface_public": '"pub0"',
    "local.net_interface_private": '"priv0"',
    "local.node_port": "7070",
    "local.api_port": "5555",
    "dataplane.reply_hook": '"tc"',
    "dataplane.xdp": '"native"',
    "dataplane.conntrack_entries": "8192",
    "dataplane.half_open_entries": "8192",
    "dataplane.new_flows_per_second": "7",
    "bus.events": '"tcp://127.0.0.1:9999"',
    "node_health.checks_timeout": '"1s"',
}
WAITING = [
    "local.net_interface_private",
    "local.net_interface_public",
    "local.name",
    "bus.events",
    "dataplane.reply_hook",
    "dataplane.xdp",
    "dataplane.conntrack_entries",
    "dataplane.half_open_entries",
]
OTHER = {
    "local.name": '"lb-9"',
    "local.net_interface_public": '"eth0"',
    "local.net_interface_private": '"eth1"',
    "local.node_port": "7071",
    "local.api_port": "5556",
    "dataplane.reply_hook": '"xdp"',
    "dataplane.xdp": '"generic"',
    "dataplane.conntrack_entries": "16384",
    "dataplane.half_open_entries": "16384",
    "dataplane.new_flows_per_second": "8",
    "bus.events": '"tcp://127.0.0.1:9998"',
    "node_health.checks_timeout": '"2s"',
}


def read(path: Path, values: dict[str, str]) -> LbConfig:
    tables: dict[str, list[str]] = {}
    for key, value in values.items():
        table, name = key.split(".")
        tables.setdefault(table, []).append(f"{name} = {value}")
    text = "".join(f"[{table}]\n" + "\n".join(lines) + "\n" for table, lines in tables.items())
    (path / "lb.toml").write_text(text)
    return load_lb(path / "lb.toml")


@pytest.mark.parametrize("key", list(BASE))
def test_a_key_is_taken_or_waits(tmp_path: Path, key: str) -> None:
    before, after = read(tmp_path, BASE), read(tmp_path, {**BASE, key: OTHER[key]})
    assert before != after
    goes_by, waiting = taken(before, after)
    if key in WAITING:
        assert (goes_by, waiting) == (before, [key])
    else:
        assert (goes_by, waiting) == (after, [])


def test_of_a_file_that_changes_everything_the_rest_is_taken(tmp_path: Path) -> None:
    before, after = read(tmp_path, BASE), read(tmp_path, OTHER)
    goes_by, waiting = taken(before, after)
    assert waiting == WAITING
    held = {key: BASE[key] if key in WAITING else OTHER[key] for key in BASE}
    assert goes_by == read(tmp_path, held)
    assert taken(before, goes_by) == (goes_by, [])


@pytest.mark.parametrize(
    ("before", "after", "waits"),
    [
        ("", "1", False),
        ("", "12", True),
        ("12", "123", False),
        ("123", "24", False),
        ("12", "1", True),
    ],
)
def test_the_list_of_lbs_is_taken_unless_one_decides_alone(
    tmp_path: Path, before: str, after: str, waits: bool
) -> None:
    def listed(hosts: str) -> LbConfig:
        entries = ", ".join(f'{{ ip = "10.0.0.{each}", port = 8081 }}' for each in hosts)
        return read(tmp_path, {**BASE, "load_balancer_quorum.addresses": f"[{entries}]"})

    started, found = listed(before), listed(after)
    goes_by, waiting = taken(started, found)
    assert waiting == ["quorum.addresses"] * waits
    assert goes_by == (started if waits else found)
