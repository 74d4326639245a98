"""Whether what a client sends and fetches through a VIP arrives whole: small and quick."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.hosts import Hosts

FETCH = """
fetch() { curl --silent --max-time 20 --noproxy '*' "http://$1:8080/$2"; }
for i in $(seq 12); do fetch "$1" ""; done | sort -u | xargs
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


def pages_and_a_download(hosts: Hosts, vip: str) -> None:
    """Pages of every node, and a megabyte with its hash."""
    done = hosts.run(hosts.client, "bash", "-c", FETCH, "fetch", vip)
    assert done.stdout.split() == [*hosts.nodes, "whole"], done.stderr


def upload(hosts: Hosts, vip: str) -> None:
    """A megabyte there and back."""
    done = hosts.run(hosts.client, "python3", "-c", UPLOAD, vip)
    assert done.returncode == 0, done.stderr


def datagrams(hosts: Hosts, vip: str, size: int) -> None:
    """Twenty of so many bytes, and their answers."""
    words = ("python3", "-c", UDP_CLIENT, vip, "5300", "--count", "20", "--bytes", str(size))
    done = hosts.run(hosts.client, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lost"] == 0
