"""Ways to the nodes that are not plain, and services of many ports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest

from e2e.hosts import LabHosts, lab_hosts, node_states, verdicts, wait_for
from e2e.lab import Plan
from e2e.lab.files import toml_text

SERVICES = [
    {"name": "default", "port": 8080, "mode": "l4"},
    {"name": "many", "port": "8100-8199", "node_port": 8080, "mode": "l4"},
    {"name": "echo", "port": 9000, "mode": "l3"},
    {"name": "gue", "port": 9001, "mode": "l3", "encap": "gue"},
]
NARROW = 1400
ROUTER_SIDE = "10.82.0.254"
UPLOAD = """
import socket, sys, threading
flow = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
stream = flow.makefile("rb")
stream.readline()
sent = bytes(100_000)
threading.Thread(target=flow.sendall, args=[sent], daemon=True).start()
print(len(stream.read(len(sent))))
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("routes") / "extra.toml"
    extra.write_text(toml_text({"services": SERVICES}))
    with lab_hosts(Plan(nodes=1), say, extra) as machines:
        yield machines


def sh(hosts: LabHosts, who: str, text: str) -> CompletedProcess[str]:
    done = hosts.run(who, "sh", "-c", text)
    assert done.returncode == 0, (text, done.stderr)
    return done


def page(hosts: LabHosts, port: int) -> str:
    url = f"http://{hosts.vip()}:{port}/"
    done = hosts.run(hosts.client, "curl", "--silent", "--max-time", "5", "--noproxy", "*", url)
    return done.stdout.strip()


@pytest.mark.parametrize("port", [8080, 8100, 8150, 8199])
def test_every_port_of_a_range_is_served(hosts: LabHosts, port: int) -> None:
    assert page(hosts, port) == "node-0"


@pytest.mark.parametrize("port", [8099, 8200])
def test_no_port_beside_a_range_is(hosts: LabHosts, port: int) -> None:
    assert page(hosts, port) == ""


def test_a_next_hop_of_the_other_family(hosts: LabHosts, lb: str) -> None:
    """As in a network whose routers have IPv6 addresses only (RFC 5549)."""
    words = sh(hosts, "node-0", "ip -6 -oneline address show dev priv0 scope link").stdout.split()
    there = words[3].partition("/")[0]
    before = sh(hosts, lb, "ip route get 10.81.0.20").stdout
    processes = hosts.supervisorctl(lb, "pid", "gale:dataplane").stdout
    sh(hosts, lb, f"ip route add 10.81.0.20/32 via inet6 {there} dev priv0")
    try:
        assert "inet6" in sh(hosts, lb, "ip route get 10.81.0.20").stdout, before
        for _ in range(20):
            assert page(hosts, 8080) == "node-0"
        wait_for(lambda: verdicts(hosts, lb, "xdp_public")["l4_new_flow"], "XDP to know the way")
        assert hosts.supervisorctl(lb, "pid", "gale:dataplane").stdout == processes
    finally:
        sh(hosts, lb, "ip route del 10.81.0.20/32")


@pytest.fixture(scope="module")
def narrow_hop(hosts: LabHosts) -> None:
    """From here on the node is behind a router whose link to it is narrow."""
    lb = hosts.lbs[0]
    quiet = "sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.priv0.accept_redirects=0"
    sh(hosts, lb, f"{quiet}; ip route add 10.82.0.0/24 via 10.81.0.254 dev priv0")
    sh(hosts, "router", f"ip address add {ROUTER_SIDE}/24 dev priv0")
    sh(
        hosts,
        "node-0",
        f"{quiet}; ip address add 10.82.0.20/24 dev priv0; ip address del 10.81.0.20/24 dev priv0;"
        f" ip route replace default via {ROUTER_SIDE} mtu 1500",
    )
    sh(
        hosts,
        "router",
        f"ip route replace 10.82.0.0/24 dev priv0 src {ROUTER_SIDE} mtu lock {NARROW}",
    )
    wait_for(lambda: "up" in node_states(hosts, lb).values(), "the node at its new address", 30)
    wait_for(lambda: page(hosts, 8080) == "node-0", "a page", 30)


@pytest.mark.parametrize("port", [9000, 9001], ids=["ipip", "gue"])
@pytest.mark.usefixtures("narrow_hop")
def test_an_upload_over_a_narrow_hop(hosts: LabHosts, lb: str, port: int) -> None:
    """Mode l3: the router's answer to our outer packet becomes one to the client."""
    # The LB and the client have learnt of the way from the case before.
    sh(hosts, lb, "ip route flush cache")
    sh(hosts, hosts.client, "ip route flush cache")
    before = verdicts(hosts, lb)["too_big_answered"]
    done = hosts.run(hosts.client, sys.executable, "-c", UPLOAD, hosts.vip(), str(port))
    assert done.stdout.strip() == "100000", done.stderr
    wait_for(
        lambda: verdicts(hosts, lb)["too_big_answered"] > before, "the count of what was answered"
    )
