"""Events: who leads, and what is agreed."""

from __future__ import annotations

from dataclasses import replace

from bus.events import ConfigEvent, MemberEvent, OrderEvent, QuorumEvent, TableEvent
from bus.orders import Asked, Order, OrderKind
from bus.topics import Topic
from services.quorum.news import News
from services.quorum.reports import OwnView, Reports
from services.quorum.seen import Seen
from services.quorum.staged import Staging, digest
from tests.quorum.cluster import OLD
from tests.quorum.rig import Rig, rig, table_of


def news_of(made: Rig) -> News:
    staging = Staging(OLD, None, alone=False, witness=False)
    reports = Reports(OwnView("lb-0", alone=False), 2_000)
    seen = Seen(made.roster, made.election, made.register, staging, reports, 0)
    return News(made.roster, made.election, staging, seen)


def test_a_leader_is_told_once_and_its_loss_and_that_there_is_one_again() -> None:
    made = rig("lb-1")
    news = news_of(made)
    assert not news.look_who_leads()
    told: list[tuple[Topic, str | None]] = []
    for leader in ("lb-1", "lb-1", None, None, "lb-2", "lb-1"):
        made.election.leader = leader
        news.look_who_leads()
        for topic, event in news.take():
            assert isinstance(event, QuorumEvent)
            told.append((topic, event.leader))
    assert told == [
        (Topic.QUORUM_LEADER, "lb-1"),
        (Topic.QUORUM_LOST, None),
        (Topic.QUORUM_REGAINED, "lb-2"),
        (Topic.QUORUM_LEADER, "lb-2"),
        (Topic.QUORUM_LEADER, "lb-1"),
    ]


def test_this_lb_tells_of_itself_why_it_leads() -> None:
    made = rig("lb-1")
    news = news_of(made)
    made.lead()
    news.leads("the leader was not heard")
    assert not news.look_who_leads(), "it was told"
    ((topic, event),) = news.take()
    assert isinstance(event, QuorumEvent)
    assert (topic, event.leader, event.reason) == (
        *(Topic.QUORUM_LEADER, "lb-0", "the leader was not heard"),
    )
    assert news.elections_won == 1


def test_what_a_committed_table_has_that_is_new() -> None:
    news = news_of(rig("lb-1"))
    before = table_of("lb-0", "lb-1")
    order = Order("1", Asked("n@10.0.0.1", OrderKind.DRAIN, "me", "why"), 2, None)
    after = replace(table_of("lb-0", "lb-2", epoch=2), orders=(order,))
    news.committed(before, after, config=True)
    kinds = [(topic, type(event)) for topic, event in news.take()]
    assert kinds == [
        (Topic.TABLE_COMMITTED, TableEvent),
        (Topic.CONFIG_COMMITTED, ConfigEvent),
        (Topic.ORDER_GIVEN, OrderEvent),
        (Topic.QUORUM_MEMBER_REMOVED, MemberEvent),
        (Topic.QUORUM_MEMBER_ADDED, MemberEvent),
    ]
    news.committed(None, after, config=False)
    assert [topic for topic, _ in news.take()] == [Topic.TABLE_COMMITTED], (
        "nobody knows what is new"
    )


def test_on_how_many_a_file_is_staged() -> None:
    made = rig("lb-1", "lb-2", "lb-3")
    made.roster.others["lb-1"].staged = digest(OLD)
    made.roster.others["lb-3"].witness = True
    news = news_of(made)
    news.staged()
    ((topic, event),) = news.take()
    assert topic is Topic.CONFIG_STAGED
    assert event == ConfigEvent(digest(OLD), 2, 3)
