"""Real clients, one LB, three nodes: what is asked is answered, by every node alike."""

from __future__ import annotations

import pytest

from e2e.hosts import Hosts, node_states, traffic, wait_for
from e2e.lab import plan

REQUESTS = 6000
"""So many that a tenth of a third is more than five standard deviations."""

ECHO_CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 9000), timeout=10)
stream = connection.makefile("rwb")
print(stream.readline().decode().strip())
for number in range(100):
    line = b"%d %s\\n" % (number, b"x" * 1000)
    stream.write(line)
    stream.flush()
    assert stream.readline() == line, number
print("echoed")
"""


@pytest.mark.anywhere
def test_every_request_is_answered_and_every_node_gets_its_share(hosts: Hosts) -> None:
    requests = traffic(hosts, rate=400)
    wait_for(lambda: len(requests.results) >= REQUESTS, f"{REQUESTS} answers", timeout_s=60)
    seen = requests.stop()
    assert not seen.failures, seen.errors
    third = 1 / len(hosts.nodes)
    for name, share in seen.shares(hosts.nodes).items():
        assert abs(share - third) < 0.1 * third, f"{name} answered {share:.1%}"


def test_a_large_download_arrives_whole(hosts: Hosts) -> None:
    url = f"http://{hosts.vip()}:8080/200m.bin"
    script = f"curl --silent --noproxy '*' {url} | sha256sum; curl --silent {url}.sha256"
    ours, theirs = hosts.run(hosts.client, "bash", "-c", script).stdout.splitlines()
    assert ours.split()[0] == theirs.split()[0]


def test_a_second_service_on_another_port(hosts: Hosts) -> None:
    done = hosts.run(hosts.client, "python3", "-c", ECHO_CLIENT, hosts.vip())
    assert done.returncode == 0, done.stderr
    name, echoed = done.stdout.split()
    assert name in hosts.nodes
    assert echoed == "echoed"


def test_what_is_no_service_reaches_the_lb_itself(hosts: Hosts) -> None:
    """The kernel's own answer to a port nobody listens on: refused, at once."""
    script = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 81), timeout=2)\n"
        "except ConnectionRefusedError: print('refused')\n"
    )
    done = hosts.run(hosts.client, "python3", "-c", script, plan.PUBLIC.address(10))
    assert done.stdout.strip() == "refused", done.stderr


def test_the_api_says_the_same(hosts: Hosts, lb: str) -> None:
    status = hosts.api(lb, "/v1/status")
    assert set(status["processes"]) == {"dataplane", "health", "quorum", "api"}
    assert node_states(hosts, lb) == dict.fromkeys(hosts.nodes, "up")
    quorum = hosts.api(lb, "/v1/quorum")
    assert quorum["leader"] == lb
    assert quorum["quorum"] is True
