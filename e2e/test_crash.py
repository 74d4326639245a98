"""What is killed, stopped or paused on an LB loses no packet; what dies on a node is left alone.

A lost packet of a new connection shows as a request of a second or more: the client's kernel sends
its SYN again after that time. So "nothing lost" is: no failure, and no answer that late.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from functools import partial

import pytest

from e2e.hosts import (
    Hosts,
    node_states,
    pid_of,
    send_signal,
    serves_again,
    service_states,
    traffic,
    wait_for,
    with_steady_rig,
)
from e2e.traffic import Summary

PROCESSES = ("dataplane", "health", "quorum", "api")
RETRANSMISSION_MS = 900
CHECK_INTERVAL_MS = 500
CHECK_TIMEOUT_MS = 500
ALLOWANCE_MS = 100
DOWNLOAD = "/run/gale-e2e-download"


def steady(attempt: Callable[[], Summary]) -> Summary:
    return with_steady_rig(attempt, lambda seen: seen.largest_lag_ms)


def nothing_lost(seen: Summary) -> None:
    assert seen.results
    assert not seen.failures, seen.errors
    assert seen.slowest_ms < RETRANSMISSION_MS, f"a packet was sent again: {seen.slowest_ms} ms"


@pytest.mark.parametrize(
    "process",
    # Among several LBs the quorum process's end moves the VIP: see test_cluster.
    [
        *(pytest.param(name, marks=pytest.mark.anywhere) for name in PROCESSES if name != "quorum"),
        "quorum",
    ],
)
def test_sigkill_of_a_process(hosts: Hosts, lb: str, process: str) -> None:
    def attempt() -> Summary:
        requests = traffic(hosts, rate=200)
        wait_for(lambda: requests.results, "the first answer")
        pid = send_signal(hosts, lb, f"gale:{process}", "KILL")
        killed_at = time.monotonic()
        wait_for(lambda: serves_again(hosts, lb, process, pid, killed_at), f"{process} again")
        time.sleep(0.5)  # its first decisions are under way, and must do no harm either
        return requests.stop()

    nothing_lost(steady(attempt))
    assert node_states(hosts, lb) == dict.fromkeys(hosts.nodes, "up")


def test_a_pause_of_all_four(hosts: Hosts, lb: str) -> None:
    def attempt() -> Summary:
        requests = traffic(hosts, rate=200)
        wait_for(lambda: requests.results, "the first answer")
        for process in PROCESSES:
            send_signal(hosts, lb, f"gale:{process}", "STOP")
        time.sleep(5)
        for process in PROCESSES:
            send_signal(hosts, lb, f"gale:{process}", "CONT")
        resumed_at = time.monotonic()
        for process in PROCESSES:
            wait_for(partial(serves_again, hosts, lb, process, 0, resumed_at), process)
        time.sleep(1.5)  # more than checks_timeout: whoever was wrongly missed is down by now
        return requests.stop()

    nothing_lost(steady(attempt))
    assert node_states(hosts, lb) == dict.fromkeys(hosts.nodes, "up")


@pytest.mark.timeout(300)
def test_a_download_outlives_the_whole_control_plane(hosts: Hosts, lb: str) -> None:
    url = f"http://{hosts.vip()}:8080/200m.bin"
    words = ["curl", "--silent", "--noproxy", "*", "--limit-rate", "5M", "-o", DOWNLOAD, url]
    download = hosts.start(hosts.client, *words)
    try:
        arrives(hosts, download)
        hosts.supervisorctl(lb, "stop", "gale:*")
        assert [pid_of(hosts, lb, f"gale:{process}") for process in PROCESSES] == [0, 0, 0, 0]
        arrives(hosts, download)
        hosts.supervisorctl(lb, "start", "gale:*")
        all_serve(hosts, lb)
        arrives(hosts, download)

        supervisord = hosts.supervisord_pid(lb)
        hosts.run(lb, "kill", "-KILL", str(supervisord))
        wait_for(lambda: not any(copies(hosts, lb).values()), "the children to die with it")
        arrives(hosts, download)
        hosts.start_supervisord(lb)
        all_serve(hosts, lb)
        assert copies(hosts, lb) == dict.fromkeys(PROCESSES, 1)
        arrives(hosts, download)
        download.kill()
        download.wait()
        assert arrived_as_it_is(hosts)
    finally:
        download.kill()
        hosts.run(hosts.client, "rm", "-f", DOWNLOAD)


def arrives(hosts: Hosts, download: subprocess.Popen[str], more_bytes: int = 8 << 20) -> None:
    """The download goes on: some megabytes more, and it is not over yet."""

    def size() -> int:
        text = hosts.run(hosts.client, "stat", "-c", "%s", DOWNLOAD).stdout.strip()
        return int(text or 0)

    begin = size()
    wait_for(lambda: size() >= begin + more_bytes, "the download to go on", every_s=0.2)
    assert download.poll() is None, "the download was over too early to show anything"


def arrived_as_it_is(hosts: Hosts) -> bool:
    """What has arrived of the file, beside so much of it as a node itself has it."""
    ours = hosts.run(hosts.client, "bash", "-c", f"stat -c %s {DOWNLOAD}; sha256sum < {DOWNLOAD}")
    size, digest = ours.stdout.splitlines()
    url = "http://127.0.0.1:8080/200m.bin"
    script = f"curl --silent --noproxy '*' {url} | head -c {size} | sha256sum"
    return hosts.run(hosts.nodes[0], "bash", "-c", script).stdout.strip() == digest


def all_serve(hosts: Hosts, lb: str) -> None:
    started_at = time.monotonic()
    for process in PROCESSES:
        wait_for(partial(serves_again, hosts, lb, process, 0, started_at), process)


def copies(hosts: Hosts, lb: str) -> dict[str, int]:
    """How many of each process live on the LB, whoever started them."""
    script = 'for name; do pgrep --ns $$ --nslist net --full --count "bin/gale-$name"; done'
    counts = hosts.run(lb, "bash", "-c", script, "copies", *PROCESSES).stdout.split()
    return {name: int(count) for name, count in zip(PROCESSES, counts, strict=True)}


def test_a_killed_server_is_left_within_one_check(hosts: Hosts, lb: str) -> None:
    victim = hosts.nodes[1]

    def attempt() -> Summary:
        requests = traffic(hosts, rate=300)
        wait_for(lambda: requests.results, "the first answer")
        send_signal(hosts, victim, "server:nginx", "KILL")
        wait_for(lambda: service_states(hosts, lb)[victim] == "down", f"{victim} down")
        time.sleep(1)
        seen = requests.stop()
        hosts.supervisorctl(victim, "start", "server:nginx")
        wait_for(lambda: service_states(hosts, lb)[victim] == "up", f"{victim} up again")
        return seen

    # If the node looks just then it may be noticed before anything is sent there.
    seen = next(seen for tries in range(3) if (seen := steady(attempt)).failures or tries == 2)
    assert seen.failures, "nothing was sent to the node that died"
    assert set(seen.errors) <= {"refused", "reset"}, seen.errors
    assert seen.failing_ms <= CHECK_INTERVAL_MS + ALLOWANCE_MS
    answers_again(hosts, victim)


def test_a_hung_server_is_left_within_one_check_and_its_timeout(hosts: Hosts, lb: str) -> None:
    victim = hosts.nodes[2]

    def attempt() -> Summary:
        requests = traffic(hosts, rate=200)
        wait_for(lambda: requests.results, "the first answer")
        send_signal(hosts, victim, "server:nginx", "STOP")
        wait_for(lambda: service_states(hosts, lb)[victim] == "down", f"{victim} down")
        time.sleep(1)
        send_signal(hosts, victim, "server:nginx", "CONT")
        seen = requests.stop()
        wait_for(lambda: service_states(hosts, lb)[victim] == "up", f"{victim} up again")
        return seen

    seen = steady(attempt)
    held = [result.sent_ms for result in seen.results if result.took_ms > RETRANSMISSION_MS]
    assert held, "nothing was sent to the node that hung"
    assert max(held) - min(held) <= CHECK_INTERVAL_MS + CHECK_TIMEOUT_MS + ALLOWANCE_MS
    answers_again(hosts, victim)


def answers_again(hosts: Hosts, node: str) -> None:
    requests = traffic(hosts, rate=100)
    wait_for(lambda: requests.since(0).answers[node], f"an answer of {node}")
    assert not requests.stop().failures
