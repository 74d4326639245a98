"""One of Gale's processes, with a stop watch on the turns of its loop.

    python -m e2e.bench.timed health|quorum|dataplane FILE

Whenever it is sent SIGUSR1, it writes into FILE what its turns have cost since the last time: their
number, and of the dearest the CPU time of the loop's thread and the clock's time, both in ms. Other
work on the machine is not the loop's doing, so it is the CPU time that counts.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus.codec import to_json
from services.dataplane import main as dataplane
from services.health import main as health
from services.quorum import main as quorum

PROCESSES: dict[str, tuple[type[Any], Callable[[], None]]] = {
    "health": (health.HealthProcess, health.main),
    "quorum": (quorum.QuorumProcess, quorum.main),
    "dataplane": (dataplane.DataplaneProcess, dataplane.main),
}


class Watch:
    """What the turns have cost since the last report."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turns = 0
        self._dearest_ms = self._longest_ms = 0.0

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            cpu_s, clock_s = time.thread_time(), time.monotonic()
            answer = step(*arguments)
            self._turns += 1
            self._dearest_ms = max(self._dearest_ms, 1000 * (time.thread_time() - cpu_s))
            self._longest_ms = max(self._longest_ms, 1000 * (time.monotonic() - clock_s))
            return answer

        return timed

    def report(self, *_: object) -> None:
        said = {"turns": self._turns, "cpu_ms": self._dearest_ms, "clock_ms": self._longest_ms}
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(to_json(said))
        fresh.replace(self._path)
        self._turns = 0
        self._dearest_ms = self._longest_ms = 0.0


def main() -> None:
    name, path = sys.argv[1], Path(sys.argv[2])
    del sys.argv[1:]
    kind, run = PROCESSES[name]
    watch = Watch(path)
    kind._step = watch.around(kind._step)
    signal.signal(signal.SIGUSR1, watch.report)
    run()


if __name__ == "__main__":
    main()
