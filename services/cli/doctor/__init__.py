"""`gale doctor`: what on this machine would stop packets, and what to do about it.

One line for each thing that was looked at: `ok`, `warn` (it works, less well or not for everybody)
or `fail` (packets are lost, or nothing starts); exit code 1 if one fails. It looks and changes
nothing, needs no process of Gale to run, and works the same before the first start and in the
middle of trouble. Run it as root: without, the kernel does not tell whose programs are attached.

Which machine it is the file says: that of `-c` or of the environment, or else whichever of
/etc/gale/lb.toml and /etc/gale/node.toml there is. Where both are, the machine is looked at as an
LB and then as a node; what both find alike is said once.

The checks stand in two tables, `lb.CHECKS` and `node.CHECKS` (`gale doctor --list` prints them);
each is a function from what was read of this machine to findings.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from conf import LbConfig, Paths, Source, load_either
from services.cli.doctor import lb, node
from services.cli.doctor.finding import Check, Finding, Findings, Level, line
from services.cli.invocation import NO, WELL, Invocation, print_json
from services.cli.tables import show, table


def doctor(
    context: typer.Context,
    list_all: Annotated[
        bool, typer.Option("--list", help="What is looked at, without looking.")
    ] = False,
) -> None:
    """What on this machine would stop packets, and what to do about it."""
    invocation = Invocation.of(context)
    if list_all:
        _list(as_json=invocation.json)
        return
    findings = [*examine(invocation)]
    failed = any(finding.level is Level.FAIL for finding in findings)
    if invocation.json:
        print_json({"ok": not failed, "checks": [asdict(finding) for finding in findings]})
    else:
        show(*(line(finding) for finding in findings))
    raise typer.Exit(NO if failed else WELL)


def examine(invocation: Invocation) -> Findings:
    """All that the checks find on this machine."""
    paths = Paths.from_environment()
    said: set[Finding] = set()
    for file in files_of(invocation, paths):
        for finding in _of_file(Source.read(file), paths):
            if finding not in said:
                yield finding
            said.add(finding)


def _of_file(source: Source, paths: Paths) -> Findings:
    config = load_either(source)
    if isinstance(config, LbConfig):
        here = lb.look(source, config, paths)
        for of_lb in lb.CHECKS:
            yield from of_lb.examine(here)
    else:
        there = node.look(source, config, paths)
        for of_node in node.CHECKS:
            yield from of_node.examine(there)


def files_of(invocation: Invocation, paths: Paths) -> tuple[Path, ...]:
    """The files that say which machine this is."""
    if invocation.config is not None or os.environ.get("GALE_CONFIG"):
        return (invocation.config_path(),)
    found = tuple(path for path in (paths.lb_config, paths.node_config) if path.exists())
    return found or (paths.node_config,)


def _list(*, as_json: bool) -> None:
    tables: dict[str, tuple[Check[Any], ...]] = {"lb": lb.CHECKS, "node": node.CHECKS}
    if as_json:
        print_json(
            {
                kind: [{"check": each.name, "sees_to": each.sees_to} for each in checks]
                for kind, checks in tables.items()
            }
        )
        return
    for kind, checks in tables.items():
        rows = [[each.name, each.sees_to] for each in checks]
        title = "on a load balancer" if kind == "lb" else "on a node"
        show(table(title, ("check", "sees to it that"), rows))
