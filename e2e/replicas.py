"""What the LBs know of one another's flows, as they say it themselves."""

from __future__ import annotations

from e2e.hosts import Hosts, wait_for

PATIENCE_S = 60.0


def is_level(hosts: Hosts, lb: str) -> bool:
    """Whether the other LBs' flows are known at that one, and its own are told to them."""
    try:
        replicas = hosts.api(lb, "/v1/status")["dataplane"]["replicas"]
    except (OSError, TypeError):
        return False
    level = {peer["name"] for peer in replicas if peer["standing"] == "level" and peer["follows"]}
    return set(hosts.lbs) - {lb} <= level


def flows_of(hosts: Hosts, lb: str) -> int:
    """How many established ones are known at an LB, whoever opened them."""
    established = hosts.metrics(lb, "gale_conntrack_entries")
    return int(sum(s.value for s in established if s.labels["table"] == "established"))


def all_know(hosts: Hosts, flows: int) -> None:
    """Wait until every LB has so many, and is told what becomes of them."""

    def known() -> bool:
        return all(is_level(hosts, lb) and flows_of(hosts, lb) >= flows for lb in hosts.lbs)

    wait_for(known, f"{flows} flows at every LB", PATIENCE_S)
