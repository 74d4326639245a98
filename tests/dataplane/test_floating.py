"""Floating addresses as one process writes them, and another one reads them."""

from __future__ import annotations

from bpf.syscall import pin_object
from services.dataplane.kernel import Floating, Kernel, RivalClaim
from services.dataplane.words import floating_text
from services.quorum.claims import Claims, Told
from services.quorum.table import FloatingVip, TableConfig
from tests.bpf.harness import private_bpffs
from tests.bpf.scene import floating, mac
from tests.dataplane.maps import maps

VIP, SNAT, OTHER = "10.80.0.100", "10.81.0.100", "10.80.0.101"
CONFIG = TableConfig((), (FloatingVip(VIP, (SNAT,)), FloatingVip(OTHER)))


def test_what_the_quorum_process_claims_is_what_the_dataplane_reads() -> None:
    with private_bpffs() as directory, maps() as loaded:
        (directory / "maps").mkdir(parents=True)
        pin_object(loaded.bpf[b"claims"].map_fd, directory / "maps" / "claims")
        claims = Claims(directory, CONFIG, 0, alone=False)
        claims.claim({VIP: 5_000}, Told("lb-0", 1), 0)
        assert claims.waiting_for == ""
        assert Kernel(loaded.bpf).floating() == {
            VIP: Floating(5_000_000_000, "public"),
            SNAT: Floating(5_000_000_000, "private"),
            OTHER: Floating(0, "public"),
        }


def test_whoever_else_claims_one_is_named() -> None:
    with maps() as loaded:
        table, rivals = loaded.bpf[b"claims"], loaded.bpf[b"rivals"]
        for text in (VIP, "2001:db8::100"):
            table[floating(table, text)] = table.Leaf(until=7, sides=1)
        leaf = rivals.Leaf(seen=3, last=99)
        leaf.mac[:] = mac("02:00:00:00:66:66")
        rivals[floating(rivals, VIP)] = leaf
        assert Kernel(loaded.bpf).floating() == {
            VIP: Floating(7, "public", RivalClaim("02:00:00:00:66:66", 3, 99)),
            "2001:db8::100": Floating(7, "public"),
        }


def test_addresses_in_words() -> None:
    assert floating_text(bytes(10) + b"\xff\xff\x0a\x50\x00\x64") == VIP
    assert floating_text(bytes.fromhex("20010db8000000000000000000000100")) == "2001:db8::100"
