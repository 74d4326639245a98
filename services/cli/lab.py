"""`gale lab`: the lab in network namespaces, from a checkout of the repository.

The lab is no part of the installed package, so `e2e.lab` is imported when a command needs it, from
the checkout this file stands in. `LabError` becomes its message and exit code 1. A command that
changes the lab waits until no other uses it; looking (`status`, `exec`) and `fault` never wait,
since they are what one does to a lab that something else is using.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from bus.words import MOST_MEMBERS
from services.cli.invocation import NO, WRONG_USE, Invocation, print_json

LEFT_STANDING = """\
The lab did not come up; what there is of it is left standing. Look around with
`gale lab exec lb-0 -- CMD` and in /run/gale/lab/*/log, then `gale lab down`."""
CHECKOUT_DIR = Path(__file__).resolve().parents[2]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="A whole cluster on this machine, to try and to test.",
)
fault = typer.Typer(add_completion=False, no_args_is_help=True, help="Break something, or mend it.")
app.add_typer(fault, name="fault")

Machine = Annotated[str, typer.Argument(metavar="WHO", help="client, router, lb-0, node-2, ...")]
Process = Annotated[
    str, typer.Argument(metavar="PROCESS", help="health, agent, nginx, ..., or supervisord")
]


def _say(text: str) -> None:
    typer.echo(text, err=True)


@contextmanager
def _lab() -> Iterator[ModuleType]:
    """The package `e2e.lab`; what goes wrong in it ends the command with its message."""
    if not (CHECKOUT_DIR / "e2e" / "lab").is_dir():
        _say("the lab is not part of the installed package: run this from a checkout")
        raise typer.Exit(WRONG_USE)
    if str(CHECKOUT_DIR) not in sys.path:
        sys.path.insert(0, str(CHECKOUT_DIR))
    import e2e.lab

    try:
        yield e2e.lab
    except e2e.lab.LabError as error:
        _say(str(error))
        raise typer.Exit(NO) from None


@app.command()
def up(
    mode: Annotated[str, typer.Option(help="l2, l3 or l4: how packets reach the nodes.")] = "l4",
    lbs: Annotated[int, typer.Option(min=1, max=MOST_MEMBERS, help="How many LBs.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, max=100, help="How many nodes.")] = 3,
    witness: Annotated[
        bool, typer.Option("--witness", help="The first node's machine votes with the LBs.")
    ] = False,
    shared: Annotated[
        bool, typer.Option("--shared", help="Each LB's machine is a node too: no others.")
    ] = False,
    mtu: Annotated[int, typer.Option(min=576, max=65000, help="Of every network.")] = 1500,
    devices: Annotated[
        str,
        typer.Option(
            metavar="PUBLIC/PRIVATE",
            help="Kinds of the LBs' interfaces: veth, bridge, macvlan, vlan, bond, tap.",
        ),
    ] = "veth/veth",
    one_interface: Annotated[
        bool,
        typer.Option(
            "--one-interface", help="LBs have one, on one network with nodes and clients."
        ),
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="EXTRA.toml", help="Laid over each LB's.")
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="All machines know one another by keys.")
    ] = False,
) -> None:
    """Build the lab: return once one LB leads, and every node is routed to on every LB."""
    if mode not in ("l2", "l3", "l4"):
        raise typer.BadParameter(f"{mode}: expected l2, l3 or l4", param_hint="--mode")
    with _lab() as lab:
        _check_devices(devices)
        if shared and witness:
            raise typer.BadParameter(
                "with --shared there is no machine that only votes", param_hint="--witness"
            )
        if witness and lbs == MOST_MEMBERS:
            raise typer.BadParameter(
                f"{MOST_MEMBERS} vote at most, and it would be one more", param_hint="--witness"
            )
        plan = lab.Plan(
            lbs=lbs,
            nodes=nodes,
            mode=mode,
            mtu=mtu,
            devices=(devices,),
            one_interface=one_interface,
            keys=keys,
            witness=witness,
            shared=shared,
        )
        built = lab.Lab(plan)
        with lab.exclusive(_say):
            _up(lab, built, config)
        _say("the lab serves; `gale lab status` shows it, `gale lab down` takes it away")


def _check_devices(devices: str) -> None:
    """This machine's kernel must have both kinds."""
    from e2e.lab.devices import known

    kinds = devices.split("/")
    if len(kinds) != 2 or not set(kinds) <= known():
        there = ", ".join(sorted(known()))
        raise typer.BadParameter(
            f"{devices}: expected two of {there}, as bridge/veth", param_hint="--devices"
        )


def _up(lab: ModuleType, built: Any, config: Path | None) -> None:
    try:
        built.up(_say, config)
    except lab.ExtraFileError as error:
        _say(str(error))
        raise typer.Exit(WRONG_USE) from None
    except lab.LabError as error:
        _say(f"{error}\n{LEFT_STANDING}")
        raise typer.Exit(NO) from None


@app.command()
def down() -> None:
    """Take the lab away, and whatever a killed one left."""
    with _lab() as lab, lab.exclusive(_say):
        lab.down(_say)


@app.command()
def status(context: typer.Context) -> None:
    """The machines of the lab, their addresses and processes."""
    with _lab() as lab:
        shown = lab.Lab.find().status()
    if Invocation.of(context).json:
        print_json(shown)
        return
    table = Table("machine", "addresses", "processes", "API", box=None, pad_edge=False)
    for machine in shown["machines"]:
        table.add_row(
            machine["name"],
            " ".join(machine["addresses"]),
            _processes_text(machine["processes"]),
            machine["api"] or "",
        )
    Console().print(table)


def _processes_text(states: dict[str, str]) -> str:
    return "\n".join(f"{name} {state.lower()}" for name, state in states.items())


@app.command(
    name="exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def execute(who: Machine, command: Annotated[list[str], typer.Argument(metavar="CMD...")]) -> None:
    """Run a command on a machine of the lab, with that machine's GALE_* environment."""
    with _lab() as lab:
        running = lab.Lab.find()
        words = running.command(who, command[1:] if command[0] == "--" else command)
        environment: dict[str, Any] = running.environment(who)
    _become(words, environment)


def _become(words: list[str], environment: dict[str, str]) -> NoReturn:
    os.execvpe(words[0], words, environment)


@fault.command()
def cut(who: Machine) -> None:
    """Cut every link of a machine, silently: the carrier stays up."""
    with _lab() as lab:
        lab.Lab.find().set_cut(who, cut=True)


@fault.command()
def heal(who: Machine) -> None:
    """Take `cut` back, and every `one-way` and `partial` that names the machine."""
    with _lab() as lab:
        lab.Lab.find().set_cut(who, cut=False)


@fault.command(name="one-way")
def one_way(who: Machine, to: Machine) -> None:
    """Have nothing from WHO reach the other machine, silently; what that sends arrives."""
    with _lab() as lab:
        lab.Lab.find().cut_way(who, to)


@fault.command()
def partial(who: Machine, to: Machine) -> None:
    """Cut two machines from one another, silently: all others are reached by both."""
    with _lab() as lab:
        running = lab.Lab.find()
        running.cut_way(who, to)
        running.cut_way(to, who)


@fault.command()
def kill(who: Machine, process: Process) -> None:
    """SIGKILL a process; supervisord starts it again (but not a node's server)."""
    with _lab() as lab:
        lab.Lab.find().signal(who, process, signal.SIGKILL)


@fault.command()
def pause(who: Machine, process: Process) -> None:
    """SIGSTOP a process."""
    with _lab() as lab:
        lab.Lab.find().signal(who, process, signal.SIGSTOP)


@fault.command()
def resume(who: Machine, process: Process) -> None:
    """SIGCONT a process."""
    with _lab() as lab:
        lab.Lab.find().signal(who, process, signal.SIGCONT)


@fault.command()
def stop(who: Machine) -> None:
    """Stop a node's server, while the node lives on."""
    with _lab() as lab:
        lab.Lab.find().set_server(who, running=False)


@fault.command()
def start(who: Machine) -> None:
    """Start a node's server again."""
    with _lab() as lab:
        lab.Lab.find().set_server(who, running=True)
