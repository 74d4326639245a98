"""A file that goes bad harms nobody who runs already, and is named to whoever starts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from e2e.hosts import (
    Hosts,
    pid_of,
    read_config,
    send_signal,
    traffic,
    wait_for,
    write_config,
)

PROCESSES = ("dataplane", "health", "quorum", "api")
BAD_LINE = 'clients_port = "eighty"'


@pytest.fixture
def bad_line_number(hosts: Hosts, lb: str) -> Iterator[int]:
    """The LB's configuration with one wrong line, for as long as the test lasts."""
    good = read_config(hosts, lb)
    lines = good.splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("clients_port"))
    lines[index] = BAD_LINE
    write_config(hosts, lb, "\n".join(lines) + "\n")
    yield index + 1
    write_config(hosts, lb, good)


def pids(hosts: Hosts, lb: str) -> list[int]:
    return [pid_of(hosts, lb, f"gale:{process}") for process in PROCESSES]


def log_names(hosts: Hosts, lb: str, process: str, line: int) -> bool:
    """Whether a process has logged the file, the line and the key."""
    tail = hosts.supervisorctl(lb, "tail", "-20000", f"gale:{process}").stdout
    return f"{hosts.environment(lb)['GALE_CONFIG']}:{line}: local.clients_port" in tail


def test_gale_check_names_the_line_and_the_key(hosts: Hosts, lb: str, bad_line_number: int) -> None:
    done = hosts.run(lb, "gale", "check", hosts.environment(lb)["GALE_CONFIG"])
    assert done.returncode == 2
    assert f":{bad_line_number}: local.clients_port" in done.stdout + done.stderr


def test_running_processes_keep_what_they_have(hosts: Hosts, lb: str, bad_line_number: int) -> None:
    before = pids(hosts, lb)
    requests = traffic(hosts, rate=100)
    hosts.supervisorctl(lb, "signal", "HUP", "gale:*")
    for process in PROCESSES:
        wait_for(partial(log_names, hosts, lb, process, bad_line_number), f"{process} to refuse it")
    wait_for(lambda: len(requests.results) >= 100, "a hundred answers")
    assert not requests.stop().failures
    assert pids(hosts, lb) == before
    service = hosts.api(lb, "/v1/services")["services"][0]
    assert service["port"] == 8080


def test_a_process_that_starts_with_it_stays_stopped_until_it_is_mended(
    hosts: Hosts, lb: str, bad_line_number: int
) -> None:
    requests = traffic(hosts, rate=100)
    send_signal(hosts, lb, "gale:health", "KILL")
    wait_for(lambda: "EXITED" in hosts.supervisorctl(lb, "status", "gale:health").stdout, "EXITED")
    assert log_names(hosts, lb, "health", bad_line_number)
    assert not requests.stop().failures


def test_mended_it_starts_again(hosts: Hosts, lb: str) -> None:
    hosts.supervisorctl(lb, "start", "gale:health")
    assert pid_of(hosts, lb, "gale:health")
    wait_for(lambda: len(hosts.api(lb, "/v1/nodes")["nodes"]) == len(hosts.nodes), "all nodes")
