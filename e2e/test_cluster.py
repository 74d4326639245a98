"""Three LBs that are one cluster: who leads, what all of them go by, and what it costs to lose one.

A fault's cost is counted in changes of leader and of the VIP's holder, not in milliseconds: how
long a gap is, the benchmarks measure.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from e2e.cluster import (
    PATIENCE_S,
    agreed,
    agreement,
    all_serve,
    are_of_one_move,
    holder,
    members,
    one_table,
    others,
    quorum,
    quorum_lost,
    set_in_quorum,
)
from e2e.conftest import MachinesOf
from e2e.held import hold
from e2e.hosts import (
    Hosts,
    LabHosts,
    events,
    newest_event,
    pid_of,
    read_config,
    send_signal,
    traffic,
    wait_for,
)
from e2e.lab import Plan
from e2e.replicas import all_know
from e2e.traffic import Traffic

FLOWS, HELD = 300, 40
START_S = 30.0
"""The goal is three seconds on a machine that does nothing else; the test prints what it saw."""
TRACING_S = 300
"""The first trace of an LB may have to compile its programs."""
LAB_S = 600
TRACE = """
import json, sys, urllib.request
first = int(sys.argv[1])
for number in range(first, first + int(sys.argv[2])):
    host, port = f"10.82.{number // 200}.{number % 200 + 1}", 1024 + 7 * number
    question = {"protocol": "tcp", "source": f"{host}:{port}", "destination": sys.argv[3]}
    request = urllib.request.Request("http://127.0.0.1:5555/v1/trace",
        json.dumps(question).encode(), {"Content-Type": "application/json"})
    print(json.load(urllib.request.urlopen(request, timeout=int(sys.argv[4])))["node"])
"""

pytestmark = pytest.mark.timeout(LAB_S)


@pytest.fixture(scope="module")
def hosts(machines_of: MachinesOf) -> Iterator[Hosts]:
    with machines_of(Plan(lbs=3, nodes=2)) as machines:
        yield machines


def _is_anew(hosts: Hosts, lb: str, before: int) -> bool:
    return pid_of(hosts, lb, "gale:quorum") not in (0, before)


@pytest.fixture(autouse=True)
def well(hosts: Hosts) -> Iterator[None]:
    all_serve(hosts)
    yield
    if isinstance(hosts, LabHosts):
        for lb in hosts.lbs:
            hosts.set_cut(lb, cut=False)


@pytest.mark.anywhere
def test_all_know_all_and_one_holds_the_vip(hosts: Hosts) -> None:
    leader = agreed(hosts)
    one_table(hosts)
    holders = {holder(hosts, lb) for lb in hosts.lbs}
    assert len(holders) == 1
    assert holders <= set(hosts.lbs)
    for lb in hosts.lbs:
        state = quorum(hosts, lb)
        assert state is not None
        members = {member["name"]: member for member in state["members"]}
        assert set(members) == set(hosts.lbs)
        assert all(member["alive"] for member in members.values())
        assert (state["role"] == "leader") == (lb == leader)
        assert not state["rejected"]


@pytest.mark.anywhere
def test_equal_tables_are_equal_choices(hosts: Hosts) -> None:
    """The loaded programs of all LBs choose the same node for the same flow."""
    agreed(hosts)
    one_table(hosts)
    words = ("python3", "-c", TRACE, "0", str(FLOWS), f"{hosts.vip()}:8080", str(TRACING_S))
    running = {lb: hosts.start(lb, *words) for lb in hosts.lbs}
    answers: dict[str, list[str]] = {}
    for lb, process in running.items():
        printed, complaints = process.communicate(timeout=TRACING_S)
        answers[lb] = [node.partition("@")[0] for node in printed.split()]
        assert len(answers[lb]) == FLOWS, complaints
    first = answers[hosts.lbs[0]]
    assert set(first) == set(hosts.nodes)
    assert all(each == first for each in answers.values())


@pytest.mark.anywhere
def test_a_killed_leader_is_replaced_and_comes_back_as_a_follower(hosts: Hosts) -> None:
    leader = agreed(hosts)
    requests = traffic(hosts, rate=50)
    wait_for(lambda: requests.results, "the first answer")
    killed = send_signal(hosts, leader, "gale:quorum", "KILL")
    successor = agreed(hosts, *others(hosts, leader), without=leader)
    wait_for(lambda: pid_of(hosts, leader, "gale:quorum") not in (0, killed), "a new process")
    assert agreed(hosts) == successor
    are_of_one_move(requests.stop())


def test_a_minority_follows_nobody_says_so_and_comes_back(hosts: LabHosts) -> None:
    leader = agreed(hosts)
    hosts.set_cut(leader, cut=True)
    successor = agreed(hosts, *others(hosts, leader), without=leader)
    lost = wait_for(partial(quorum_lost, hosts, leader), "quorum lost")
    assert lost["leader"] is None
    assert lost["waiting_for"] == "a leader: no majority of the LBs is heard"
    assert lost["lease_remaining_ms"] == 0
    new_holder = wait_for(
        lambda: h if (h := holder(hosts, successor)) != leader else None, "another holder"
    )
    term = quorum(hosts, successor)["term"]  # type: ignore[index]
    hosts.set_cut(leader, cut=False)
    assert agreed(hosts) == successor
    assert quorum(hosts, leader)["term"] == term, "it deposed nobody"  # type: ignore[index]
    assert holder(hosts, leader) == new_holder, "nothing moves back by itself"


def test_the_last_holder_goes_on_alone_if_it_is_told_to(hosts: Hosts) -> None:
    """And what was `on_quorum_loss = "lapse"` again lapses at once."""
    agreed(hosts)
    lb = wait_for(lambda: holder(hosts, hosts.lbs[0]), "a holder of the VIP")
    with loses_quorum(hosts, lb, "hold"):
        lost = wait_for(partial(quorum_lost, hosts, lb), "quorum lost")
        assert lost["lease_remaining_ms"] == 0
        wait_for(lambda: claims_vip(hosts, lb), "the last holder to go on")
        requests = traffic(hosts, rate=50)
        wait_for(lambda: len(requests.results) > 100, "answers")
        assert not requests.stop().failures
        set_on_quorum_loss(hosts, lb, "lapse")
        wait_for(lambda: not claims_vip(hosts, lb), "its claim to end")
    agreed(hosts)


@contextmanager
def loses_quorum(hosts: Hosts, lb: str, then: str) -> Iterator[None]:
    """The other LBs' quorum processes are gone, for as long as the block lasts."""
    set_on_quorum_loss(hosts, lb, then)
    for other in others(hosts, lb):
        hosts.supervisorctl(other, "stop", "gale:quorum")
    try:
        yield
    finally:
        set_on_quorum_loss(hosts, lb, "lapse")
        for other in others(hosts, lb):
            hosts.supervisorctl(other, "start", "gale:quorum")


def set_on_quorum_loss(hosts: Hosts, lb: str, value: str) -> None:
    set_in_quorum(hosts, lb, "on_quorum_loss", value)


def claims_vip(hosts: Hosts, lb: str) -> bool:
    claims = hosts.api(lb, "/v1/status")["dataplane"]["claims"]
    return any(each["address"] == hosts.vip() and each["held"] for each in claims)


@pytest.mark.parametrize("both_ways", [False, True], ids=["one-way", "partial"])
def test_two_that_do_not_hear_each_other_cost_one_change_at_most(
    hosts: LabHosts, both_ways: bool
) -> None:
    leader = agreed(hosts)
    before = quorum(hosts, leader)
    assert before is not None
    other, bridge = others(hosts, leader)
    hosts.cut_way(other, leader)
    if both_ways:
        hosts.cut_way(leader, other)
    wait_for(lambda: not agreement(hosts), "the fault to be felt", PATIENCE_S)
    after = wait_for(lambda: (s := quorum(hosts, bridge)) and s["quorum"] and s, "a quorum")
    hosts.set_cut(leader, cut=False)
    agreed(hosts)
    healed = quorum(hosts, bridge)
    assert healed is not None
    assert after["term"] - before["term"] <= 1
    assert healed["term"] - before["term"] <= 2


@pytest.mark.anywhere
def test_a_leader_that_stands_still_leads_no_more_when_it_goes_on(hosts: Hosts) -> None:
    leader = agreed(hosts)
    send_signal(hosts, leader, "gale:quorum", "STOP")
    try:
        successor = agreed(hosts, *others(hosts, leader), without=leader)
    finally:
        send_signal(hosts, leader, "gale:quorum", "CONT")
    assert agreed(hosts) == successor


@pytest.mark.anywhere
def test_a_rolling_restart_moves_the_vip_and_loses_no_table(hosts: Hosts) -> None:
    for lb in hosts.lbs:
        requests = traffic(hosts, rate=50)
        wait_for(lambda: requests.results, "the first answer")  # noqa: B023 - awaited here
        before = pid_of(hosts, lb, "gale:quorum")
        hosts.supervisorctl(lb, "restart", "gale:quorum")
        wait_for(partial(_is_anew, hosts, lb, before), f"a new process on {lb}")
        agreed(hosts)
        one_table(hosts)
        are_of_one_move(requests.stop())


@pytest.mark.anywhere
def test_handed_over_is_the_lead_and_the_vip(hosts: Hosts) -> None:
    leader = agreed(hosts)
    requests = traffic(hosts, rate=50)
    wait_for(lambda: requests.results, "the first answer")
    done = hosts.run(leader, "gale", "handover")
    assert done.returncode == 0, done.stderr
    are_of_one_move(requests.stop())
    successor = agreed(hosts)
    assert successor != leader
    assert holder(hosts, successor) != leader
    assert done.stdout == f"handed over: {successor} leads\n"


@pytest.mark.anywhere
def test_a_stopped_lb_hands_over_and_is_a_member_again_when_started(hosts: Hosts) -> None:
    leader = agreed(hosts)
    requests = traffic(hosts, rate=50)
    wait_for(lambda: requests.results, "the first answer")
    hosts.supervisorctl(leader, "stop", "gale:*")
    successor = agreed(hosts, *others(hosts, leader), without=leader)
    assert holder(hosts, successor) != leader
    hosts.supervisorctl(leader, "start", "gale:*")
    all_serve(hosts)
    are_of_one_move(requests.stop())


@pytest.mark.anywhere
def test_all_start_together_after_all_were_killed(hosts: Hosts) -> None:
    """What is measured begins when two of them have begun to start their processes."""
    agreed(hosts)
    before = quorum(hosts, hosts.lbs[0])
    assert before is not None
    for lb in hosts.lbs:
        hosts.run(lb, "kill", "-KILL", str(hosts.supervisord_pid(lb)))
    wait_for(partial(is_silent, hosts), "nobody to answer")
    with ThreadPoolExecutor(len(hosts.lbs)) as at_once:
        _, majority_s, _ = sorted(at_once.map(partial(started_s, hosts), hosts.lbs))
    requests = traffic(hosts, rate=20)
    wait_for(partial(answers, requests), "the VIP to answer", START_S)
    print(f"the VIP answers {time.monotonic() - majority_s:.1f} s after a majority runs")
    requests.stop()
    all_serve(hosts)
    after = quorum(hosts, hosts.lbs[0])
    assert after is not None
    assert after["epoch"] >= before["epoch"], "nothing that was agreed is forgotten"
    requests = traffic(hosts, rate=50)
    wait_for(lambda: len(requests.results) > 20, "answers")
    assert not requests.stop().failures


def started_s(hosts: Hosts, lb: str) -> float:
    """When the LB's supervisord, started again, has begun with its processes."""
    hosts.start_supervisord(lb)
    return time.monotonic()


def is_silent(hosts: Hosts) -> bool:
    """Whether nobody answers for the VIP, once its client has forgotten where it was: the kernel
    of a dead LB would still forward.
    """
    fetch = "curl --silent --noproxy '*' --max-time 1 --output /dev/null"
    script = f'ip neigh flush to "$1"; ! {fetch} "http://$1:8080/"'
    return hosts.run(hosts.client, "sh", "-c", script, "silent", hosts.vip()).returncode == 0


def answers(requests: Traffic) -> bool:
    return any(not result.error for result in requests.results)


def applicants(hosts: Hosts, lb: str) -> set[str]:
    state = quorum(hosts, lb)
    return {each["name"] for each in state["applicants"]} if state is not None else set()


def changed(hosts: Hosts, lb: str, change: str, whom: str) -> None:
    """Change the members, and see that all of them go by it."""
    before = newest_event(hosts, lb)
    done = hosts.run(lb, "gale", "quorum", change, whom)
    assert done.returncode == 0, done.stderr
    topic = "quorum.member_added." if change == "add" else "quorum.member_removed."
    wait_for(lambda: events(hosts, lb, topic, before), topic)


def test_one_is_removed_and_one_is_added_while_requests_run(hosts: Hosts) -> None:
    """The one that comes has an empty disk, as a new machine has. Open connections live on."""
    leader = agreed(hosts)
    one, other = others(hosts, leader)
    with hold(hosts, count=HELD, every_ms=200) as held:
        all_know(hosts, HELD)
        requests = traffic(hosts, rate=50)
        wait_for(lambda: requests.results, "the first answer")
        refused = hosts.run(one, "gale", "quorum", "remove", leader)
        assert refused.returncode == 1
        assert "leads: `gale handover` there first" in refused.stderr
        changed(hosts, one, "remove", other)
        is_removed(hosts, leader, one, other)
        hosts.supervisorctl(other, "stop", "gale:quorum")
        hosts.run(other, "sh", "-c", 'rm "$GALE_STATE_DIR/quorum.state"')
        wait_for(lambda: other not in applicants(hosts, one), "its knocking to be over", PATIENCE_S)
        hosts.supervisorctl(other, "start", "gale:quorum")
        wait_for(lambda: other in applicants(hosts, one), "it knocks", PATIENCE_S)
        changed(hosts, one, "add", other)
        everybody = set(hosts.lbs)
        wait_for(lambda: members(hosts, one) == members(hosts, other) == everybody, "three again")
        one_table(hosts)
        are_of_one_move(requests.stop())
        assert held.ended == {}
        assert held.ask() == HELD
    hosts.supervisorctl(one, "restart", "gale:quorum")
    agreed(hosts)
    assert members(hosts, one) == everybody, "kept over restarts"


def is_removed(hosts: Hosts, leader: str, one: str, other: str) -> None:
    """Until the two others go by it, and it knows it, and is spoken to no more."""
    two = {leader, one}
    wait_for(lambda: members(hosts, one) == members(hosts, leader) == two, "two members")
    wait_for(lambda: (state := quorum(hosts, other)) and not state["is_member"], "it knows")
    wait_for(partial(quorum_lost, hosts, other), "nobody to speak to it any more", PATIENCE_S)


def test_the_members_become_those_that_all_files_list(hosts: LabHosts) -> None:
    leader = agreed(hosts)
    one, other = others(hosts, leader)
    gone = hosts.lab.plan.links(other)[-1].address
    config = tomllib.loads(read_config(hosts, leader))
    three: list[dict[str, Any]] = config["load_balancer_quorum"]["addresses"]
    two = [each for each in three if each["ip"] != gone]
    assert len(two) == 2
    requests = traffic(hosts, rate=50)
    wait_for(lambda: requests.results, "the first answer")
    for lb in (leader, one):
        set_in_quorum(hosts, lb, "addresses", two)
    wait_for(
        lambda: quorum_said(hosts, one).startswith("staged on 2 of 3"),
        "both to be known, and the third to be waited for",
    )
    assert members(hosts, one) == set(hosts.lbs)
    set_in_quorum(hosts, other, "addresses", two)
    wait_for(lambda: members(hosts, one) == members(hosts, leader) == {leader, one}, "two members")
    wait_for(lambda: (state := quorum(hosts, other)) and not state["is_member"], "it knows")
    for lb in hosts.lbs:
        set_in_quorum(hosts, lb, "addresses", three)
    wait_for(lambda: members(hosts, one) == members(hosts, other) == set(hosts.lbs), "three again")
    one_table(hosts)
    wait_for(lambda: not any(quorum_said(hosts, lb) for lb in hosts.lbs), "nothing to be staged")
    are_of_one_move(requests.stop())


def quorum_said(hosts: Hosts, lb: str) -> str:
    """Where which list is staged."""
    state = quorum(hosts, lb)
    return str(state["listed"]) if state is not None else "nothing is heard"
