"""When floating addresses are announced, and what is said of who else claims them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from services.dataplane.announce import (
    AFTER_MS,
    DEFENCE_MS,
    EVERY_MS,
    Announcer,
    Rival,
    Said,
    Seen,
)
from services.dataplane.frames import announcement

VIP, SNAT = "10.80.0.100", "10.81.0.100"
MAC, RIVAL_MAC = bytes.fromhex("02000000000b"), "02:00:00:00:66:66"
FOR_EVER = 10**9
START_MS = 5_000


def held(until_ms: int = FOR_EVER, rival: Rival | None = None) -> dict[str, Seen]:
    return {VIP: Seen(until_ms, rival)}


def announced(core: Announcer, seen: dict[str, Seen], now_ms: int) -> tuple[str, ...]:
    core.look(seen, now_ms)
    core.tick(now_ms)
    said = core.take()
    return said.announce if said is not None else ()


def moments(core: Announcer, seen: dict[str, Seen], until_ms: int) -> list[int]:
    """When it announces the VIP, called at no other moments than those it names."""
    found, now_ms = [], START_MS
    while now_ms <= until_ms:
        if announced(core, seen, now_ms):
            found.append(now_ms - START_MS)
        due_ms = core.next_due_ms()
        assert due_ms is not None
        assert due_ms > now_ms
        now_ms = due_ms
    return found


def test_the_schedule() -> None:
    wanted = [0, 50, 200, 1_000, 3_000, 13_000, 23_000, 33_000]
    assert moments(Announcer(), held(), START_MS + 35_000) == wanted
    assert (AFTER_MS, EVERY_MS) == ((0, 50, 200, 1_000, 3_000), 10_000)


def test_what_is_not_claimed_is_not_announced() -> None:
    core = Announcer()
    assert announced(core, held(until_ms=0), START_MS) == ()
    assert core.next_due_ms() is None
    assert core.held == frozenset()


def test_acquired_and_lost_are_told_once() -> None:
    core = Announcer()
    core.look(held(START_MS + 100), START_MS)
    core.tick(START_MS)
    assert core.take() == Said((VIP,), (VIP,), (), ())
    assert core.held == {VIP}
    core.look(held(START_MS + 200), START_MS + 50)
    core.tick(START_MS + 50)
    assert core.take() == Said((VIP,), (), (), ())
    core.look(held(START_MS + 200), START_MS + 200)
    core.tick(START_MS + 200)
    assert core.take() == Said((), (), (VIP,), ())
    assert core.held == frozenset()
    assert core.take() is None


def test_a_claim_that_ends_before_it_is_looked_at_again_is_not_announced() -> None:
    core = Announcer()
    core.look(held(START_MS + 100), START_MS)
    core.tick(START_MS)
    core.take()
    core.tick(START_MS + 100)
    assert core.take() == Said((), (), (VIP,), ())


def test_the_maps_are_looked_at_when_a_claim_ends() -> None:
    core = Announcer()
    announced(core, held(START_MS + 20), START_MS)
    assert core.next_due_ms() == START_MS + 20


def test_whoever_loses_it_and_gets_it_again_begins_anew() -> None:
    core = Announcer()
    assert announced(core, held(), START_MS) == (VIP,)
    assert announced(core, held(until_ms=0), START_MS + 10_000) == ()
    assert announced(core, held(), START_MS + 10_001) == (VIP,)
    assert announced(core, held(), START_MS + 10_051) == (VIP,)


def test_an_address_that_floats_no_longer_is_lost() -> None:
    core = Announcer()
    announced(core, held(), START_MS)
    core.look({}, START_MS + 10)
    core.tick(START_MS + 10)
    assert core.take() == Said((), (), (VIP,), ())
    assert core.next_due_ms() is None


def test_a_late_loop_announces_once_for_all_that_it_has_missed() -> None:
    core = Announcer()
    announced(core, held(), START_MS)
    assert announced(core, held(), START_MS + 2_500) == (VIP,)
    assert announced(core, held(), START_MS + 2_999) == ()
    assert announced(core, held(), START_MS + 3_000) == (VIP,)
    assert announced(core, held(), START_MS + 90_000) == (VIP,)
    assert core.next_due_ms() == START_MS + 93_000


class TestPeers:
    def test_one_that_comes_back_is_told(self) -> None:
        core = Announcer()
        core.peers(frozenset({"lb-1", "lb-2"}), START_MS)
        announced(core, held(), START_MS)
        core.peers(frozenset({"lb-1"}), START_MS + 4_000)
        assert announced(core, held(), START_MS + 4_000) == (VIP,)  # what was due at 3,000
        core.peers(frozenset({"lb-1", "lb-2"}), START_MS + 6_000)
        later = [
            each for each in (0, 10, 50, 200) if announced(core, held(), START_MS + 6_000 + each)
        ]
        assert later == [0, 50, 200]

    def test_one_that_falls_silent_is_no_news(self) -> None:
        core = Announcer()
        core.peers(frozenset({"lb-1", "lb-2"}), START_MS)
        announced(core, held(), START_MS)
        announced(core, held(), START_MS + 3_000)
        core.peers(frozenset({"lb-1"}), START_MS + 4_000)
        assert announced(core, held(), START_MS + 4_000) == ()

    def test_those_that_are_there_at_the_start_are_no_news(self) -> None:
        core = Announcer()
        announced(core, held(), START_MS)
        core.peers(frozenset({"lb-1"}), START_MS + 10)
        assert announced(core, held(), START_MS + 10) == ()

    def test_nobody_is_told_of_what_is_not_held(self) -> None:
        core = Announcer()
        core.look(held(until_ms=0), START_MS)
        core.peers(frozenset(), START_MS)
        core.peers(frozenset({"lb-1"}), START_MS + 10)
        assert announced(core, held(until_ms=0), START_MS + 10) == ()


class TestAnotherMac:
    def test_neighbours_are_told_as_if_it_had_just_been_acquired(self) -> None:
        core = Announcer()
        announced(core, held(), START_MS)
        announced(core, held(), START_MS + 3_000)
        core.moved(frozenset({VIP, "10.80.0.101"}), START_MS + 4_000)
        later = [
            each for each in (0, 10, 50, 200) if announced(core, held(), START_MS + 4_000 + each)
        ]
        assert later == [0, 50, 200]

    def test_nobody_is_told_of_what_is_not_held(self) -> None:
        core = Announcer()
        core.look(held(until_ms=0), START_MS)
        core.moved(frozenset({VIP}), START_MS + 10)
        assert announced(core, held(until_ms=0), START_MS + 10) == ()


class TestRivals:
    def core(self) -> Announcer:
        core = Announcer()
        announced(core, held(), START_MS)
        announced(core, held(), START_MS + 3_000)
        return core

    def test_one_is_answered_at_once_and_told_of(self) -> None:
        core = self.core()
        rival = Rival(RIVAL_MAC, 1)
        core.look(held(rival=rival), START_MS + 4_000)
        core.tick(START_MS + 4_000)
        assert core.take() == Said((VIP,), (), (), ((VIP, rival),))
        assert announced(core, held(rival=rival), START_MS + 6_000) == ()

    def test_a_duel_has_one_answer_in_a_second(self) -> None:
        core = self.core()
        answers = [
            now_ms
            for now_ms in range(START_MS + 4_000, START_MS + 7_000, 10)
            if announced(core, held(rival=Rival(RIVAL_MAC, now_ms)), now_ms)
        ]
        assert answers == [START_MS + 4_000 + i * DEFENCE_MS for i in range(3)]

    def test_what_comes_within_that_second_is_answered_after_it(self) -> None:
        core = self.core()
        announced(core, held(rival=Rival(RIVAL_MAC, 1)), START_MS + 4_000)
        again = held(rival=Rival(RIVAL_MAC, 2))
        assert announced(core, again, START_MS + 4_500) == ()
        assert announced(core, again, START_MS + 5_000) == (VIP,)

    def test_an_answer_that_comes_too_late_is_none(self) -> None:
        core = self.core()
        rival = Rival(RIVAL_MAC, 1)
        core.look(held(START_MS + 4_100, rival), START_MS + 4_000)
        core.tick(START_MS + 4_100)
        assert core.take() == Said((), (), (VIP,), ((VIP, rival),))

    def test_those_of_before_this_process_are_no_news(self) -> None:
        core = Announcer()
        core.look(held(rival=Rival(RIVAL_MAC, 7)), START_MS)
        core.tick(START_MS)
        assert core.take() == Said((VIP,), (VIP,), (), ())

    def test_one_against_whom_nothing_is_held_is_not_answered(self) -> None:
        core = self.core()
        core.look(held(until_ms=0), START_MS + 3_500)
        core.take()
        core.look(held(until_ms=0, rival=Rival(RIVAL_MAC, 1)), START_MS + 4_000)
        core.tick(START_MS + 4_000)
        said = core.take()
        assert said is not None
        assert said.announce == ()


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 700),
            st.dictionaries(
                st.sampled_from([VIP, SNAT]),
                st.tuples(st.integers(-100, 500), st.integers(0, 3)),
            ),
            st.frozensets(st.sampled_from(["lb-1", "lb-2"])),
        ),
        max_size=40,
    )
)
def test_whatever_happens_only_what_is_claimed_is_announced(
    steps: list[tuple[int, dict[str, tuple[int, int]], frozenset[str]]],
) -> None:
    core, now_ms, rivals = Announcer(), START_MS, 0
    standing: set[str] = set()
    for pause_ms, claims, alive in steps:
        now_ms += pause_ms
        core.peers(alive, now_ms)
        seen = {}
        for text, (left_ms, more) in claims.items():
            rivals += more
            seen[text] = Seen(now_ms + left_ms, Rival(RIVAL_MAC, rivals) if rivals else None)
        core.look(seen, now_ms)
        core.tick(now_ms)
        valid = {text for text, each in seen.items() if now_ms < each.until_ms}
        said = core.take() or Said((), (), (), ())
        assert set(said.announce) <= valid
        assert set(said.acquired) <= valid
        standing = (standing | set(said.acquired)) - set(said.lost)
        assert standing == core.held == valid
        due_ms = core.next_due_ms()
        assert due_ms is None or due_ms > now_ms


# --------------------------------------------------------------------------- frames


def test_an_ipv4_address_is_announced_by_gratuitous_arp() -> None:
    frame = announcement(VIP, MAC)
    wanted = Ether(src="02:00:00:00:00:0b", dst="ff:ff:ff:ff:ff:ff") / ARP(
        op="who-has", hwsrc="02:00:00:00:00:0b", psrc=VIP, hwdst="00:00:00:00:00:00", pdst=VIP
    )
    assert frame == bytes(wanted) + bytes(18)
    assert len(frame) == 60


def test_an_ipv6_address_is_announced_by_an_unsolicited_advertisement() -> None:
    wanted = (
        Ether(src="02:00:00:00:00:0b", dst="33:33:00:00:00:01")
        / IPv6(src="2001:db8::100", dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt="2001:db8::100", R=0, S=0, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:0b")
    )
    assert announcement("2001:db8::100", MAC) == bytes(wanted)


@pytest.mark.parametrize("address", ["10.80.0.100", "2001:db8::100"])
def test_the_programs_take_it_for_our_own(address: str) -> None:
    """The MAC address in it is the interface's: see tests/bpf/test_claims.py for what follows."""
    assert announcement(address, MAC)[6:12] == MAC
