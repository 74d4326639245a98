"""A next hop that nobody knows yet costs no packet."""

from __future__ import annotations

from e2e.hosts import Hosts, traffic, wait_for
from e2e.traffic import Summary

SYN_RETRANSMISSION_MS = 900


def test_forgotten_neighbours_lose_no_packet(hosts: Hosts, lb: str) -> None:
    """The LB's ARP entries are flushed fifty times a second while new connections come.

    A first packet lost to ARP would come again after a second, so no request may take that long.
    """
    flush = f"ip neighbour flush dev {hosts.private_interface(lb)}"
    requests = traffic(hosts, rate=100)
    wait_for(lambda: requests.results, "the first answer")
    forgetting = hosts.start(lb, "timeout", "8", "sh", "-c", f"while {flush}; do sleep 0.02; done")
    forgetting.communicate(timeout=30)
    seen = requests.stop()
    assert len(seen.results) >= 700
    assert not seen.failures, seen.errors
    assert seen.slowest_ms < SYN_RETRANSMISSION_MS


def test_the_first_packet_to_each_node(hosts: Hosts, lb: str) -> None:
    """As above, but quiet: one flush, then at once a handful of connections."""
    for _ in range(10):
        hosts.run(lb, "ip", "neighbour", "flush", "all")
        seen = burst(hosts, 10)
        assert not seen.failures, seen.errors
        assert seen.slowest_ms < SYN_RETRANSMISSION_MS


def burst(hosts: Hosts, count: int) -> Summary:
    requests = traffic(hosts, rate=200)
    wait_for(lambda: len(requests.results) >= count, f"{count} answers")
    return requests.stop()
