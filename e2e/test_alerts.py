"""Alert rules, each with its trouble made in the lab: it fires, and no other one.

GaleSnatPortsShort wants a lab of its own: test_few_ports.py. tests/api/test_prometheus.py has all
of them by invented samples too, which say more of each rule's expression than one trouble does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from e2e.alerts import Scraped, check, scrape
from e2e.failover import handed_over, quorum_paused, the_holder
from e2e.held import hold
from e2e.hosts import LabHosts, lab_hosts, node_states, send_signal, wait_for
from e2e.lab import Plan
from e2e.lab.files import toml_text
from e2e.lab.plan import PRIVATE, home
from e2e.replicas import is_level

DATAGRAMS = 5_000
SMALL_TABLE = {"conntrack_entries": 1024, "half_open_entries": 256}
MANY_FLOWS = 440
"""More than four fifths of the flows that fit into it."""
SPARE = 4
"""So full a table has full buckets, which take no other flow."""
FAILURES = 4
PROBED_S = 1.5
"""An LB's own probes that began while a cable was cut are over by then."""
LEASE_CHANGES = 5
STRANGER = """
import sys, zmq
stranger = zmq.Context().socket(zmq.DEALER)
stranger.connect(sys.argv[1])
for _ in range(50):
    stranger.send_multipart([b"no", b"heartbeat"])
stranger.close(linger=5000)
stranger.context.term()
"""
FLOWS = 20
LATE_S = 1.0
OTHER_VERSION = "99.0"
ORDERS, ORDERS_S = 900, 200
"""Each makes two events at every LB at least, and a new version of two states. What was queued for
a process that stands still, here and in the kernel, is fewer messages by far."""
ORDERING = """
import http.client, json, sys
api = http.client.HTTPConnection("127.0.0.1", 5555, timeout=30)
for number in range(int(sys.argv[2])):
    body = json.dumps({"why": str(number)})
    kind = {"Content-Type": "application/json"}
    api.request("POST", f"/v1/nodes/{sys.argv[1]}/enable", body, kind)
    answer = api.getresponse()
    said = answer.read().decode()
    if answer.status != 200:
        sys.exit(said)
"""
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("alerts") / "extra.toml"
    extra.write_text(
        toml_text({"dataplane": SMALL_TABLE, "node_health": {"black_list_after_fails": FAILURES}})
    )
    with lab_hosts(Plan(lbs=3), say, extra) as machines:
        yield machines


@pytest.fixture(autouse=True)
def well(hosts: LabHosts) -> None:
    """Whatever the test before has done is mended."""
    all_is_well(hosts)


def all_is_well(hosts: LabHosts) -> None:
    the_holder(hosts)
    while True:
        wait_for(lambda: all(all_is_up(hosts, lb) for lb in hosts.lbs), "all to be up", 60)
        time.sleep(PROBED_S)
        if all(all_is_up(hosts, lb) for lb in hosts.lbs):
            return


def all_is_up(hosts: LabHosts, lb: str) -> bool:
    """Every node, and every service of it by itself."""
    nodes = hosts.api(lb, "/v1/nodes")["nodes"]
    states = {one["state"] for node in nodes for one in (node, *node["services"])}
    return states == {"up"} and len(nodes) == len(hosts.nodes)


def until(
    hosts: LabHosts, is_so: Callable[[Scraped], bool], what: str, *, one_table: bool = True
) -> Scraped:
    """The first scrape of which this is so; `one_table`: not in the middle of a commit, since the
    LBs are asked one after the other.
    """

    def look() -> Scraped | None:
        scraped = scrape(hosts)
        in_between = one_table and scraped.differs("gale_table_epoch{")
        return scraped if is_so(scraped) and not in_between else None

    return wait_for(look, what, timeout_s=60, every_s=0.2)


def in_state(seen: Scraped, state: str) -> float:
    """How many nodes are as a whole, of all LBs together."""
    nodes = ((n, value) for n, value in seen.values.items() if n.startswith("gale_node_state{"))
    return sum(value for name, value in nodes if f'state="{state}"' in name)


def test_a_node_is_down_then_all_are(hosts: LabHosts) -> None:
    first, *others = hosts.nodes
    try:
        hosts.lab.set_server(first, running=False)
        down = until(hosts, lambda seen: in_state(seen, "down") == 3, "one to be down")
        check(down, ["GaleNodeDown"])
        for node in others:
            hosts.lab.set_server(node, running=False)
        empty = until(hosts, lambda seen: seen.sum("gale_ring_slots{") == 0, "none to be left")
        check(empty, ["GaleServiceEmpty", "GaleNodeDown"], maybe=["GaleNotReady"])
    finally:
        for node in hosts.nodes:
            hosts.lab.set_server(node, running=True)


def test_an_lb_is_gone_then_the_majority(hosts: LabHosts) -> None:
    holder = the_holder(hosts)
    follower, other = (lb for lb in hosts.lbs if lb != holder)
    majority, alive = "gale_quorum_has_majority{", "gale_quorum_members_alive{"
    # Whoever is cut off misses the nodes, too.
    maybe = ["GaleNodeDown", "GaleNodeSuspect", "GaleNotReady", "GaleServiceEmpty"]
    maybe += ["GaleTableBehind"]
    try:
        hosts.set_cut(follower, cut=True)
        lost = until(
            hosts,
            lambda seen: seen.sum(majority) == 2 and seen.sum(alive) <= 5,
            "one to be missed",
            one_table=False,
        )
        check(lost, ["GaleLbGone", "GaleQuorumLost"], maybe=maybe)
        hosts.set_cut(other, cut=True)
        lost = until(
            hosts,
            lambda seen: seen.sum(majority) == 0 and seen.sum("gale_quorum_is_leader{") == 0,
            "nobody to lead",
            one_table=False,
        )
        check(lost, ["GaleLbGone", "GaleQuorumLost", "GaleNoLeader"], maybe=maybe)
    finally:
        for lb in (follower, other):
            hosts.set_cut(lb, cut=False)


def test_many_packets_are_dropped(hosts: LabHosts) -> None:
    first = scrape(hosts)
    script = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM)\n"
        f"for _ in range({DATAGRAMS}): s.sendto(b'x', ('{hosts.vip()}', 9))"
    )
    hosts.run(hosts.client, "python3", "-c", script)

    def dropped(seen: Scraped) -> float:
        return sum(v for n, v in seen.values.items() if 'reason="drop_no_service"' in n)

    # All are counted, in a metric that is a second old at most.
    enough = dropped(first) + DATAGRAMS * 0.9
    last = until(hosts, lambda seen: dropped(seen) >= enough, "all to be counted")
    check(last, ["GaleDrops"], first=first)


# --------------------------------------------------------------------------- nodes


def test_silent_nodes_are_down_or_suspect(hosts: LabHosts) -> None:
    """Of three, two are needed: one that falls silent goes, and the second stays in doubt."""
    silent = hosts.nodes[:2]
    try:
        for node in silent:
            send_signal(hosts, node, "gale-node:agent", "STOP")
        doubted = until(
            hosts,
            lambda seen: in_state(seen, "suspect") == 3 and in_state(seen, "down") == 3,
            "one to be in doubt, and the other one down",
        )
        check(doubted, ["GaleNodeSuspect", "GaleNodeDown"])
    finally:
        for node in silent:
            send_signal(hosts, node, "gale-node:agent", "CONT")


def test_a_node_that_fails_again_and_again_is_banned(hosts: LabHosts) -> None:
    node, lb = hosts.nodes[0], hosts.lbs[0]
    for _ in range(FAILURES):
        wait_for(
            lambda: all(node_states(hosts, each)[node] in ("up", "banned") for each in hosts.lbs),
            f"{node} to be up",
        )
        hosts.lab.set_server(node, running=False)
        wait_for(
            lambda: all(node_states(hosts, each)[node] != "up" for each in hosts.lbs),
            f"{node} to be down",
        )
        hosts.lab.set_server(node, running=True)
    banned = until(hosts, lambda seen: in_state(seen, "banned") == 3, "it to be banned")
    check(banned, ["GaleNodeBanned"])
    known = hosts.api(lb, "/v1/nodes")["nodes"]
    name = next(each["id"] for each in known if each["name"] == node)
    assert hosts.run(lb, "gale", "node", "pardon", name).returncode == 0


def test_a_stranger_talks_nonsense(hosts: LabHosts) -> None:
    first = scrape(hosts)
    lb = hosts.lbs[0]
    refused = f'gale_rejected_messages_total{{job="gale",instance="{lb}:5555",channel="nodes"'
    own = next(link.address for link in hosts.lab.plan.links(lb) if link.network is PRIVATE)
    done = hosts.run(hosts.nodes[0], "python3", "-c", STRANGER, f"tcp://{own}:7070")
    assert done.returncode == 0, done.stderr
    last = until(
        hosts, lambda seen: seen.sum(refused) >= first.sum(refused) + 50, "all to be counted"
    )
    check(last, ["GaleMessagesRefused"], first=first)


# --------------------------------------------------------------------------- LBs


def test_the_dataplane_and_then_the_api_are_gone(hosts: LabHosts) -> None:
    holder = the_holder(hosts)
    lb = next(each for each in hosts.lbs if each != holder)
    age = f'gale_control_age_seconds{{job="gale",instance="{lb}:5555",process="dataplane"'
    try:
        hosts.supervisorctl(lb, "stop", "gale:dataplane")
        silent = until(hosts, lambda seen: seen.sum(age) > 10, "it to be silent for ten seconds")
        check(silent, ["GaleProcessSilent", "GaleNotReady"])
        hosts.supervisorctl(lb, "stop", "gale:api")
        gone = until(hosts, lambda seen: seen.sum("up{") == 2, "nobody to answer")
        check(gone, ["GaleUnreachable"])
    finally:
        for process in ("dataplane", "api"):
            hosts.supervisorctl(lb, "start", f"gale:{process}")


def test_a_leader_stands_still_and_another_one_leads(hosts: LabHosts) -> None:
    leader = hosts.api(hosts.lbs[0], "/v1/quorum")["leader"]
    with quorum_paused(hosts, leader):
        two = until(
            hosts,
            lambda seen: (
                seen.sum("gale_quorum_is_leader{") == 2
                and seen.sum("gale_quorum_members_alive{") == 7
                and len({v for n, v in seen.values.items() if n.startswith("gale_table_epoch{")})
                > 1
            ),
            "another one to lead, and the first not to know",
            one_table=False,
        )
        check(
            two,
            ["GaleTwoLeaders", "GaleLbGone", "GaleTableBehind"],
            maybe=["GaleProcessSilent"],
        )


def test_the_lease_moves_again_and_again(hosts: LabHosts) -> None:
    first = scrape(hosts)
    for _ in range(LEASE_CHANGES):
        with handed_over(hosts, the_holder(hosts)):
            pass
    the_holder(hosts)
    check(scrape(hosts), ["GaleLeaseMoves"], first=first)


def test_flows_reach_another_lb_late(hosts: LabHosts) -> None:
    """Its dataplane stands still for a while, as where a machine is short of CPU."""
    wait_for(lambda: all(is_level(hosts, lb) for lb in hosts.lbs), "all to be level", 60)
    holder = the_holder(hosts)
    slow = next(each for each in hosts.lbs if each != holder)
    lag = f'gale_replication_lag_seconds{{job="gale",instance="{holder}:5555"'
    send_signal(hosts, slow, "gale:dataplane", "STOP")
    try:
        with hold(hosts, count=FLOWS):
            late = until(hosts, lambda seen: seen.sum(lag) > LATE_S, "flows to wait")
    finally:
        send_signal(hosts, slow, "gale:dataplane", "CONT")
    check(late, ["GaleReplicationSlow"], maybe=["GaleProcessSilent", "GaleNotReady"])


@pytest.mark.lasting
def test_an_api_that_stood_still_has_missed_messages(hosts: LabHosts) -> None:
    """As where a machine is short of CPU, while a lot happens."""
    stopped, asked = hosts.lbs[:2]
    first = scrape(hosts)
    dropped = f'gale_bus_dropped_total{{job="gale",instance="{stopped}:5555"'
    node = hosts.api(asked, "/v1/nodes")["nodes"][0]["id"]
    send_signal(hosts, stopped, "gale:api", "STOP")
    try:
        ordering = hosts.start(asked, "python3", "-c", ORDERING, node, str(ORDERS))
        _, complaint = ordering.communicate(timeout=ORDERS_S)
    finally:
        send_signal(hosts, stopped, "gale:api", "CONT")
    assert ordering.returncode == 0, complaint
    all_is_well(hosts)
    last = until(hosts, lambda seen: seen.sum(dropped) > first.sum(dropped), "what it has missed")
    check(last, ["GaleBusDropped"], first=first)


@contextmanager
def of_another_version(hosts: LabHosts, lb: str) -> Iterator[None]:
    """Its processes find another version installed, as in the middle of an upgrade."""
    group = home(lb) / "supervisor" / "gale.conf"
    shipped = group.readlink()
    installed = home(lb) / "upgraded"
    metadata = installed / f"gale-{OTHER_VERSION}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: gale\nVersion: {OTHER_VERSION}\n")
    begins, first = "[program:", f'environment=PYTHONPATH="{installed}"\n'
    programs = shipped.read_text().split(begins)
    changed = [programs[0], *(each.replace("]\n", f"]\n{first}", 1) for each in programs[1:])]
    _supervise(hosts, lb, lambda: group.write_text(begins.join(changed)))
    try:
        yield
    finally:
        _supervise(hosts, lb, lambda: group.symlink_to(shipped))


def _supervise(hosts: LabHosts, lb: str, write: Callable[[], object]) -> None:
    """By another file, which `write` makes."""
    (home(lb) / "supervisor" / "gale.conf").unlink()
    write()
    done = hosts.supervisorctl(lb, "update")
    assert done.returncode == 0, done.stdout + done.stderr


def versions(hosts: LabHosts, lb: str) -> set[str | None]:
    try:
        return {each["version"] for each in hosts.api(lb, "/v1/status")["processes"].values()}
    except OSError:
        return set()


def test_one_lb_is_of_another_version(hosts: LabHosts) -> None:
    lb = hosts.lbs[0]
    build = f'gale_build_info{{job="gale",instance="{lb}:5555",version="{OTHER_VERSION}"'
    with of_another_version(hosts, lb):
        wait_for(lambda: versions(hosts, lb) == {OTHER_VERSION}, "all its processes to be anew")
        all_is_well(hosts)
        differ = until(hosts, lambda seen: seen.sum(build) == 1, "it to say so")
        check(differ, ["GaleVersionsDiffer"])


def test_the_flow_table_fills(hosts: LabHosts) -> None:
    """The last one, since it stays full for minutes."""
    entries = "gale_conntrack_entries{"
    with hold(hosts, count=MANY_FLOWS, spare=SPARE):
        filled = until(
            hosts,
            lambda seen: seen.sum(entries) >= 3 * MANY_FLOWS,
            "all LBs to have counted the flows",
        )
        check(filled, ["GaleFlowTableFilling"])
