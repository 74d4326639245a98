"""A cluster in which every machine knows the others by their keys, and finds them by their names.

Nothing on these machines answers multicast DNS but Gale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import pytest

from e2e.hosts import Hosts, lab_hosts, node_states, traffic, wait_for
from e2e.lab import Plan, plan

PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with lab_hosts(
        Plan(lbs=2, nodes=2, keys=True, names=True), lambda text: print(text, file=sys.stderr)
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


# The last one here: the lab keeps the new address.
def test_a_load_balancer_whose_address_changes_is_followed_by_its_name(hosts: Hosts) -> None:
    (link,) = (each for each in Plan().links(hosts.lbs[1]) if each.network is plan.PRIVATE)
    moved = plan.PRIVATE.address(30)
    _move(hosts, link.address, moved)
    _is_followed(hosts, moved)


def _move(hosts: Hosts, before: str, after: str) -> None:
    interface, lb = plan.PRIVATE.interface, hosts.lbs[1]
    # Otherwise the second address of a network would go with the first.
    hosts.run(lb, "sysctl", "-qw", f"net.ipv4.conf.{interface}.promote_secondaries=1")
    for verb, address in (("add", after), ("del", before)):
        done = hosts.run(lb, "ip", "address", verb, f"{address}/24", "dev", interface)
        assert done.returncode == 0, done.stderr


def _is_followed(hosts: Hosts, address: str) -> None:
    """By the other LB, in the quorum, and by the nodes; and all is well."""
    other, moved = hosts.lbs

    def reaches(who: str, port: int) -> bool:
        words = ("ss", "-Htn", "state", "established", "dst", f"{address}:{port}")
        return hosts.run(who, *words).stdout != ""

    for who, port in ((other, plan.QUORUM_PORT), *((node, 7070) for node in hosts.nodes)):
        wait_for(partial(reaches, who, port), f"{who} to reach {address}", PATIENCE_S)

    def well() -> bool:
        members = hosts.api(other, "/v1/quorum")["members"]
        states = node_states(hosts, moved)
        return all(each["alive"] for each in members) and set(states.values()) == {"up"}

    wait_for(well, "everybody to be heard", PATIENCE_S)
