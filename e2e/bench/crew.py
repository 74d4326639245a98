"""Contestants in processes of their own, that do a trial when it is their turn.

Each process begins with nothing of its parent's memory, builds its bench and waits. All stay until
the end, so that the trials of a round follow each other at once. They end with their parent.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

from e2e.bench.samples import turns


class Contestant(Protocol):
    """What a process is told about its part; it must survive pickling."""

    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=Contestant)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Bench(Protocol[T_co]):
    """What a process builds."""

    def trial(self) -> T_co: ...

    def close(self) -> None:
        """Take back whatever would outlive the process."""


class _Worker(Generic[T]):
    """A contestant's process, as its parent sees it."""

    def __init__(self, make: Callable[[Any], Bench[T]], contestant: Contestant) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, contestant))
        self._process.start()
        theirs.close()
        self._name = contestant.name

    def answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self._name}: its process has died; see above") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def trial(self) -> T:
        self._pipe.send("trial")
        result: T = self.answer()
        return result

    def stop(self) -> None:
        self._pipe.close()
        self._process.join()


def run(
    contestants: Sequence[C],
    make: Callable[[C], Bench[T]],
    trials: int,
    progress: Callable[[str], None],
) -> dict[str, tuple[T, ...]]:
    """So many trials of each, taking turns. Raises what any of them raises."""
    seen: dict[str, list[T]] = {one.name: [] for one in contestants}
    with _workers(contestants, make, progress) as workers:
        for number, one in turns(contestants, trials):
            progress(f"trial {number + 1} of {trials}: {one.name}")
            seen[one.name].append(workers[one.name].trial())
    return {name: tuple(results) for name, results in seen.items()}


@contextmanager
def _workers(
    contestants: Sequence[C], make: Callable[[C], Bench[T]], progress: Callable[[str], None]
) -> Iterator[dict[str, _Worker[T]]]:
    workers: dict[str, _Worker[T]] = {}
    try:
        for one in contestants:
            progress(f"setting up: {one.name}")
            workers[one.name] = _Worker(make, one)
            workers[one.name].answer()
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


def _serve(pipe: Connection, make: Callable[[Any], Bench[Any]], contestant: Any) -> None:
    """The life of a process: set up, then a trial for each word, until the pipe closes."""
    bench = None
    try:
        bench = make(contestant)
        pipe.send("ready")
        while pipe.recv():
            pipe.send(bench.trial())
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        # Not all exceptions survive pickling; their words do.
        pipe.send(RuntimeError(f"{contestant.name}: {type(error).__name__}: {error}"))
    finally:
        if bench is not None:
            bench.close()
