"""What the model and a load balancer under test say to each other. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from tests.bpf.sequences.segments import Address

FIRST_PORT = 20000
"""Of the SNAT slice."""


def address(text: str, port: int) -> Address:
    return bytes(int(octet) for octet in text.split(".")), port


def _text(end: Address) -> str:
    return f"{'.'.join(str(octet) for octet in end[0])}:{end[1]}"


SERVICE = address("10.80.0.100", 8080)
SNAT = address("10.81.0.10", 0)[0]
NODES = [address(f"10.81.0.{20 + number}", 80) for number in range(3)]
CLIENTS = [
    address("192.0.2.33", 40000),
    address("192.0.2.33", 40001),
    address("198.51.100.7", 40000),
    address("203.0.113.9", 1024),
]
"""The first two are those whom the forger knows; the others, strangers."""
STRANGER = 2


class Verdict(Enum):
    FORWARDED = "forwarded"
    ANSWERED = "answered"
    DROPPED = "dropped"
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    """Of a load balancer: never ANSWERED, which is a matter of addresses."""
    frame: bytes
    reason: str = ""
    """Its name for it, if it is to be told."""


@dataclass(frozen=True, slots=True)
class LiveFlow:
    """A flow of the table that has not expired."""

    client: Address
    vip: Address
    snat: Address
    node: Address
    state: str

    def __str__(self) -> str:
        where = [_text(end) for end in (self.client, self.vip, self.snat, self.node)]
        return f"{' → '.join(where)} ({self.state})"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a scenario wants the load balancer to be."""

    nodes: int = 1
    ports: int = 1
    """Of the SNAT slice."""
    request_hook: str = "xdp_public"
    reply_hook: str = "tc_private"


class Balancer(Protocol):
    def begin(self, layout: Layout) -> None:
        """Empty, with one service."""

    def request(self, frame: bytes) -> Outcome: ...

    def reply(self, frame: bytes) -> Outcome: ...

    def age(self, seconds: float) -> None:
        """Let time go by."""

    def ring(self, first: int) -> None:
        """From now on new flows go to the nodes from this number on, as if others were drained."""

    def live_flows(self) -> list[LiveFlow]: ...
