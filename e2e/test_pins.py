"""The programs can be found where operators look for them, and stay when their process stops."""

from __future__ import annotations

import json

import pytest

from e2e.hosts import Hosts

PROGRAMS = {"xdp_public": "xdp", "tc_public": "sched_cls", "tc_private": "sched_cls"}


def pinned(hosts: Hosts, lb: str, name: str) -> dict[str, object]:
    path = f"{hosts.environment(lb)['GALE_BPF_DIR']}/prog/{name}"
    done = hosts.run(lb, "bpftool", "--json", "prog", "show", "pinned", path)
    assert done.returncode == 0, done.stdout + done.stderr
    program: dict[str, object] = json.loads(done.stdout)
    return program


def attached_ids(hosts: Hosts, lb: str) -> set[int]:
    """The ids of the programs on the LB's interfaces, as bpftool sees them."""
    done = hosts.run(lb, "bpftool", "--json", "net", "show")
    hooks = json.loads(done.stdout)[0]
    return {hook["id"] for kind in ("xdp", "tc") for hook in hooks[kind]}


@pytest.mark.parametrize("name", PROGRAMS)
def test_bpftool_finds_the_program(hosts: Hosts, lb: str, name: str) -> None:
    assert pinned(hosts, lb, name)["type"] == PROGRAMS[name]


def test_what_is_pinned_is_what_is_attached_also_while_all_is_stopped(
    hosts: Hosts, lb: str
) -> None:
    ids = {pinned(hosts, lb, name)["id"] for name in PROGRAMS}
    assert ids <= attached_ids(hosts, lb)
    hosts.supervisorctl(lb, "stop", "gale:*")
    try:
        assert {pinned(hosts, lb, name)["id"] for name in PROGRAMS} == ids
        assert ids <= attached_ids(hosts, lb)
    finally:
        hosts.supervisorctl(lb, "start", "gale:*")
