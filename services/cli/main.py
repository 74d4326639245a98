"""`gale`: the one program an operator types. An HTTP client, the configuration, and the lab.

Each group of commands is one file of this package, imported only when one of its commands is used:
`gale check` of a small file must not wait for an HTTP client. To add a command:

1. Write `services/cli/nodes.py` with a plain function. Its parameters are the arguments and options
   (typer), its docstring is the help; `Invocation.of(context)` gives what `-c` and `--json` said.

       def nodes(context: typer.Context) -> None:
           '''What this LB and the cluster think of each node.'''

   For a group (`gale node drain ID`) make a `typer.Typer()` with its commands instead.
2. Name it in `COMMANDS` below, as `"module:function"` or `"module:app"`.

Exit codes: 0 well, 1 no, 2 wrong use or bad config. A command says no by `raise typer.Exit(NO)`;
a `ConfigError` that leaves a command becomes its problems on stderr and code 2 here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from conf import ConfigError
from services.cli.invocation import WELL, WRONG_USE, Invocation

COMMANDS = {
    "check": "services.cli.check:check",
    "reload": "services.cli.reload:reload",
    "plan": "services.cli.plan:plan",
    "apply": "services.cli.apply:apply",
    "status": "services.cli.status:status",
    "nodes": "services.cli.nodes:nodes",
    "node": "services.cli.node:app",
    "services": "services.cli.nodes:services",
    "flows": "services.cli.nodes:flows",
    "quorum": "services.cli.cluster:app",
    "handover": "services.cli.cluster:handover",
    "events": "services.cli.events:events",
    "trace": "services.cli.trace:trace",
    "capture": "services.cli.capture:capture",
    "doctor": "services.cli.doctor:doctor",
    "support": "services.cli.support:support",
    "keygen": "services.cli.keygen:keygen",
    "detach": "services.cli.detach:detach",
    "lab": "services.cli.lab:app",
}
"""Every command, in the order `gale --help` shows them, and where it stands."""


def _load(name: str) -> Any:
    """Import the file of one command, and make what typer needs of its function or group."""
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False)
        found.command(name)(function)
    command = get_command(found)
    command.name = name
    command.epilog = "-c FILE and --json work here too: see gale --help."
    return command


def program_options_first(arguments: Sequence[str]) -> list[str]:
    """Move `--json` and `-c FILE` to the front, from wherever they stand before a `--`."""
    first: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            return [*first, *rest, argument, *waiting]
        if argument == "--json":
            first.append(argument)
        elif argument == "-c":
            first += [argument, *[value for value in [next(waiting, None)] if value is not None]]
        else:
            rest.append(argument)
    return [*first, *rest]


class LazyCommands(TyperGroup):
    """The group of `COMMANDS`: knows their names, imports one when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, program_options_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(WRONG_USE) from None


app = typer.Typer(
    cls=LazyCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gale {version('gale')}")
        raise typer.Exit(WELL)


@app.callback()
def gale(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("-c", metavar="FILE", help="The config, if not /etc/gale's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Which Gale it is."),
    ] = False,
) -> None:
    """The Gale load balancer: look at it, ask it, change it.

    Exit codes: 0 well, 1 no, 2 wrong use or bad config.
    """
    context.obj = Invocation(config=config, json=as_json)


def main() -> None:
    app()
