"""Real requests while something else happens, and what became of them.

`Traffic` runs load.py on the client machine and reads its results as they come; the properties say
what a test or the demo promises about them. A gap is the time between two good answers one after
the other, as a user at the client sees it.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

LOAD_PROGRAM = Path(__file__).with_name("load.py").read_text()


@dataclass(frozen=True, slots=True)
class Result:
    """One request, on a connection of its own."""

    sent_ms: float
    took_ms: float
    lag_ms: float
    answer: str
    error: str

    @property
    def ended_ms(self) -> float:
        return self.sent_ms + self.took_ms


def read_results(lines: Iterable[str]) -> Iterator[Result]:
    for line in lines:
        yield Result(**json.loads(line))


@dataclass
class Summary:
    """What became of a number of requests."""

    results: list[Result]

    @property
    def failures(self) -> list[Result]:
        return [result for result in self.results if result.error]

    @property
    def errors(self) -> Counter[str]:
        return Counter(result.error for result in self.failures)

    @property
    def answers(self) -> Counter[str]:
        return Counter(result.answer for result in self.results if not result.error)

    @property
    def slowest_ms(self) -> float:
        return max((result.took_ms for result in self.results), default=0.0)

    @property
    def largest_lag_ms(self) -> float:
        return max((result.lag_ms for result in self.results), default=0.0)

    @property
    def longest_gap_ms(self) -> float:
        ends = sorted(result.ended_ms for result in self.results if not result.error)
        return max((later - one for one, later in pairwise(ends)), default=0.0)

    @property
    def failing_ms(self) -> float:
        """From when the first failed request was sent to when the last one was."""
        sent = [result.sent_ms for result in self.failures]
        return max(sent) - min(sent) if sent else 0.0

    def shares(self, names: Iterable[str]) -> dict[str, float]:
        answers = self.answers
        total = answers.total() or 1
        return {name: answers[name] / total for name in names}


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    """A list that grows by each line a process prints."""
    lines: list[str] = []
    stdout = process.stdout
    assert stdout is not None

    def read() -> None:
        for line in stdout:
            lines.append(line)  # one by one: the list is read meanwhile

    threading.Thread(target=read, daemon=True).start()
    return lines


@dataclass
class Traffic:
    """A running load.py. `results` grows while it runs."""

    process: subprocess.Popen[str]
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for result in read_results(self.process.stdout):
            self.results.append(result)

    def since(self, index: int) -> Summary:
        """What ended after the first `index` results did."""
        return Summary(self.results[index:])

    def stop(self) -> Summary:
        """Send no more, wait for what is under way, and return everything."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._reader.join(timeout=30)
        code = self.process.wait(timeout=30)
        assert self.process.stderr is not None
        complaint = self.process.stderr.read()
        if code != 0:
            raise RuntimeError(f"the load program ended with {code}: {complaint}")
        return Summary(list(self.results))


def load_words(host: str, rate: float, port: int = 8080) -> list[str]:
    """The command that runs load.py until its input is closed."""
    options = ["--rate", str(rate), "--until-input-ends"]
    return ["python3", "-c", LOAD_PROGRAM, host, str(port), *options]
