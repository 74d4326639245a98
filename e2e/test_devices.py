"""An LB whose interfaces are bridges, macvlans, VLANs, bonds or taps, in every mode.

One lab per mode, which has an LB for each pair of kinds that `TABLE` says is tried here, so that
each kind is once the public and once the private interface. What is asked of each: pages of every
node, a download with its hash, an upload that comes back whole, datagrams; and that the status says
who sends, XDP or TC, and why. What is not tried has its reason in `LEFT_OUT`, for all modes alike;
a pair with a kind that this kernel does not have is not among them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from e2e import whole
from e2e.hosts import LabHosts, lab_hosts, verdicts, wait_for
from e2e.lab import Plan
from e2e.lab.devices import KINDS, VIRTIO, known

HERE = "here"
TABLE = """
public/private    veth     bridge   macvlan  vlan     bond     tap      virtio
veth              labs     here     sides    sides    sides    sides    guest
bridge            sides    sides    here     sides    sides    sides    guest
macvlan           no_xdp   sides    sides    sides    sides    here     guest
vlan              sides    sides    sides    sides    here     sides    guest
bond              sides    sides    sides    here     sides    sides    guest
tap               here     sides    sides    sides    sides    sides    guest
virtio            guest    guest    guest    guest    guest    guest    guest
"""
LEFT_OUT = {
    "labs": "every lab that says nothing of devices has these two",
    "no_xdp": "test_without_xdp.py has them, with bulk",
    "sides": "neither side's program knows of the other's device, and each device is tried on both",
    "guest": "the cards of a virtual machine: `make vm` has virtio/veth",
}
ROWS = [line.split() for line in TABLE.strip().splitlines()]
PAIRS = {
    f"{public}/{private}": why
    for public, *cells in ROWS[1:]
    for private, why in zip(ROWS[0][1:], cells, strict=True)
}
TRIED = tuple(pair for pair, why in PAIRS.items() if why == HERE)
PRESENT = tuple(pair for pair in TRIED if set(pair.split("/")) <= known())
NATIVE_XDP = {"veth", "tap", "bond"}
TAKES_FRAMES = {"veth", "tap", "bond"}


@pytest.fixture(scope="module", params=["l2", "l3", "l4"])
def hosts(request: pytest.FixtureRequest) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    plan = Plan(lbs=len(PRESENT), nodes=2, mode=request.param, devices=PRESENT, floating=False)
    with lab_hosts(plan, say) as machines:
        yield machines


@pytest.fixture(params=PRESENT)
def lb(request: pytest.FixtureRequest, hosts: LabHosts) -> str:
    return hosts.lbs[PRESENT.index(request.param)]


@pytest.fixture
def kinds(hosts: LabHosts, lb: str) -> tuple[str, str]:
    public, private = hosts.lab.plan.links(lb)
    return hosts.lab.plan.device(public), hosts.lab.plan.device(private)


def test_no_pair_is_left_out_without_a_reason() -> None:
    assert set(PAIRS) == {f"{public}/{private}" for public in KINDS for private in KINDS}
    assert set(PAIRS.values()) == {HERE, *LEFT_OUT}
    for side in zip(*(pair.split("/") for pair in TRIED), strict=True):
        assert sorted(side) == sorted(set(KINDS) - {VIRTIO})


def test_what_is_fetched_and_sent_arrives_whole(hosts: LabHosts, lb: str) -> None:
    vip = hosts.lab.plan.vip(lb)
    whole.pages_and_a_download(hosts, vip)
    whole.upload(hosts, vip)
    for size in (40, 4000):
        whole.datagrams(hosts, vip, size)


def test_the_status_says_who_sends_and_so_it_is(
    hosts: LabHosts, lb: str, kinds: tuple[str, str]
) -> None:
    """Runs after the tests above, so that packets have been counted."""
    public, private = kinds
    by_xdp = public in NATIVE_XDP and private in TAKES_FRAMES
    told = {
        (each["interface"], each["carries"]): (each["hook"], each["reason"])
        for each in hosts.api(lb, "/v1/status")["dataplane"]["outputs"]
    }
    hook, reason = told["priv0", "requests"]
    assert hook == ("xdp" if by_xdp else "tc"), reason
    if not by_xdp:
        lacks = "no XDP program on pub0" if public not in NATIVE_XDP else "takes no frames from XDP"
        assert lacks in reason
    assert told["pub0", "replies"][0] == "tc"
    counted = "xdp_public" if by_xdp else "tc_public"
    mode = hosts.lab.plan.mode
    forwarded = "l4_new_flow" if mode == "l4" else f"{mode}_forwarded"
    wait_for(lambda: verdicts(hosts, lb, counted)[forwarded] > 20, f"{counted} to have forwarded")
