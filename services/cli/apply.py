"""`gale apply`: a whole new configuration file, from the plan to the kernel.

It shows what the file would do (`gale plan`), asks, puts the file in the place of the configuration
(the one before is kept beside it) and has the four processes read it. If one of them refuses it,
the old file is put back.

In a cluster that only *stages* services and VIPs: they hold once every LB that lives has staged the
same. So on all LBs but the last one this says "staged on 1 of 3", and "applied" on the last.
`--majority`, on the LB that leads, does not wait for the rest.

Exit code 0: the kernel routes by it. 1: it does not, and the last line says what is missing: the
other LBs, a restart, or that it was refused. 2: the file is wrong, and nothing was changed.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from conf import Paths, load_lb
from services.cli.client import ApiError, Client, client_of
from services.cli.invocation import NO, WELL, WRONG_USE, Invocation, print_json
from services.cli.plan import TIMEOUT_S, ask_plan, services_of, tell_plan
from services.cli.reload import is_whole, reload_all, tell
from services.cli.tables import show

SETTLE_S = 15.0
STAGED_S = 5.0
"""For so long the files of the other LBs are waited for: whoever applies to all at once."""
POLL_S = 0.2
READABLE = 0o644


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went after the processes had read the file."""

    settled: bool
    """The kernel routes by it."""
    staged: str = ""
    """Where it is staged, if all wait for the rest."""
    leader: str = ""
    refusal: str = ""
    """Why the leader does not go on without the rest."""


def apply(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The whole new configuration file.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    majority: Annotated[
        bool, typer.Option("--majority", help="Do not wait for LBs that have not staged the same.")
    ] = False,
) -> None:
    """Plan, confirm, stage, commit, wait; says how it went."""
    invocation = Invocation.of(context)
    client = client_of(invocation)
    question = {"without": [], "weights": {}, "services": services_of(load_lb(file))}
    planned = ask_plan(client, question)
    if not invocation.json:
        tell_plan(planned)
    _confirm(yes=yes)
    place = invocation.config_path().resolve()
    before = _put(file, place)
    answers = reload_all(Paths.from_environment().run_dir)
    taken = all(each.applied for each in answers)
    if not taken and before is not None:
        _put(before, place)
        reload_all(Paths.from_environment().run_dir)
    outcome = _wait(client, question, majority=majority) if taken else Outcome(False)
    well = is_whole(answers) and outcome.settled
    if invocation.json:
        said = [asdict(each) for each in answers]
        told = {"settled": outcome.settled, "staged": outcome.staged}
        print_json({"ok": well, "plan": planned, "processes": said, **told})
    else:
        tell(answers)
        show(_in_words(outcome, place, before, taken=taken))
    raise typer.Exit(WELL if well else NO)


def _confirm(*, yes: bool) -> None:
    """Or leave all as it is."""
    if yes:
        return
    if not sys.stdin.isatty():
        typer.echo("nobody to ask here: --yes applies it without asking", err=True)
        raise typer.Exit(WRONG_USE)
    if not typer.confirm("Apply it?", err=True):
        typer.echo("nothing was changed", err=True)
        raise typer.Exit(NO)


def _in_words(outcome: Outcome, place: Path, before: Path | None, *, taken: bool) -> Text:
    kept = f"; the file before it is {before}" if before is not None else ""
    if outcome.settled:
        return Text(f"{place} is applied, and the kernel routes by it{kept}", "green")
    if not taken:
        what = "is as it was" if before is not None else "is what they refuse: mend it"
        return Text(f"it is refused, and not in force; {place} {what}", "bold red")
    if not outcome.staged:
        line = f"not in force after {SETTLE_S:.0f} s: gale status says what is missing{kept}"
        return Text(f"{place} is {line}", "bold red")
    line = f"{outcome.staged}; it holds once every LB that lives has staged the same"
    leader = f" ({outcome.leader})" if outcome.leader else ""
    instead = f"or gale apply --majority on the one that leads{leader}"
    if outcome.refusal:
        instead = f"without them: {outcome.refusal}"
    return Text(f"{place} is {line}: gale apply there, {instead}{kept}", "yellow")


# --------------------------------------------------------------------------- the file


def _put(file: Path, place: Path) -> Path | None:
    """The file in the place of the configuration. Where the one before is kept; None: it is it.

    Whoever owns the one before, and may read it, owns and may read this: the processes among them.
    """
    try:
        if not place.exists():
            _write(place, file.read_bytes(), None)
            return None
        if file.samefile(place):
            return None
        like, kept = place.stat(), place.with_name(f"{place.name}.before")
        if file != kept:
            _write(kept, place.read_bytes(), like)
        _write(place, file.read_bytes(), like)
    except OSError as error:
        typer.echo(f"{error.filename}: {error.strerror}; nothing was changed", err=True)
        raise typer.Exit(NO) from None
    return kept


def _write(path: Path, content: bytes, like: os.stat_result | None) -> None:
    """In one step: whoever reads it meanwhile finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)
        if like is not None:
            os.fchown(opened.fileno(), like.st_uid, like.st_gid)
        os.fchmod(opened.fileno(), READABLE if like is None else stat.S_IMODE(like.st_mode))
    beside.replace(path)


# --------------------------------------------------------------------------- how it goes on


def _wait(client: Client, question: dict[str, Any], *, majority: bool) -> Outcome:
    """Until the table by which the kernel routes is the one that was asked for, in good time."""
    begun = time.monotonic()
    outcome, committed = Outcome(False), not majority
    while time.monotonic() < begun + (STAGED_S if outcome.staged else SETTLE_S):
        time.sleep(POLL_S)
        refusal = ""
        try:
            if not committed:
                refusal = _commit(client)
                committed = not refusal
            outcome = _look(client, question, refusal)
        except ApiError:
            continue  # it may be reading its own part of the file
        if outcome.settled:
            break
    return outcome


def _commit(client: Client) -> str:
    """Have the leader go on without the rest; why it does not. It may not have heard all yet."""
    path = "/v1/quorum/commit"
    try:
        client.command(path)
    except ApiError as error:
        return str(error).removeprefix(f"{client.url}{path}: ")
    return ""


def _look(client: Client, question: dict[str, Any], refusal: str) -> Outcome:
    state = client.get("/v1/quorum")
    own = [each for each in state["members"] if each["name"] == state["name"]]
    if any(each["staged"] for each in own):
        return Outcome(False, state["staged"], state["leader"] or "", refusal)
    return Outcome(client.post("/v1/plan", question, TIMEOUT_S)["changes_nothing"])
