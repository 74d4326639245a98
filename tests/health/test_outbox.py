"""What the shell is told, and that it is told once."""

from __future__ import annotations

from bus.events import NodeEvent
from bus.node_protocol import Refused
from bus.topics import Topic
from bus.words import NodeState
from services.health.outbox import Happened, Outbox, Output, Send

EVENT = NodeEvent("n@1.2.3.4", "n", "1.2.3.4", NodeState.UP, None, "", 0, 0)


def test_what_changes_the_view_is_kept_unless_it_is_said_otherwise() -> None:
    outbox = Outbox()
    outbox.changed(keep=False)
    assert outbox.take() == Output(keep=False, view_changed=True)
    outbox.changed()
    outbox.changed(keep=False)
    assert outbox.take() == Output(keep=True, view_changed=True)


def test_an_event_changes_the_view_and_a_message_does_not() -> None:
    outbox = Outbox()
    outbox.send(b"1", Refused("no", 0))
    assert outbox.take() == Output(messages=[Send(b"1", Refused("no", 0))])
    outbox.happened(Topic.NODE_UP, EVENT)
    assert outbox.take() == Output(True, True, [Happened(Topic.NODE_UP, EVENT)])


def test_what_was_taken_is_gone() -> None:
    outbox = Outbox()
    outbox.send(b"1", Refused("no", 0))
    outbox.happened(Topic.NODE_UP, EVENT)
    outbox.take()
    assert outbox.take() == Output()
