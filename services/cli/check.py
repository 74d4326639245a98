"""`gale check FILE`: every problem of a configuration file, before a process meets it.

One line each, `FILE:LINE: key: what is wrong, what is expected`, and exit code 2. Whether it is a
load balancer's file or a node's is seen from its tables. `--host` asks, for a file that is well by
itself, whether this machine has what it names; that is no fault of the file, so the code is 1.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from conf import ConfigError, LbConfig, Problem, Source, load_either
from services.cli.invocation import NO, WELL, WRONG_USE, Invocation, print_json


def check(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="The file; by default the one of -c, or this machine's lb.toml."),
    ] = None,
    host: Annotated[
        bool,
        typer.Option(
            "--host", help="Also what depends on this machine: interfaces, own address, keys."
        ),
    ] = False,
) -> None:
    """Check a configuration file: one line for each problem, and exit code 2."""
    invocation = Invocation.of(context)
    path = file or invocation.config_path()
    kind, code = "", WELL
    problems: tuple[Problem, ...] = ()
    try:
        source = Source.read(path)
        config = load_either(source)
        kind = "lb" if isinstance(config, LbConfig) else "node"
        if host:
            from services.cli.host import host_problems  # only here: netlink is slow to import

            problems = host_problems(source, config)
            code = NO if problems else WELL
    except ConfigError as error:
        problems, code = error.problems, WRONG_USE
    _report(path, kind, problems, as_json=invocation.json)
    raise typer.Exit(code)


def _report(path: Path, kind: str, problems: tuple[Problem, ...], *, as_json: bool) -> None:
    if as_json:
        found = [asdict(problem) for problem in problems]
        print_json({"file": str(path), "kind": kind, "ok": not found, "problems": found})
        return
    for problem in problems:
        typer.echo(str(problem))
    if not problems:
        whose = "a load balancer" if kind == "lb" else "a node"
        typer.echo(f"{path}: well, the configuration of {whose}")
