"""The thread that keeps the machine prepared.

Compiling, attaching and many small netlink requests may take a second, in which the agent's loop
must beat; so they have a thread, and the loop hands it orders and reads reports. The thread settles
the machine at every new order, and once a second as long as anything is to be kept: what somebody
takes away, and interfaces and routes that change, are followed.

Nothing waits for it but the end: `finish` has it take everything back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from services.node.host import Host, Order, Report

TURN_S = 1.0
FINISH_S = 10.0


class Keeper:
    """Owned by the loop; `wake` makes the loop look at a report that has changed."""

    def __init__(self, host: Callable[[], Host], wake: Callable[[], None]) -> None:
        """`host`: makes the one that the thread uses."""
        self._host = host
        self._wake = wake
        self._changed = threading.Event()
        self._ending = False
        self._order: Order | None = None
        self.report: Report | None = None
        """Of the newest order that was worked on."""
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def order(self, order: Order) -> None:
        """Set what is wanted; the thread starts on it at once."""
        if order != self._order:
            self._order = order
            self._changed.set()

    @property
    def alive(self) -> bool:
        """False: a mistake of ours has ended the thread, and what it printed says which."""
        return self._thread.is_alive()

    def finish(self) -> Report | None:
        """Take everything back, end the thread, and tell what could not be done."""
        self._ending = True
        self._changed.set()
        self._thread.join(FINISH_S)
        return self.report

    def _run(self) -> None:
        host = self._host()
        try:
            while not self._ending:
                self._changed.wait(TURN_S)
                self._changed.clear()
                if self._order is not None and not self._ending:
                    self._settle(host, self._order)
            self._settle(host, Order())
        finally:
            host.close()

    def _settle(self, host: Host, order: Order) -> None:
        report = host.settle(order)
        if report != self.report:
            self.report = report
            self._wake()
