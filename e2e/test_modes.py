"""Each mode as a client sees it: pages, bulk both ways, datagrams, fragments, all through the VIP.

One lab per mode. What is promised of L2 and L3 besides: replies go from the node to the client and
never through the LB, which both the LB's counters and a capture on all its interfaces confirm.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from e2e import whole
from e2e.hosts import (
    Hosts,
    LabHosts,
    lab_hosts,
    node_states,
    service_states,
    traffic,
    verdicts,
    wait_for,
)
from e2e.lab import Plan
from e2e.lab.files import toml_text
from e2e.lab.plan import PRIVATE, SERVICES

FRAGMENTED_BYTES = 4000
NARROW_MTU = 1500
OLD_FLOWS = """
import socket, sys
flows = [socket.create_connection((sys.argv[1], 9000), timeout=10) for _ in range(30)]
streams = [flow.makefile("rwb") for flow in flows]
print(*(stream.readline().decode().strip() for stream in streams), flush=True)
sys.stdin.readline()
for stream in streams:
    stream.write(b"still there\\n")
    stream.flush()
    assert stream.readline() == b"still there\\n"
print("all echoed")
"""
UPLOAD = """
import socket, sys, threading
flow = socket.create_connection((sys.argv[1], 9000), timeout=20)
stream = flow.makefile("rb")
stream.readline()
sent = bytes(range(256)) * 8192
threading.Thread(target=flow.sendall, args=[sent]).start()
assert stream.read(len(sent)) == sent
print("all echoed")
"""
LONGEST_DATAGRAM = """
import socket, sys, time
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
probe.connect((sys.argv[1], 5300))
probe.settimeout(0.3)
# The LB learns of its link's new length a moment after it has it.
deadline = time.monotonic() + 10
while time.monotonic() < deadline and probe.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1500:
    try:
        probe.send(bytes(1472))
        probe.recv(4000)
        break
    except OSError:
        pass
print(probe.getsockopt(socket.IPPROTO_IP, IP_MTU))
"""

CUT_DATAGRAMS = """
import socket, sys, time
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0
for size in (1472, 4000):
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
    asking.connect((sys.argv[1], 5300))
    asking.settimeout(0.3)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        asking.send(bytes(size))
        try:
            print(len(asking.recv(65535).partition(b" ")[2]))
            break
        except TimeoutError:
            pass
"""


@pytest.fixture(scope="module", params=["l2", "l3", "l4"])
def hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("modes") / "extra.toml"
    ours = [{"name": one.name, "port": one.port, "protocol": one.protocol} for one in SERVICES]
    extra.write_text(toml_text({"services": [*ours, whole.IPERF]}))
    with lab_hosts(Plan(mode=request.param), say, extra) as machines:
        yield machines


@pytest.fixture
def mode(hosts: Hosts, lb: str) -> str:
    return str(hosts.api(lb, "/v1/status")["mode"])


def test_pages(hosts: Hosts) -> None:
    url = f"http://{hosts.vip()}:8080/"
    done = hosts.run(hosts.client, "curl", "--silent", "--noproxy", "*", url)
    assert done.stdout.strip() in hosts.nodes
    requests = traffic(hosts, rate=200)
    wait_for(lambda: len(requests.results) >= 600, "600 answers")
    seen = requests.stop()
    assert not seen.failures, seen.errors
    assert set(seen.answers) == set(hosts.nodes)


def test_a_large_download_arrives_whole(hosts: Hosts) -> None:
    whole.large_download(hosts, hosts.vip())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk(hosts: Hosts, direction: str) -> None:
    whole.bulk(hosts, hosts.vip(), direction)


def test_queries_by_udp_are_answered_by_every_node(hosts: Hosts) -> None:
    seen = whole.exchanged(hosts, hosts.vip(), "--count", "300", "--bytes", "40")
    assert seen["lost"] == 0
    assert set(seen["answers"]) == set(hosts.nodes)


def test_datagrams_in_fragments_both_ways(hosts: Hosts, lb: str) -> None:
    before = verdicts(hosts, lb)
    seen = whole.exchanged(hosts, hosts.vip(), "--count", "20", "--bytes", str(FRAGMENTED_BYTES))
    assert seen["lost"] == 0
    assert sum(seen["answers"].values()) == 20
    wait_for(
        lambda: verdicts(hosts, lb)["fragment_forwarded"] >= before["fragment_forwarded"] + 40,
        "two later fragments of each datagram to be counted",
    )


def test_a_fragment_before_its_first_is_counted_by_name(hosts: Hosts, lb: str) -> None:
    in_order = whole.exchanged(hosts, hosts.vip(), "--raw-fragments", "first-first")
    assert in_order["lost"] == 0
    before = verdicts(hosts, lb)
    out_of_order = whole.exchanged(hosts, hosts.vip(), "--raw-fragments", "second-first")
    assert out_of_order["lost"] == 1
    wait_for(
        lambda: verdicts(hosts, lb)["drop_fragment_alone"] > before["drop_fragment_alone"],
        "the fragment to be counted",
    )


def captured(hosts: Hosts, lb: str, wanted: str) -> int:
    """How many packets matching `wanted` a capture on the LB sees while requests run."""
    script = 'tcpdump -n -i any -w /dev/null "$1" & read -r line; kill -INT $!; wait'
    capture = hosts.start(lb, "sh", "-c", script, "capture", wanted)
    assert capture.stderr is not None
    for line in capture.stderr:
        if "listening on" in line:
            break
    requests = traffic(hosts, rate=100)
    wait_for(lambda: len(requests.results) >= 100, "100 answers")
    seen = requests.stop()
    _, complaint = capture.communicate(input="\n", timeout=20)
    assert not seen.failures, seen.errors
    counts = [line.split()[0] for line in complaint.splitlines() if "captured" in line]
    return int(counts[0])


def test_replies_pass_the_lb_in_l4_and_only_there(hosts: Hosts, lb: str, mode: str) -> None:
    """Runs after the tests above, so the counters are those of every kind of traffic."""
    replies = captured(hosts, lb, f"src host {hosts.vip()} and src port 8080")
    seats = [
        seat for service in hosts.api(lb, "/v1/services")["services"] for seat in service["nodes"]
    ]
    packets_out = sum(seat["packets_out"] for seat in seats)
    assert sum(seat["packets_in"] for seat in seats) > 0
    if mode == "l4":
        assert replies > 0
        assert packets_out > 0
        assert verdicts(hosts, lb)["l4_reply"] > 0
    else:
        assert replies == 0
        assert packets_out == 0
        assert verdicts(hosts, lb)["l4_reply"] == 0
        assert verdicts(hosts, lb)[f"{mode}_forwarded"] > 0


def test_a_stopped_node_gets_no_new_flow_and_in_l4_keeps_its_old_ones(
    hosts: Hosts, lb: str, mode: str
) -> None:
    victim = hosts.nodes[2]
    ask = ("curl", "--silent", "--noproxy", "*", "--request", "POST")
    old = hosts.start(hosts.client, "python3", "-c", OLD_FLOWS, hosts.vip())
    assert old.stdout is not None
    assert victim in old.stdout.readline().split()
    hosts.run(victim, *ask, "http://127.0.0.1:5556/stop")
    wait_for(lambda: node_states(hosts, lb)[victim] != "up", f"{victim} to be taken out")
    requests = traffic(hosts, rate=200)
    wait_for(lambda: len(requests.results) >= 200, "200 answers")
    seen = requests.stop()
    echoed, complaint = old.communicate(input="\n", timeout=30)
    hosts.run(victim, *ask, "http://127.0.0.1:5556/start")
    assert not seen.failures, seen.errors
    assert set(seen.answers) == set(hosts.nodes) - {victim}
    if mode == "l4":
        assert echoed.split() == ["all", "echoed"], complaint
    wait_for(lambda: node_states(hosts, lb)[victim] == "up", f"{victim} up again")
    again = traffic(hosts, rate=100)
    wait_for(lambda: again.since(0).answers[victim], f"an answer of {victim}")
    assert not again.stop().failures


REFUSED = """
import socket, sys, time
begin = time.monotonic()
seen = []
for kind, port in ((socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, 5300)):
    one = socket.socket(socket.AF_INET, kind)
    one.settimeout(5)
    try:
        one.connect((sys.argv[1], port))
        one.send(b"anybody?")
        one.recv(100)
        seen.append("answered")
    except ConnectionRefusedError:
        seen.append("refused")
    except OSError as error:
        seen.append(type(error).__name__)
print(*seen, round(time.monotonic() - begin, 2))
"""


def test_without_any_node_clients_are_refused_at_once(hosts: Hosts, lb: str) -> None:
    """TCP by RST, UDP by port unreachable: so they turn to somebody else, instead of waiting."""
    servers = ("server:nginx", "server:udp")
    try:
        for node in hosts.nodes:
            hosts.supervisorctl(node, "stop", *servers)
        wait_for(lambda: judged(hosts, lb) == {"down"}, "all nodes down")
        wait_for(lambda: verdicts_of_one(hosts, lb) > 0, "packets to be refused for want of nodes")
        done = hosts.run(hosts.client, "python3", "-c", REFUSED, hosts.vip())
        tcp, udp, seconds = done.stdout.split()
        assert (tcp, udp) == ("refused", "refused"), done.stderr
        assert float(seconds) < 1
    finally:
        for node in hosts.nodes:
            hosts.supervisorctl(node, "start", *servers)
        wait_for(lambda: judged(hosts, lb) == {"up"}, "all nodes up again")


def judged(hosts: Hosts, lb: str) -> set[str]:
    """What the LB thinks of the two servers that are stopped, on all nodes."""
    services = ("default", "udp")
    return {state for each in services for state in service_states(hosts, lb, each).values()}


def verdicts_of_one(hosts: Hosts, lb: str) -> int:
    """Packets that were refused because no node is left, after one more client has tried."""
    hosts.run(hosts.client, "python3", "-c", REFUSED, hosts.vip())
    return verdicts(hosts, lb)["no_node_refused"]


@pytest.fixture
def heavy(hosts: Hosts) -> Iterator[str]:
    """A node of weight 2 among others of weight 1, for as long as the test lasts."""
    node = hosts.nodes[0]
    path = hosts.environment(node)["GALE_CONFIG"]
    text = hosts.run(node, "cat", path).stdout
    hosts.run(node, "tee", path, stdin=text.replace("[node]", "[node]\nweight = 2"))
    hosts.supervisorctl(node, "signal", "HUP", "gale-node:agent")
    yield node
    hosts.run(node, "tee", path, stdin=text)
    hosts.supervisorctl(node, "signal", "HUP", "gale-node:agent")


def test_a_node_of_twice_the_weight_answers_twice_as_often(
    hosts: Hosts, lb: str, heavy: str
) -> None:
    half = 2 / (len(hosts.nodes) + 1)

    def share() -> float:
        nodes = hosts.api(lb, "/v1/nodes")["nodes"]
        return float(next(node["share"] for node in nodes if node["name"] == heavy))

    wait_for(lambda: abs(share() - half) < 0.02, f"{heavy} to have {half:.0%} of the ring")
    requests = traffic(hosts, rate=300)
    wait_for(lambda: len(requests.results) >= 1000, "a thousand answers")
    seen = requests.stop()
    assert not seen.failures, seen.errors
    assert abs(seen.shares(hosts.nodes)[heavy] - half) < 0.1


PAGES = """
import sys, urllib.request
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for _ in range(20):
    print(direct.open(f"http://{sys.argv[1]}:8080/", timeout=5).read().decode().strip())
"""


def test_a_node_as_a_client(hosts: Hosts, mode: str) -> None:
    """In L4 it is one like any other, by way of the router; in L2 and L3 it has the VIP itself."""
    node = hosts.nodes[0]
    done = hosts.run(node, "python3", "-c", PAGES, hosts.vip())
    seen = done.stdout.split()
    assert len(seen) == 20, done.stderr
    assert (set(seen) == {node}) is (mode != "l4"), seen


def test_the_lb_is_no_client_of_its_own(hosts: Hosts, lb: str) -> None:
    """Its packets never come in by an interface, so nobody answers where the VIP is."""
    done = hosts.run(lb, "python3", "-c", REFUSED, hosts.vip())
    tcp, udp, seconds = done.stdout.split()
    assert "answered" not in (tcp, udp), done.stderr
    assert float(seconds) < 10


@pytest.fixture
def by_the_nodes_side(hosts: Hosts, lb: str) -> Iterator[str]:
    """A node whose way to the VIP leads to the LB's private side."""
    node = hosts.nodes[0]
    shown = hosts.run(lb, "ip", "-4", "-json", "address", "show", "dev", PRIVATE.interface).stdout
    way = (f"{hosts.vip()}/32", "via", json.loads(shown)[0]["addr_info"][0]["local"])
    hosts.run(node, "ip", "route", "add", *way)
    yield node
    hosts.run(node, "ip", "route", "del", *way)


def test_a_client_on_the_nodes_side_is_refused_at_once(
    hosts: Hosts, lb: str, mode: str, by_the_nodes_side: str
) -> None:
    done = hosts.run(by_the_nodes_side, "python3", "-c", REFUSED, hosts.vip())
    tcp, udp, seconds = done.stdout.split()
    if mode != "l4":
        assert (tcp, udp) == ("answered", "answered"), done.stderr
        return
    assert (tcp, udp) == ("refused", "refused"), done.stderr
    assert float(seconds) < 1
    wait_for(lambda: verdicts(hosts, lb)["hairpin_refused"] >= 2, "both to be counted by name")


@pytest.fixture
def narrow(hosts: Hosts, lb: str) -> Iterator[int]:
    """The LB's private link without room for outer headers, while the test lasts; its MTU."""
    shown = hosts.run(lb, "ip", "-json", "link", "show", PRIVATE.interface).stdout
    usual_mtu = json.loads(shown)[0]["mtu"]
    hosts.run(lb, "ip", "link", "set", PRIVATE.interface, "mtu", str(NARROW_MTU))
    yield NARROW_MTU
    hosts.run(lb, "ip", "link", "set", PRIVATE.interface, "mtu", str(usual_mtu))
    hosts.run(hosts.client, "ip", "route", "flush", "cache")


def test_uploads_and_datagrams_over_a_link_without_room(
    hosts: Hosts, mode: str, narrow: int
) -> None:
    """In L3 TCP's segments are kept short enough by the nodes; who sends longer packets is told."""
    done = hosts.run(hosts.client, "python3", "-c", UPLOAD, hosts.vip())
    assert done.stdout.split() == ["all", "echoed"], done.stderr
    done = hosts.run(hosts.client, "python3", "-c", LONGEST_DATAGRAM, hosts.vip())
    assert int(done.stdout) == (narrow - 20 if mode == "l3" else narrow), done.stderr


@pytest.mark.usefixtures("narrow")
def test_a_sender_that_allows_its_datagrams_to_be_cut(hosts: Hosts) -> None:
    """Nobody cuts them on the way to the node. In L3 the sender is told that they are too long
    although it has not asked to be, and cuts them itself, also those that it has cut before.
    """
    hosts.run(hosts.client, "ip", "route", "flush", "cache")
    done = hosts.run(hosts.client, "python3", "-c", CUT_DATAGRAMS, hosts.vip())
    assert done.stdout.split() == ["1472", "4000"], done.stderr
