"""`snat = false`: servers see their clients' own addresses. Their answers come back through the
load balancer by the nodes' routes.

With one LB that way is its private address. With several it is one of the VIP's SNAT addresses,
which is used for no SNAT here: whoever holds the VIP holds it too, so that connections outlive the
LB that they came through.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from e2e import whole
from e2e.held import Held, hold
from e2e.hosts import Hosts, LabHosts, lab_hosts, read_config, verdicts, wait_for, write_config
from e2e.lab import Plan
from e2e.lab.plan import CLIENT
from e2e.replicas import all_know
from e2e.test_replication import death_of_holder
from e2e.test_routes import sh

FLOWS = 20


@pytest.fixture(scope="module", params=[1, 2], ids=["one LB", "two and a voter"])
def hosts(request: pytest.FixtureRequest) -> Iterator[LabHosts]:
    """The lab comes up with SNAT, for which nodes need no route; then the files are others."""

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    lab = Plan(lbs=request.param, nodes=2, witness=request.param > 1)
    with lab_hosts(lab, say) as machines:
        own = lab.links(machines.lbs[0])[1].address
        gateway = own if lab.lbs == 1 else lab.snat_addresses[0]
        for node in machines.nodes:
            sh(machines, node, f"ip route replace default via {gateway} mtu {lab.mtu}")
        for lb in machines.lbs:
            text = read_config(machines, lb)
            text = re.sub("^protocol = .*", r"\g<0>\nsnat = false", text, flags=re.MULTILINE)
            write_config(machines, lb, text)
            machines.supervisorctl(lb, "signal", "HUP", "gale:*")
        wait_for(lambda: sees_one(machines), "the file to hold", 30)
        yield machines


def sees_one(hosts: LabHosts) -> bool:
    with hold(hosts, count=1) as held:
        return themselves(hosts, held) <= peers(hosts)


def themselves(hosts: LabHosts, held: Held) -> set[str]:
    """Address and port of each of these flows at the client."""
    (link,) = hosts.lab.plan.links(CLIENT)
    return {f"{link.address}:{port}" for port in held.ports}


def peers(hosts: LabHosts) -> set[str]:
    """Whom the echoing servers are connected with, as they see it."""
    words = ("ss", "-Htn", "state", "established", "sport", "=", ":9000")
    shown = [hosts.run(node, *words).stdout for node in hosts.nodes]
    return {line.split()[3] for line in "".join(shown).splitlines()}


def test_the_servers_see_the_clients_themselves(hosts: LabHosts) -> None:
    with hold(hosts, count=FLOWS) as held:
        assert themselves(hosts, held) <= peers(hosts)
        assert held.ask() == FLOWS


def test_what_is_fetched_and_sent_arrives_whole(hosts: Hosts) -> None:
    whole.pages_and_a_download(hosts, hosts.vip())
    whole.upload(hosts, hosts.vip())
    whole.large_download(hosts, hosts.vip())
    for size in (40, 4000):
        whole.datagrams(hosts, hosts.vip(), size)


def test_connections_outlive_the_lb_that_they_came_through(hosts: LabHosts) -> None:
    if len(hosts.lbs) == 1:
        assert verdicts(hosts, hosts.lbs[0])["l4_reply"] > 100, "answers come through it"
        return
    with hold(hosts, count=FLOWS) as held:
        all_know(hosts, FLOWS)
        dead = death_of_holder(hosts)
        assert held.ask() == FLOWS
        assert held.ended == {}
        assert themselves(hosts, held) <= peers(hosts)
        hosts.set_cut(dead, cut=False)
