"""`gale reload`: the four processes read the configuration again, and each says what it took of it.

The file is checked first: one that is wrong is not shown to them, and its problems are said with
exit code 2. Then each process is asked by its own command, and answers when it has done it. No
packet is lost by this: the programs go on, and the maps change entry by entry.

In a cluster services and VIPs are only staged by this, until every LB that lives has staged the
same: `gale status` says on how many. `--majority`, asked of the leader, does not wait for the rest.

Exit code 1: a process did not answer or refused, or some keys wait for a restart (they are named).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
import zmq
from rich.text import Text

from bus import topics
from bus.commands import CommandError, request
from conf import Paths
from services.cli.client import ApiError, client_of, refused
from services.cli.invocation import NO, WELL, Invocation, print_json
from services.cli.tables import show

PROCESSES = (topics.QUORUM, topics.DATAPLANE, topics.HEALTH, topics.API)
TIMEOUT_MS = 5_000


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What one process said."""

    process: str
    applied: bool
    problems: list[str]
    restart_needed: list[str]


def reload(
    context: typer.Context,
    majority: Annotated[
        bool, typer.Option("--majority", help="Do not wait for LBs that have not staged the same.")
    ] = False,
) -> None:
    """Have all four processes run the configuration as it stands in the file now."""
    invocation = Invocation.of(context)
    invocation.lb_config()
    answers = reload_all(Paths.from_environment().run_dir)
    if majority and is_whole(answers):
        try:
            client_of(invocation).command("/v1/quorum/commit")
        except ApiError as error:
            raise refused(error) from None
    if invocation.json:
        print_json({"ok": is_whole(answers), "processes": [asdict(each) for each in answers]})
    else:
        tell(answers)
    raise typer.Exit(WELL if is_whole(answers) else NO)


def is_whole(answers: list[Reloaded]) -> bool:
    """Whether all of the file holds everywhere."""
    return all(each.applied and not each.restart_needed for each in answers)


def reload_all(run_dir: Path) -> list[Reloaded]:
    """Ask all at once, and wait for each."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with ThreadPoolExecutor(len(PROCESSES)) as asking:
            return list(asking.map(lambda name: _reload(context, run_dir, name), PROCESSES))
    finally:
        context.term()


def _reload(context: zmq.Context[zmq.Socket[bytes]], run_dir: Path, process: str) -> Reloaded:
    path = topics.command_path(run_dir, process)
    try:
        answer = request(context, path, "reload", {}, TIMEOUT_MS)
    except CommandError as error:
        return Reloaded(process, False, [str(error)], [])
    except TimeoutError:
        why = f"no answer; see supervisorctl status gale:{process}"
        return Reloaded(process, False, [why], [])
    return Reloaded(process, answer["applied"], answer["problems"], answer["restart_needed"])


def tell(answers: list[Reloaded]) -> None:
    for each in answers:
        word = Text("runs it", "green") if each.applied else Text("KEEPS THE OLD ONE", "bold red")
        show(Text(f"{each.process:<10} ").append(word))
        for problem in each.problems:
            show(Text(f"  {problem}", "red"))
    waiting = sorted({key for each in answers for key in each.restart_needed})
    if waiting:
        keys = ", ".join(waiting)
        line = f"{keys}: not before a restart -> supervisorctl restart 'gale:*'"
        show(Text(line, "yellow"))
