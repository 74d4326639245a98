"""What the LBs know of one another's flows, as they say it themselves."""

from __future__ import annotations

from e2e.hosts import Hosts


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
