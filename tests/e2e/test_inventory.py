"""The suite's other machines, without any: what is known of them, and how they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from e2e.inventory import InventoryError, InventoryHosts

HOSTS = """\
[gale_lbs]
lb-0 ansible_host=192.0.2.10
lb-1 ansible_host=192.0.2.11 ansible_port=2222
[gale_nodes]
node-0
[all:vars]
ansible_user=debian
"""


def machines(directory: Path, text: str = HOSTS) -> InventoryHosts:
    inventory = directory / "hosts.ini"
    inventory.write_text(text)
    return InventoryHosts(inventory, directory)


def test_machines_are_those_of_the_two_groups(tmp_path: Path) -> None:
    hosts = machines(tmp_path)
    assert (hosts.lbs, hosts.nodes) == (("lb-0", "lb-1"), ("node-0",))
    words = hosts._words("lb-1", ("kill", "-STOP", "it's"))
    assert words[-2:] == [
        "debian@192.0.2.11",
        """sudo --non-interactive -- kill -STOP 'it'"'"'s'""",
    ]
    assert words[words.index("-p") + 1] == "2222"
    with pytest.raises(InventoryError, match="names no gale_lbs, or no gale_nodes"):
        machines(tmp_path, "[gale_lbs]\nlb-0\n")


def test_the_vip_is_known_also_when_the_lb_that_told_it_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [{"vips": []}, {"vips": [{"address": "192.0.2.100"}]}]
    monkeypatch.setattr(InventoryHosts, "api", lambda self, lb, path: answers.pop(0))
    hosts = machines(tmp_path)
    with pytest.raises(InventoryError, match="set gale_virtual_ip"):
        hosts.vip()
    assert [hosts.vip(), hosts.vip()] == ["192.0.2.100", "192.0.2.100"]
