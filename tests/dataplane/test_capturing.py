"""`gale capture` as a person types it, of a dataplane process and real packets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.utils import rdpcap

from bus.commands import CommandError
from services.dataplane.capturing import LEASE_MS
from tests.dataplane.machines import (
    CLIENT,
    PORT,
    PRIVATE,
    PUBLIC,
    Site,
    compile_for,
    in_network,
    site,
)

GALE = str(Path(sys.executable).with_name("gale"))
# The first test may have to wait for a compiler.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def lb() -> Iterator[Site]:
    compile_for(besides="GALE_CAPTURE")
    with site() as made:
        made.bring_up()
        yield made


class Running:
    """A capture under way."""

    def __init__(self, lb: Site, *words: str) -> None:
        self.file = lb.directory / "packets.pcapng"
        command = [GALE, "capture", *words, "-w", str(self.file)]
        self.process = subprocess.Popen(
            command, env=lb.environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        assert self.said.startswith("capturing at"), self.said + self.process.communicate()[1]

    def end(self, how: signal.Signals = signal.SIGINT) -> str:
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> str:
        _, said = self.process.communicate(timeout=60)
        return said


def comments(file: Path) -> list[str]:
    """One of each frame."""
    found = [each.comments or [] for each in rdpcap(str(file))]
    assert all(len(each) == 1 for each in found)
    return [each[0].decode() for each in found]


def kinds(file: Path) -> set[tuple[str, str]]:
    """Of each frame, "enters" or "leaves" and the verdict."""
    parts = (each.replace(";", "").replace(":", "").split() for each in comments(file))
    return {(part[0], part[2]) for part in parts}


def ask_no_service(lb: Site) -> None:
    """A datagram that the LB's own stack gets."""
    with in_network(lb.client):
        ours = socket.socket(type=socket.SOCK_DGRAM)
    with ours:
        ours.sendto(b"anybody?", (PUBLIC, 9))


def attached(lb: Site) -> tuple[Any, ...]:
    filters = lb.inside(lb.lb, "tc", "filter", "show", "dev", "priv0", "ingress")
    return lb.attached_xdp(), filters


def test_a_connection_is_written_as_it_comes_and_goes(lb: Site) -> None:
    ordinary = attached(lb)
    running = Running(lb, "tcp", "and", "host", CLIENT, "and", "port", str(PORT))
    assert "xdp_public on pub0" in running.said
    assert "tc_private on priv0" in running.said
    assert lb.attached_xdp() != ordinary[0]
    connection = lb.connect()
    assert connection.echo()
    ask_no_service(lb)
    assert "packets lost" in running.end()
    assert running.process.returncode == 0
    assert attached(lb) == ordinary
    assert running.file.stat().st_mode & 0o777 == 0o600

    frames, said = rdpcap(str(running.file)), comments(running.file)
    ends = [(each[IP].src, each[IP].dst) for each in frames]
    syn, rewritten = frames[0], frames[1]
    assert said[0] == (
        "enters xdp_public; forward: a new flow: node chosen, port taken (l4_new_flow)"
    )
    assert said[1].startswith("leaves xdp_public; forward: ")
    assert (ends[0], ends[1]) == ((CLIENT, PUBLIC), (PRIVATE, connection.node))
    assert syn[TCP].flags == rewritten[TCP].flags == "S"
    assert abs(float(syn.time) - time.time()) < 300
    replies = [at for at, line in enumerate(said) if "(l4_reply)" in line]
    assert {ends[at] for at in replies} == {(connection.node, PRIVATE), (PUBLIC, CLIENT)}
    assert all(TCP in each for each in frames)
    assert connection.echo()


def test_each_verdict_is_written_and_only_what_was_asked_for(lb: Site) -> None:
    running = Running(lb, "host", CLIENT, "--json")
    assert lb.connect().echo()
    ask_no_service(lb)
    # A broken connection to a service is answered, and what comes from a martian dropped.
    script = (
        "from scapy.all import Ether, IP, TCP, sendp, get_if_hwaddr, getmacbyip;"
        f"to = Ether(dst=getmacbyip('{PUBLIC}'));"
        f"sendp([to/IP(src='{CLIENT}', dst='{PUBLIC}')/TCP(sport=7, dport={PORT}, flags='A'),"
        f" to/IP(src='127.0.0.9', dst='{PUBLIC}')/TCP(sport=7, dport={PORT}, flags='S')],"
        " iface='pub0', verbose=False)"
    )
    lb.inside(lb.client, sys.executable, "-c", script)
    running.end()
    assert {("enters", kind) for kind in ("pass", "forward", "answer")} <= kinds(running.file)
    assert {("leaves", kind) for kind in ("pass", "forward", "answer")} <= kinds(running.file)
    assert "drop" not in {kind for _, kind in kinds(running.file)}
    answers = [
        frame
        for frame, line in zip(rdpcap(str(running.file)), comments(running.file), strict=True)
        if "(no_flow_reset)" in line
    ]
    assert [each[TCP].flags for each in answers] == ["A", "R"]
    assert [each[IP].dst for each in answers] == [PUBLIC, CLIENT]

    running = Running(lb, "drop", "--packets", "1")
    lb.inside(lb.client, sys.executable, "-c", script)
    assert "1 packets are written" in running.wait()
    (frame,), (said,) = rdpcap(str(running.file)), comments(running.file)
    assert "; drop: from an address that no client can have (drop_martian_source)" in said
    assert frame[IP].src == "127.0.0.9"


def test_it_ends_when_whoever_captures_is_killed(lb: Site) -> None:
    ordinary = attached(lb)
    running = Running(lb, "--seconds", "3600")
    assert lb.connect().echo()
    while not running.file.stat().st_size > 2_000:
        time.sleep(0.01)
    running.process.kill()
    running.wait()
    killed_s = time.monotonic()
    with pytest.raises(CommandError, match="captured already"):
        lb.ask("capture", filter=[], kept=100, seconds=1)
    # The ordinary programs are back first, then what the others needed goes.
    while attached(lb) != ordinary or list((lb.bpf_dir / "capture").iterdir()):
        assert time.monotonic() < killed_s + 60, attached(lb)
        time.sleep(0.05)
    assert time.monotonic() > killed_s + LEASE_MS / 1_000 - 2
    assert len(rdpcap(str(running.file))) > 4
    assert lb.connect().echo()


def test_a_process_that_starts_again_puts_the_ordinary_programs_on(lb: Site) -> None:
    running = Running(lb)
    showing = lb.attached_xdp()
    connection = lb.connect()
    lb.kill(lb.processes[-1])
    assert connection.echo()
    lb.start()
    lb.until_ready()
    assert lb.attached_xdp() not in (None, showing)
    assert not list((lb.bpf_dir / "capture").iterdir())
    # The next renewal went to no process, or to the new one.
    said = running.wait()
    assert "does not answer any more" in said or "have been attached again since" in said
    assert running.process.returncode == 1
    assert connection.echo()


def test_bounds(lb: Site) -> None:
    assert "its time is over" in Running(lb, "--seconds", "1").wait()
    running = Running(lb, "--size", "1", "--bytes", "1500")
    connection = lb.connect()
    for _ in range(100_000):
        connection.echo(bytes(8_000) + b"\n")
        if running.process.poll() is not None:
            break
    assert "the file would be larger than 1 MB" in running.wait()
    assert 900_000 < running.file.stat().st_size <= 1_000_000
    assert len(rdpcap(str(running.file))) > 500


def test_a_wrong_filter_is_refused_in_one_line(lb: Site) -> None:
    command = [GALE, "capture", "port", "0", "-w", os.devnull]
    told = subprocess.run(
        command, env=lb.environment(), capture_output=True, text=True, check=False
    )
    assert (told.stderr, told.returncode) == ("filter: port '0', expected 1 to 65535\n", 2)
