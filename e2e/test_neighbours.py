"""A next hop that nobody knows yet costs no packet."""

from __future__ import annotations

from e2e.hosts import Hosts, traffic, wait_for

SYN_RETRANSMISSION_MS = 900
FORGET = "while :; do ip neighbour flush nud reachable nud stale nud delay; sleep 0.02; done"
"""Those that are known; one that is being asked for keeps the packets that wait for its answer."""


def test_the_first_packet_to_a_forgotten_neighbour_is_not_lost(hosts: Hosts, lb: str) -> None:
    """The LB forgets nodes and client fifty times a second, while new connections come.

    A packet lost to ARP would come again after a second, so no request may take that long.
    """
    requests = traffic(hosts, rate=100)
    wait_for(lambda: requests.results, "the first answer")
    forgetting = hosts.start(lb, "timeout", "8", "sh", "-c", FORGET)
    forgetting.communicate(timeout=30)
    seen = requests.stop()
    assert len(seen.results) >= 700
    assert not seen.failures, seen.errors
    assert seen.slowest_ms < SYN_RETRANSMISSION_MS
