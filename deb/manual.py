"""Man pages, made from the command line program: what `--help` says, in man's own form.

`gale.1` has every command with its arguments and options, as the program's own tree of commands
holds them. A process takes no options; its page has the first lines of its module's docstring, the
paths and the exit statuses.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from services.cli.main import COMMANDS, app

FILES = """\
.SH FILES
.TP
.I /etc/gale/lb.toml, /etc/gale/node.toml
Configuration; GALE_CONFIG names another file.
.TP
.I /run/gale/
Sockets; moved by GALE_RUN_DIR.
.TP
.I /var/lib/gale/
What survives a restart; moved by GALE_STATE_DIR.
.TP
.I /sys/fs/bpf/gale/v1/
Pinned programs and maps; moved by GALE_BPF_DIR.
"""
PROGRAMS_STATUS = "0: well. 1: the answer is no. 2: wrong use, or a wrong configuration."
PROCESSES_STATUS = (
    "0: it was told to end. 1: a fault of its own. 2: its configuration is wrong; the log names"
    " file, line and key."
)


def escaped(text: str) -> str:
    """Text that roff prints as it is; each line by itself, none of them a request."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in lines)


def paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.replace("\b", "").split("\n\n"):
        yield ".PP"
        yield escaped(" ".join(paragraph.split()))


def page_of_program() -> str:
    """gale(1)."""
    program = get_command(app)
    context = typer.Context(program, info_name="gale")
    lines = [".TH GALE 1", ".SH NAME", "gale \\- operate the Gale load balancer"]
    lines += [".SH SYNOPSIS", ".B gale", escaped("[OPTIONS] COMMAND [ARGUMENTS]")]
    lines += [".SH DESCRIPTION", *paragraphs(program.help or ""), ".SH OPTIONS"]
    lines += _options(program, context)
    lines.append(".SH COMMANDS")
    for name in COMMANDS:
        lines += _command(program, context, name)
    lines += [".SH EXIT STATUS", escaped(PROGRAMS_STATUS), FILES.rstrip()]
    return "\n".join(lines) + "\n"


def _command(group: Any, context: typer.Context, name: str) -> Iterator[str]:
    """A command's section, and those of the commands below it."""
    command = group.get_command(context, name)
    here = typer.Context(command, info_name=name, parent=context)
    yield f".SS {escaped(here.command_path)}"
    usage = " ".join(command.collect_usage_pieces(here))
    yield escaped(f"{here.command_path} {usage}")
    yield from paragraphs(command.help or "")
    yield from _options(command, here)
    if hasattr(command, "list_commands"):
        for below in command.list_commands(here):
            yield from _command(command, here, below)


def _options(command: Any, context: typer.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "completion" not in record[0]:
            yield ".TP"
            yield f".B {escaped(record[0])}"
            yield escaped(" ".join(record[1].split())) or "\\&"


def page_of_process(name: str, module: str) -> str:
    """The page of section 8 of one of the processes."""
    told = importlib.import_module(module).__doc__ or ""
    first = told.strip().split("\n\n")[0]
    summary, _, _ = first.partition("\n")
    lines = [f".TH {name.upper()} 8", ".SH NAME"]
    lines += [f"{name} \\- {escaped(summary.rstrip('.'))}", ".SH SYNOPSIS", f".B {escaped(name)}"]
    lines += [".SH DESCRIPTION", *paragraphs(first)]
    lines += [".PP", "supervisord starts it; see /usr/share/gale/supervisor/."]
    lines += [".SH EXIT STATUS", escaped(PROCESSES_STATUS), FILES.rstrip()]
    lines += [".SH SEE ALSO", ".BR gale (1)"]
    return "\n".join(lines) + "\n"
