"""What operators ask for, here or at other LBs: orders of nodes, changes of the members. Pure.

    orders.Desk           the orders that wait, and how the leader writes them into the next table
    membership.Changes    the changes of the members that wait, and how it makes one
    this module           both together: who is asked, what is passed on, who is answered

Whoever was asked passes it on to the leader, and again while there is no answer (`waiting`). The
leader answers when the table that has it is committed, or refuses it, to whoever passed it on; the
LB where an operator asked gives the answer to its shell. A new leader knows nothing of what the one
before had written into a table: it is asked again.
"""

from __future__ import annotations

from bus.orders import Asked
from bus.peer_protocol import MemberAsked, OrderAnswered, OrderAsked, PeerMessage
from bus.states import NodeTable
from services.quorum.durable import Outbox
from services.quorum.membership import Changes, Wish
from services.quorum.orders import Desk
from services.quorum.waiting import Answer


class Desks:
    """What waits to be agreed on, here."""

    def __init__(self, name: str, outbox: Outbox) -> None:
        """`name`: this LB's."""
        self._name, self._outbox = name, outbox
        self.orders, self.changes = Desk(), Changes()
        self._queues = self.orders.waiting, self.changes.waiting
        self._answers: list[Answer] = []
        """To what was asked for here: for the shell."""

    def order(self, number: str, asked: Asked, asker: str | None, now_ms: int) -> None:
        """`asker`: the entry of the LB that passed it on; None: an operator wants it, here."""
        self.orders.waiting.ask(number, asked, asker, now_ms)

    def change(self, number: str, wish: Wish, asker: str | None, now_ms: int) -> None:
        self.changes.waiting.ask(number, wish, asker, now_ms)

    def answered(self, answer: OrderAnswered) -> None:
        """By the leader, of what was passed on to it."""
        for queue in self._queues:
            queue.answer(answer.id, answer.refusal)

    def committed(self, table: NodeTable) -> None:
        """All LBs go by this table."""
        self.orders.committed(table)
        self.changes.committed(table.members)

    def lead_ended(self) -> None:
        """Another leads than before, or nobody."""
        for queue in self._queues:
            queue.lead_ended()

    def tick(self, now_ms: int) -> None:
        for queue in self._queues:
            queue.tick(now_ms)

    def next_due_ms(self, *, passes_on: bool) -> int | None:
        """When `tick`, or `pass_on` where another LB leads, has something to do."""
        due = (queue.next_due_ms(passes_on=passes_on) for queue in self._queues)
        return min((each for each in due if each is not None), default=None)

    def pass_on(self, leader: str | None, now_ms: int) -> None:
        """What waits goes to the leader, if that is another LB (its entry), and the answers to
        whoever asked.
        """
        if leader is not None:
            passed: list[PeerMessage] = [
                OrderAsked(self._name, *order) for order in self.orders.waiting.to_pass_on(now_ms)
            ]
            passed += [
                MemberAsked(self._name, number, wish.change, wish.address)
                for number, wish in self.changes.waiting.to_pass_on(now_ms)
            ]
            for message in passed:
                self._outbox.post(leader, message)
        for answer in [each for queue in self._queues for each in queue.take_answers()]:
            if answer.asker is None:
                self._answers.append(answer)
            else:
                reply = OrderAnswered(self._name, answer.id, answer.refusal)
                self._outbox.post(answer.asker, reply)

    def take_answers(self) -> tuple[Answer, ...]:
        """To operators who asked here; each is given out once."""
        answers, self._answers = tuple(self._answers), []
        return answers
