"""Keys between the LBs where they tell one another of their flows: who may connect, and with what.

Where keys are used, an LB is known by the name that its key stands for, which is that of its entry
among the members; its address says nothing then. Keys are read again once a
second. If they have changed, or nothing was heard of an LB for a while, the connection to it is
made anew with the next one of its keys: libzmq does not try again where a handshake was refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zmq

from bus import keys, tcp
from bus.keys import KeyDirectory, Pair
from conf import Endpoint


class ReplicaKeys:
    """The door of the process's context, and the keys of the members."""

    def __init__(
        self,
        context: zmq.Context[Any],
        directory: Path,
        peers: Iterable[Endpoint],
        rejected: Counter[str],
    ) -> None:
        self._known = KeyDirectory(directory, (keys.LBS,))
        self._door = tcp.Door(context, self._known, rejected)
        self._names: dict[str, str] = {}
        self._hosts: dict[str, str] = {}
        self.expect(peers)
        self._guarded: Pair | None = None
        self._attempts: Counter[str] = Counter()
        self.has_changed = False
        """Whether other keys hold since `refresh` was called before."""

    def expect(self, peers: Iterable[Endpoint]) -> None:
        """From now on these are the LBs."""
        self._names = {peer.host: peer.key_name for peer in peers}
        self._hosts = {name: host for host, name in self._names.items()}

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """To be polled; `serve` answers."""
        return self._door.socket

    def serve(self) -> None:
        self._door.serve()

    def refresh(self) -> str:
        """Read what has changed; returns what this LB lacks, empty: nothing."""
        self.has_changed = self._known.refresh()
        if self._known.own is None:
            return f"this load balancer's key ({'; '.join(self._known.problems)})"
        return ""

    def guard(self, router: zmq.Socket[bytes]) -> bool:
        """Have the router take this LB's own key; whether it must be bound (anew) for that."""
        own = self._known.own
        if own is None or own == self._guarded:
            return False
        tcp.guard(router, own, keys.LBS)
        self._guarded = own
        return True

    def host_of(self, frame: zmq.Frame) -> str:
        """The LB that a frame came from, by its entry's host; empty: nobody of the list."""
        return self._hosts.get(self._door.name_of(keys.LBS, frame) or "", "")

    def credentials_for(self, host: str) -> tcp.Credentials | None:
        """What the next connection to the LB needs: each time with the next of the keys that it
        has here. None: it has none, so it is not connected to.
        """
        known = self._known.keys_of(keys.LBS, self._names[host])
        if self._known.own is None or not known:
            return None
        key = known[self._attempts[host] % len(known)]
        self._attempts[host] += 1
        return tcp.Credentials(self._known.own, key)

    def close(self) -> None:
        self._door.close()
