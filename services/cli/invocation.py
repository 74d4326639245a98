"""Options common to every `gale` command: `-c FILE` and `--json`.

`-c FILE` and `--json` belong to the program, not to one command, so they are taken wherever they
stand (`gale --json nodes`, `gale nodes --json`) and handed to the command as the `Invocation`:

    def nodes(context: typer.Context) -> None:
        invocation = Invocation.of(context)
        if invocation.json:
            print_json({"nodes": [...]})
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import typer

from conf import LbConfig, Paths, load_lb

WELL, NO, WRONG_USE = 0, 1, 2
"""Exit codes of every command: done; the answer is no; wrong use or bad config."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """The program's own options. `config` None: where the environment, or the default, says."""

    config: Path | None
    json: bool

    @staticmethod
    def of(context: typer.Context) -> Invocation:
        invocation = context.find_object(Invocation)
        if invocation is None:
            raise RuntimeError("the command was not started by services.cli.main")
        return invocation

    def config_path(self) -> Path:
        return self.config or Paths.from_environment().lb_config

    def lb_config(self) -> LbConfig:
        """The LB's configuration; a bad one ends the program with its problems and code 2."""
        return load_lb(self.config_path())


def print_json(value: Any) -> None:
    """One JSON document on stdout: what `--json` promises."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
