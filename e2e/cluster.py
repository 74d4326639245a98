"""What the LBs of a cluster say of their agreement, waited for; and one LB's file, read again.

Everything is asked of the LBs' APIs, so it can be asked of any machines. An LB that answers
nothing, as while its processes start, is one that says nothing yet: it is asked again.
"""

from __future__ import annotations

import tomllib
from functools import partial
from typing import Any

from e2e.hosts import Hosts, read_config, wait_for, write_config
from e2e.lab.files import toml_text
from e2e.traffic import Summary

PATIENCE_S = 30.0
MOVE_MS = 1_000


def quorum(hosts: Hosts, lb: str) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = hosts.api(lb, "/v1/quorum")
    except (OSError, ValueError):
        return None
    return answer


# --------------------------------------------------------------------------- who leads, and by what


def agreement(hosts: Hosts, *lbs: str) -> str:
    """Who leads, if all of these follow the same LB in the same term; else nothing."""
    states = [quorum(hosts, lb) for lb in lbs or hosts.lbs]
    said = {(s["leader"], s["term"]) for s in states if s is not None}
    if None in states or len(said) != 1:
        return ""
    ((leader, _),) = said
    return leader or ""


def agreed(hosts: Hosts, *lbs: str, without: str = "") -> str:
    """Wait until these agree, on another leader than `without`; who that is."""

    def found() -> str:
        leader = agreement(hosts, *lbs)
        return leader if leader != without else ""

    return wait_for(found, f"agreement of {lbs or hosts.lbs}", PATIENCE_S)


def tables(hosts: Hosts) -> set[tuple[int, int] | None]:
    """The versions of all LBs' tables."""
    states = [quorum(hosts, lb) for lb in hosts.lbs]
    return {(s["term"], s["epoch"]) if s is not None else None for s in states}


def one_table(hosts: Hosts) -> None:
    wait_for(lambda: len(found := tables(hosts)) == 1 and None not in found, "one table")


def quorum_lost(hosts: Hosts, lb: str) -> dict[str, Any] | None:
    """What an LB says that hears no leader; None: it hears one."""
    state = quorum(hosts, lb)
    return state if state is not None and not state["quorum"] else None


def holder(hosts: Hosts, lb: str) -> str | None:
    """Whom the VIP is given to, as that LB has it."""
    state = quorum(hosts, lb)
    return state["vips"][0]["holder"] if state and state["vips"] else None


def others(hosts: Hosts, lb: str) -> tuple[str, ...]:
    return tuple(each for each in hosts.lbs if each != lb)


def members(hosts: Hosts, lb: str) -> set[str]:
    state = quorum(hosts, lb)
    return {member["name"] for member in state["members"]} if state is not None else set()


# --------------------------------------------------------------------------- nodes and requests


def _sees(hosts: Hosts, lb: str, everybody: set[tuple[str, str]]) -> bool:
    try:
        nodes = hosts.api(lb, "/v1/nodes")["nodes"]
    except (OSError, ValueError):
        return False
    return {(node["name"], node["state"]) for node in nodes} == everybody


def all_serve(hosts: Hosts) -> None:
    """Until every LB sees every node up again, so that the next test begins well."""
    everybody = {(node, "up") for node in hosts.nodes}
    for lb in hosts.lbs:
        sees_all = partial(_sees, hosts, lb, everybody)
        wait_for(sees_all, f"all nodes up at {lb}", PATIENCE_S)
    agreed(hosts)


def are_of_one_move(seen: Summary) -> None:
    """Whether what failed was under way when the VIP moved, younger than what is replicated."""
    assert set(seen.errors) <= {"reset"}, seen.failures
    assert seen.failing_ms < MOVE_MS, seen.failures


# --------------------------------------------------------------------------- an LB's file


def reconfigure(hosts: Hosts, lb: str, changed: dict[str, Any]) -> None:
    """The file of an LB has these tables in the place of its own, and is read again."""
    config = tomllib.loads(read_config(hosts, lb))
    write_config(hosts, lb, toml_text(config | changed))
    done = hosts.run(lb, "gale", "reload")
    assert done.returncode == 0, done.stdout + done.stderr


def set_in_quorum(hosts: Hosts, lb: str, key: str, value: object) -> None:
    """The file of an LB says that of the quorum, and is read again."""
    table = tomllib.loads(read_config(hosts, lb))["load_balancer_quorum"]
    reconfigure(hosts, lb, {"load_balancer_quorum": table | {key: value}})
