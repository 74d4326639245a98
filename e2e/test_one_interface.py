"""One interface for both sides, as in the first example there was: `net_interface_private` and
`net_interface_public` are the same, and load balancer, nodes and clients are on one network.

    VIP                   l2             l3             l4
    ─────────────────────────────────────────────────────────────
    floating              works          works          works
    the LB's own address  refused        refused        works

Refused, since nodes would take the address onto `lo` by which they reach their load balancer. One
lab for each that works, and one for each mode where the interface is a bridge, as on a hypervisor
with one card, and TC has all to do. A node that connects to the VIP is answered like any client in
l4, be it by itself, and by itself alone in l2 and l3, where it has the VIP.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from e2e import whole
from e2e.hosts import Hosts, LabHosts, lab_hosts, read_config, verdicts, wait_for
from e2e.lab import Plan

BRIDGE = ("bridge/bridge",)
LABS = {
    "l2": Plan(nodes=2, mode="l2", one_interface=True),
    "l3": Plan(nodes=2, mode="l3", one_interface=True),
    "l4": Plan(nodes=2, mode="l4", one_interface=True),
    "l4 at its own address": Plan(nodes=2, mode="l4", one_interface=True, floating=False),
    "l2 by a bridge": Plan(nodes=2, mode="l2", one_interface=True, devices=BRIDGE),
    "l3 by a bridge": Plan(nodes=2, mode="l3", one_interface=True, devices=BRIDGE),
    "l4 by a bridge": Plan(nodes=2, mode="l4", one_interface=True, devices=BRIDGE),
}
PAGES = """
import sys, urllib.request
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for _ in range(40):
    print(direct.open(f"http://{sys.argv[1]}:8080/", timeout=5).read().decode().strip())
"""


@pytest.fixture(scope="module", params=LABS)
def hosts(request: pytest.FixtureRequest) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    with lab_hosts(LABS[request.param], say) as machines:
        yield machines


@pytest.fixture
def mode(hosts: LabHosts) -> str:
    return hosts.lab.plan.mode


def test_what_is_fetched_and_sent_arrives_whole(hosts: Hosts) -> None:
    whole.pages_and_a_download(hosts, hosts.vip())
    whole.upload(hosts, hosts.vip())
    whole.large_download(hosts, hosts.vip())
    for size in (40, 4000):
        whole.datagrams(hosts, hosts.vip(), size)


def test_the_programs_are_on_that_interface_alone(hosts: LabHosts, lb: str, mode: str) -> None:
    """Runs after the test above. Requests went by XDP where the device has it."""
    by_xdp = not hosts.lab.plan.devices
    dataplane = hosts.api(lb, "/v1/status")["dataplane"]
    hooks = {hook["program"]: (hook["interface"], hook["attached"]) for hook in dataplane["hooks"]}
    assert hooks == {"xdp_public": ("pub0", by_xdp), "tc_public": ("pub0", True)}
    outputs = {(each["interface"], each["carries"]): each["hook"] for each in dataplane["outputs"]}
    sender = "xdp" if by_xdp else "tc"
    assert outputs == {("pub0", "requests"): sender, ("pub0", "replies"): "tc"}
    forwarded = "l4_new_flow" if mode == "l4" else f"{mode}_forwarded"
    wait_for(lambda: verdicts(hosts, lb, f"{sender}_public")[forwarded] > 20, f"{sender} to send")
    if mode == "l4":
        wait_for(lambda: verdicts(hosts, lb, "tc_public")["l4_reply"] > 20, "replies by TC")
    else:
        assert not verdicts(hosts, lb)["l4_reply"]


def test_a_node_as_a_client(hosts: Hosts, mode: str) -> None:
    for node in hosts.nodes:
        done = hosts.run(node, "python3", "-c", PAGES, hosts.vip())
        seen = done.stdout.split()
        assert len(seen) == 40, done.stderr
        assert set(seen) == (set(hosts.nodes) if mode == "l4" else {node})


@pytest.mark.parametrize("other", ["l2", "l3"])
def test_what_cannot_work_is_refused(hosts: LabHosts, lb: str, other: str) -> None:
    """With the line. What runs is well; and so is a floating VIP in these modes."""
    file = hosts.environment(lb)["GALE_CONFIG"]
    done = hosts.run(lb, "gale", "check", file, "--host")
    assert done.returncode == 0, done.stdout
    changed = re.sub(r'mode = "l\d"', f'mode = "{other}"', read_config(hosts, lb))
    elsewhere = f"{file}.{other}"
    hosts.run(lb, "tee", elsewhere, stdin=changed)
    done = hosts.run(lb, "gale", "check", elsewhere, "--host")
    if hosts.lab.plan.floating:
        assert done.returncode == 0, done.stdout
        return
    assert done.returncode == 2, done.stdout
    assert f'services[0].mode: mode "{other}" on one interface: nodes would take' in done.stdout
