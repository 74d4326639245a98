"""A cluster in which every machine knows the others by their keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from e2e.hosts import Hosts, lab_hosts, node_states, traffic, wait_for
from e2e.lab import Plan, plan


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with lab_hosts(Plan(nodes=2, keys=True), lambda text: print(text, file=sys.stderr)) as machines:
        yield machines


def test_a_node_whose_key_is_taken_off_the_list_takes_no_request(hosts: Hosts, lb: str) -> None:
    victim, other = hosts.nodes
    listed = plan.keys(lb) / "nodes" / f"{victim}.public"
    away = listed.with_suffix(".away")
    requests = traffic(hosts, rate=50)
    wait_for(lambda: requests.results, "the first answer")
    hosts.run(lb, "mv", str(listed), str(away))
    try:
        wait_for(lambda: node_states(hosts, lb)[victim] == "down", f"{victim} down")
        assert node_states(hosts, lb)[other] == "up"
    finally:
        hosts.run(lb, "mv", str(away), str(listed))
    wait_for(lambda: node_states(hosts, lb)[victim] == "up", f"{victim} up again")
    seen = requests.stop()
    assert not seen.failures, seen.errors
