"""Who is heard on the quorum's port, and what is told of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.codec import to_json
from bus.peer_protocol import (
    NO_VERSION,
    PEER_FORMAT,
    Go,
    PeerHead,
    PreVote,
    encode_peer,
)
from services.quorum.admission import (
    APPLICANT_MS,
    FORMER_STARTS,
    LONGEST_KNOCK,
    MOST_APPLICANTS,
    MOST_REMEMBERED,
    SAID_MS,
    Admission,
)

ENTRY, PLACE = "10.0.0.2:8081", "10.0.0.2"
OTHER_ENTRY, OTHER_PLACE = "lb-2.example:8081", "10.0.0.3"
HEAD = PeerHead(PEER_FORMAT, "gale", "lb-1", "start-1", 1, "Go")
GO = Go("lb-1", 7)


def admission() -> Admission:
    made = Admission("gale", "lb-0")
    made.expect({PLACE: ENTRY, OTHER_PLACE: OTHER_ENTRY})
    return made


def frames(head: PeerHead = HEAD, message: Go = GO) -> list[bytes]:
    return [to_json(head), to_json(replace(message, sender=head.sender))]


def test_a_member_is_known_by_where_it_speaks_from() -> None:
    heard = admission()
    assert heard.admit(PLACE, frames(), 0) == (ENTRY, GO)
    assert heard.admit(OTHER_PLACE, frames(replace(HEAD, sender="lb-2")), 0) == (
        OTHER_ENTRY,
        Go("lb-2", 7),
    )
    assert not heard.refused
    assert heard.take_untold() == []


def test_what_one_encodes_the_other_admits() -> None:
    asked = PreVote("lb-1", 3, NO_VERSION, "start-1")
    assert admission().admit(PLACE, list(encode_peer(asked, "gale", "b", 1)), 0) == (ENTRY, asked)


@pytest.mark.parametrize(
    ("reason", "head"),
    [
        ("format", replace(HEAD, v=PEER_FORMAT + 1)),
        ("cluster", replace(HEAD, cluster="breeze")),
        ("name", replace(HEAD, sender="lb-0")),
        ("malformed", replace(HEAD, sender="")),
        ("malformed", replace(HEAD, sender="lb\n1")),
        ("malformed", replace(HEAD, kind="Gossip")),
        ("malformed", replace(HEAD, kind="Vote")),
        ("malformed", replace(HEAD, number=-1)),
    ],
)
def test_a_wrong_head_is_a_named_reason_and_changes_nothing(reason: str, head: PeerHead) -> None:
    heard = admission()
    assert heard.admit(PLACE, frames(head), 0) is None
    assert heard.refused == {reason: 1}
    (told,) = heard.take_untold()
    assert (told.peer, told.reason) == (ENTRY, reason)
    assert heard.admit(PLACE, frames(), 0) == (ENTRY, GO)


@pytest.mark.parametrize("raw", [[], [b"{}"], [b"{", b"}"], [b"", b""], [*frames(), b""]])
def test_what_is_no_message_is_malformed(raw: list[bytes]) -> None:
    heard = admission()
    assert heard.admit(PLACE, raw, 0) is None
    assert heard.refused == {"malformed": 1}


def test_a_promise_beyond_all_measure_is_malformed() -> None:
    heard = admission()
    head = replace(HEAD, kind="Beat")
    beat = {
        "sender": "lb-1",
        "term": 1,
        "seq": 1,
        "promise_ms": 10**9,
        "committed": {"term": 0, "epoch": 0},
        "proposed": {"term": 0, "epoch": 0},
        "table": None,
        "view_seen": None,
    }
    assert heard.admit(PLACE, [to_json(head), to_json(beat)], 0) is None
    assert heard.refused == {"malformed": 1}
    good = heard.admit(PLACE, [to_json(head), to_json(beat | {"promise_ms": 2_000})], 0)
    assert good is not None


JUDGED = {"checks_timeout": "1s", "checks_before_routing": "3"}


def test_who_judges_nodes_otherwise_is_refused_if_all_must_be_the_same() -> None:
    heard = admission()
    heard.judge_by(JUDGED, enforce=True)
    assert heard.admit(PLACE, frames(replace(HEAD, node_health=JUDGED)), 0)
    other = replace(HEAD, number=2, node_health=JUDGED | {"checks_timeout": "5s"})
    assert heard.admit(PLACE, frames(other), 0) is None
    (told,) = heard.take_untold()
    assert told.told == "configuration: node_health.checks_timeout is 1s here and 5s there"
    assert heard.trouble == {ENTRY: told.told}
    assert heard.admit(PLACE, frames(replace(other, node_health=JUDGED)), 0)
    assert heard.trouble == {}


def test_who_judges_nodes_otherwise_is_heard_and_named_if_they_need_not() -> None:
    heard = admission()
    heard.judge_by(JUDGED, enforce=False)
    for number in range(3):
        other = replace(HEAD, number=number, node_health={"checks_timeout": "1s"})
        assert heard.admit(PLACE, frames(other), 0)
    (found,) = heard.take_differing()
    assert found.text == "node_health.checks_before_routing is 3 here and unknown there"
    assert heard.trouble == {ENTRY: found.text}
    assert not heard.refused


def test_a_name_belongs_to_one_entry() -> None:
    heard = admission()
    heard.admit(PLACE, frames(), 0)
    assert heard.admit(OTHER_PLACE, frames(), 0) is None
    assert heard.refused == {"name": 1}


def test_a_repetition_is_refused_and_a_new_start_is_not() -> None:
    heard = admission()
    assert heard.admit(PLACE, frames(replace(HEAD, number=5)), 0)
    for number in (5, 4, 1):
        assert heard.admit(PLACE, frames(replace(HEAD, number=number)), 0) is None
    assert heard.admit(PLACE, frames(replace(HEAD, boot="start-2")), 0)
    assert heard.admit(PLACE, frames(replace(HEAD, number=99)), 0) is None
    assert heard.refused == {"replayed": 4}


def test_former_starts_are_remembered_within_bounds() -> None:
    heard = admission()
    for start in range(FORMER_STARTS + 1):
        assert heard.admit(PLACE, frames(replace(HEAD, boot=f"start-{start}")), 0)
    assert heard.admit(PLACE, frames(replace(HEAD, boot="start-0", number=9)), 0) is None


def test_a_stranger_is_told_of_once_a_minute() -> None:
    heard = admission()
    for now_ms in (0, 1, SAID_MS - 1, SAID_MS, SAID_MS + 1):
        assert heard.admit("203.0.113.5", frames(), now_ms) is None
    assert heard.refused == {"not_listed": 5}
    assert [told.peer for told in heard.take_untold()] == ["203.0.113.5"] * 2
    assert heard.take_untold() == []


def test_many_strangers_take_no_more_room_than_some() -> None:
    heard = admission()
    for number in range(3 * MOST_REMEMBERED):
        heard.refuse_stranger(f"203.0.{number // 256}.{number % 256}", 0)
    assert len(heard._said_ms) == MOST_REMEMBERED


def test_a_member_that_is_no_longer_expected_is_a_stranger() -> None:
    heard = admission()
    heard.admit(PLACE, frames(), 0)
    heard.expect({OTHER_PLACE: OTHER_ENTRY})
    assert not heard.is_listed(PLACE)
    assert heard.admit(PLACE, frames(replace(HEAD, number=2)), 0) is None
    assert heard.admit(OTHER_PLACE, frames(), 0), "the name is free again"


def test_who_knocks_is_known_by_name_and_place_for_a_while() -> None:
    heard = admission()
    knock = frames(replace(HEAD, sender="lb-3", port=8090))[0]
    heard.knock("203.0.113.5", knock, 0)
    assert heard.applicants(APPLICANT_MS - 1) == {"203.0.113.5:8090": "lb-3"}
    assert heard.applicants(APPLICANT_MS) == {}
    heard.expect({"203.0.113.5": "203.0.113.5:8090"})
    assert heard.applicants(0) == {}, "it is a member"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        frames(replace(HEAD, cluster="other", port=8090))[0],
        frames(replace(HEAD, port=0))[0],
        frames(replace(HEAD, sender="two\nlines", port=8090))[0],
        frames(replace(HEAD, sender="x" * LONGEST_KNOCK, port=8090))[0],
    ],
)
def test_what_is_no_knock_is_nothing(raw: bytes) -> None:
    heard = admission()
    heard.knock("203.0.113.5", raw, 0)
    assert heard.applicants(0) == {}


def test_many_that_knock_take_no_more_room_than_some() -> None:
    heard = admission()
    for number in range(3 * MOST_APPLICANTS):
        heard.knock(f"203.0.113.{number}", frames(replace(HEAD, port=8090))[0], 0)
    assert len(heard.applicants(0)) == MOST_APPLICANTS
