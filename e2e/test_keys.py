"""A cluster in which every machine knows the others by their keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from e2e.hosts import Hosts, lab_hosts, node_states, traffic, wait_for
from e2e.lab import Plan, plan


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with lab_hosts(
        Plan(lbs=2, nodes=2, keys=True), lambda text: print(text, file=sys.stderr)
    ) as machines:
        yield machines


def test_a_node_whose_key_is_taken_off_the_list_takes_no_request(hosts: Hosts, lb: str) -> None:
    victim, other = hosts.nodes
    listed = [plan.keys(each) / "nodes" / f"{victim}.public" for each in hosts.lbs]
    requests = traffic(hosts, rate=50)
    wait_for(lambda: requests.results, "the first answer")
    for path, each in zip(listed, hosts.lbs, strict=True):
        hosts.run(each, "mv", str(path), str(path.with_suffix(".away")))
    try:
        wait_for(lambda: node_states(hosts, lb)[victim] == "down", f"{victim} down")
        assert node_states(hosts, lb)[other] == "up"
    finally:
        for path, each in zip(listed, hosts.lbs, strict=True):
            hosts.run(each, "mv", str(path.with_suffix(".away")), str(path))
    wait_for(lambda: node_states(hosts, lb)[victim] == "up", f"{victim} up again")
    seen = requests.stop()
    assert not seen.failures, seen.errors


def test_the_lbs_agree_by_their_keys(hosts: Hosts, lb: str) -> None:
    seen = hosts.api(lb, "/v1/quorum")
    assert seen["quorum"]
    assert [member["alive"] for member in seen["members"]] == [True, True]
    assert all(hosts.api(each, "/v1/status")["keys"] for each in hosts.lbs)
