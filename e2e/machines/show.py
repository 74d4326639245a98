"""What a program that shows things says, and how it waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable

FOLLOW_TIMEOUT_S = 60.0


class Show:
    """Tells what was seen, with the time, and keeps what was not."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun_s:7.1f} s  {text}", flush=True)

    def check(self, what: str, holds: bool, seen: object = "") -> None:
        self.say(f"{'ok     ' if holds else 'FAILED '} {what} {seen}")
        if not holds:
            self.failed.append(what)


def follows(condition: Callable[[], bool], timeout_s: float = FOLLOW_TIMEOUT_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
