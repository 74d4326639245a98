"""What the registry wants done: its parts put it here, the shell takes it and does it. Pure.

Messages go to one connection each. Events go to the bus, in the order in which they happened. Of
what is larger only the word goes out that it is another now: `view_changed`, the view that the
quorum and the people see; `keep`, what a restart must not forget. So a beat that changes nothing
leaves nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from bus.events import NodeEvent
from bus.node_protocol import NodeMessage
from bus.topics import Topic


class Send(NamedTuple):
    connection: bytes
    message: NodeMessage


class Happened(NamedTuple):
    topic: Topic
    event: NodeEvent


@dataclass(slots=True)
class Output:
    """What the shell has to do; in this order: keep, publish, send."""

    keep: bool = False
    view_changed: bool = False
    events: list[Happened] = field(default_factory=list)
    messages: list[Send] = field(default_factory=list)


class Outbox:
    def __init__(self) -> None:
        self._output = Output()

    def changed(self, *, keep: bool = True) -> None:
        """The view is another; unless `keep` says otherwise, so is what a restart must know."""
        self._output.view_changed = True
        if keep:
            self._output.keep = True

    def happened(self, topic: Topic, event: NodeEvent) -> None:
        """Events tell of what is in the view and is kept: so both are others."""
        self._output.events.append(Happened(topic, event))
        self.changed()

    def send(self, connection: bytes, message: NodeMessage) -> None:
        self._output.messages.append(Send(connection, message))

    def take(self) -> Output:
        """All that has come since the last call."""
        output, self._output = self._output, Output()
        return output
