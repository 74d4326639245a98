"""A next hop that nobody knows yet costs no packet."""

from __future__ import annotations

from e2e.hosts import Hosts, traffic, wait_for

SYN_RETRANSMISSION_MS = 900
FORGET = "while :; do ip neighbour flush nud reachable nud stale nud delay; sleep 0.02; done"
"""Those that are known; one that is being asked for keeps the packets that wait for its answer."""


def test_the_first_packet_to_a_forgotten_neighbour_is_not_lost(hosts: Hosts, lb: str) -> None:
    """The LB forgets nodes and client fifty times a second, while new connections come.

    A packet lost to ARP would come again after a second. If the LB lost those that wait for an
    answer, that would happen to hundreds of requests. It does happen to one in thousands, as on any
    Linux router with several CPUs: the kernel's neighbour table calls an entry valid a moment
    before it writes the address there (`__neigh_update` in net/core/neighbour.c), and what another
    CPU sends in that moment goes to 00:00:00:00:00:00.
    """
    requests = traffic(hosts, rate=100)
    wait_for(lambda: requests.results, "the first answer")
    forgetting = hosts.start(lb, "timeout", "8", "sh", "-c", FORGET)
    forgetting.communicate(timeout=30)
    seen = requests.stop()
    assert len(seen.results) >= 700
    assert not seen.failures, seen.errors
    late = [each for each in seen.results if each.took_ms > SYN_RETRANSMISSION_MS]
    assert len(late) < len(seen.results) / 100, late
