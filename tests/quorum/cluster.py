"""Several cores that hear each other at once: what they do together, without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from bus.states import LocalView
from bus.topics import Topic
from bus.words import NodeState
from services.quorum.composition import QuorumConfig
from services.quorum.core import Quorum
from services.quorum.durable import BLANK
from services.quorum.table import FloatingVip, TableConfig
from tests.quorum.views import WEB, quorum_config, seen, view

VIP = "10.80.0.100"
OLD = TableConfig((WEB,), (FloatingVip(VIP),))


class Cluster:
    """LBs by name; a name is also an LB's entry in the list."""

    def __init__(self, *names: str, table: TableConfig | None = None, witness: str = "") -> None:
        self.now_ms = 0
        self.random = Random(1)
        self.silent: set[str] = set()
        """LBs that neither hear nor are heard."""
        self.events: list[tuple[str, Topic, object]] = []
        self.configs: dict[str, QuorumConfig] = {}
        self.cores: dict[str, Quorum] = {}
        for name in names:
            others = tuple(each for each in names if each != name)
            config = quorum_config(name=name, table=table)
            self.configs[name] = replace(
                config, address=name, others=others, witness=name == witness
            )
            self.cores[name] = Quorum(
                self.configs[name], BLANK, 7, 0, boot=name, draw=self.random.random
            )

    def see(self, *views: tuple[str, LocalView]) -> None:
        for name, sees in views:
            self.cores[name].report(f"health of {name}", sees, self.now_ms)
        self.settle()

    def settle(self) -> None:
        """Have everybody do what there is to do at this moment."""
        busy = True
        while busy:
            busy = False
            for name, core in self.cores.items():
                while (ready := core.take(self.now_ms)) is not None:
                    busy = True
                    if ready.persist is not None:
                        core.stored(ready.persist.mark, self.now_ms)
                    self.events += [(name, *event) for event in ready.events]
                    for out in ready.sends:
                        if not self.silent & {name, out.to}:
                            self.cores[out.to].receive(name, out.message, self.now_ms)

    def run(self, for_ms: int) -> None:
        end_ms = self.now_ms + for_ms
        while self.now_ms < end_ms:
            self.now_ms += 1
            for core in self.cores.values():
                due_ms = core.next_due_ms()
                if due_ms is not None and due_ms <= self.now_ms:
                    core.tick(self.now_ms)
            self.settle()

    def until(self, condition: Callable[[], object], within_ms: int = 20_000) -> None:
        end_ms = self.now_ms + within_ms
        while not condition():
            assert self.now_ms < end_ms, "it does not come about"
            self.run(1)

    def relist(self, listed: tuple[str, ...], *names: str) -> None:
        """The files of these LBs list those from now on, and are read again."""
        for name in names:
            others = tuple(each for each in listed if each != name)
            self.configs[name] = replace(self.configs[name], others=others, listed=listed)
            self.cores[name].reconfigure(self.configs[name], self.now_ms)
        self.settle()

    def leader(self) -> str | None:
        """Whom all that are not silent follow."""
        leaders = {
            core.state(self.now_ms).leader
            for name, core in self.cores.items()
            if name not in self.silent
        }
        return leaders.pop() if len(leaders) == 1 else None


def led(*names: str, witness: str = "") -> Cluster:
    """A cluster with a leader and a table."""
    made = Cluster(*names, table=OLD, witness=witness)
    made.until(made.leader)
    made.see(*((name, view(seen("a", NodeState.UP))) for name in names if name != witness))
    made.until(lambda: all(core.committed(made.now_ms) for core in made.cores.values()))
    made.run(500)
    return made


def holder(made: Cluster) -> list[str]:
    return [name for name, core in made.cores.items() if core._grants.claims]


def members_at(made: Cluster, name: str) -> set[str]:
    held = made.cores[name].committed(made.now_ms)
    assert held is not None
    return {member.name for member in held.table.members}


def others_of(made: Cluster) -> tuple[str, str, str]:
    """The leader and the two others."""
    leader = made.leader()
    assert leader is not None
    one, other = (name for name in made.cores if name != leader)
    return leader, one, other


def newcomer(made: Cluster, name: str) -> None:
    """An LB with an empty disk whose file lists the others."""
    config = replace(
        quorum_config(name=name, table=OLD), address=name, others=tuple(sorted(made.cores))
    )
    made.configs[name] = config
    made.cores[name] = Quorum(config, BLANK, 9, made.now_ms, boot=name)
