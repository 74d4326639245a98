"""Programs that somebody asks for while the process runs, on their way, in a thread.

Compiling and loading take seconds, and the process's loop must go on. The maps that they are to use
are borrowed for that time: whoever lent them may give them up meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from bpf.compiler import CompileError
from bpf.syscall import VerifierError

REFUSED = (CompileError, VerifierError, OSError, ValueError)
"""Reasons of the machine, of which the operator should read."""


class Closable(Protocol):
    def close(self) -> None: ...


Loaded = TypeVar("Loaded", bound=Closable)


class Loading(Generic[Loaded]):
    """`load` gets the maps by name, by fds that are its own for as long as it runs."""

    def __init__(
        self, name: str, living: Mapping[str, int], load: Callable[[Mapping[str, int]], Loaded]
    ) -> None:
        own = {each: os.dup(fd) for each, fd in living.items()}
        self._result: Loaded | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._is_wanted = True
        threading.Thread(target=self._load, args=(own, load), daemon=True, name=name).start()

    def _load(self, own: dict[str, int], load: Callable[[Mapping[str, int]], Loaded]) -> None:
        result, error = None, None
        try:
            result = load(own)
        except BaseException as raised:
            error = raised  # raised again where somebody sees it
        for fd in own.values():
            os.close(fd)
        with self._lock:
            if self._is_wanted:
                self._result, self._error = result, error
            elif result is not None:
                result.close()

    @property
    def is_done(self) -> bool:
        return self._result is not None or self._error is not None

    @property
    def refusal(self) -> str:
        """Why the machine does not take them; empty when it does."""
        return str(self._error) if isinstance(self._error, REFUSED) else ""

    def take(self) -> Loaded:
        """Raises what loading has raised."""
        if self._error is not None:
            raise self._error
        assert self._result is not None, "it is done"
        return self._result

    def abandon(self) -> None:
        """They are not needed any more."""
        with self._lock:
            self._is_wanted = False
            if self._result is not None:
                self._result.close()
