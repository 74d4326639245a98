"""Whether what a client sends and fetches through a VIP arrives whole, small or large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.hosts import Hosts, verdicts

UDP_PORT = 5300
IPERF = {"name": "iperf", "port": 5201, "affinity": "client"}
"""iperf3's two connections, one that controls and one that carries, belong to one node."""
LEAST_BITS_PER_SECOND = 100e6
# So many pages that one of three nodes sends none of them once in four million times.
FETCH = """
fetch() { curl --silent --max-time 20 --noproxy '*' "http://$1:$port/$2"; }
port=$2
for i in $(seq 40); do fetch "$1" ""; done | sort -u | xargs
[ "$(fetch "$1" 1m.bin | sha256sum | cut -c-64)" = "$(fetch "$1" 1m.bin.sha256 | cut -c-64)" ] \\
    && echo whole
"""
UPLOAD = """
import os, socket, sys, threading
flow = socket.create_connection((sys.argv[1], 9000), timeout=20)
stream = flow.makefile("rb")
stream.readline()
sent = os.urandom(1_000_000)
threading.Thread(target=flow.sendall, args=[sent]).start()
assert stream.read(len(sent)) == sent
"""
UDP_CLIENT = Path(__file__).with_name("datagrams.py").read_text()


def pages_and_a_download(hosts: Hosts, vip: str, port: int = 8080) -> None:
    """Pages of every node, and a megabyte with its hash."""
    done = hosts.run(hosts.client, "bash", "-c", FETCH, "fetch", vip, str(port))
    assert done.stdout.split() == [*hosts.nodes, "whole"], done.stderr


def upload(hosts: Hosts, vip: str) -> None:
    """A megabyte there and back."""
    done = hosts.run(hosts.client, "python3", "-c", UPLOAD, vip)
    assert done.returncode == 0, done.stderr


def exchanged(hosts: Hosts, vip: str, *options: str) -> dict[str, Any]:
    """What became of the datagrams that datagrams.py sent from the client."""
    done = hosts.run(hosts.client, "python3", "-c", UDP_CLIENT, vip, str(UDP_PORT), *options)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def datagrams(hosts: Hosts, vip: str, size: int) -> None:
    """Twenty of so many bytes, and their answers."""
    before = [verdicts(hosts, lb) for lb in hosts.lbs]
    answer = exchanged(hosts, vip, "--count", "20", "--bytes", str(size))
    since = [verdicts(hosts, lb) - seen for lb, seen in zip(hosts.lbs, before, strict=True)]
    assert answer["lost"] == 0, (answer, since)


def large_download(hosts: Hosts, vip: str) -> None:
    """Two hundred megabytes, with their hash."""
    url = f"http://{vip}:8080/200m.bin"
    fetch = "curl --silent --noproxy '*'"
    script = f"{fetch} {url} | sha256sum; {fetch} {url}.sha256"
    ours, theirs = hosts.run(hosts.client, "bash", "-c", script).stdout.splitlines()
    assert ours.split()[0] == theirs.split()[0]


def bulk(hosts: Hosts, vip: str, direction: str) -> None:
    """Two seconds of iperf3, `up` or `down`, to a service that the lab was given (`IPERF`)."""
    options = ["--reverse"] if direction == "down" else []
    words = ["iperf3", "--json", "--time", "2", "--client", vip, *options]
    answer = json.loads(hosts.run(hosts.client, *words).stdout)
    assert "error" not in answer, answer["error"]
    assert answer["end"]["sum_received"]["bits_per_second"] > LEAST_BITS_PER_SECOND
