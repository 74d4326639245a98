"""`gale keygen DIR`: CURVE keys, for this machine or for a whole cluster.

Without names it makes this machine's own directory (`bus.keys` says what stands in it) and prints
the public key, which the others need. With `--lb` and `--node` it makes DIR/NAME for each machine
named, complete with the public keys of all whom that machine is to admit, ready to be copied there.

Secret keys that exist are never replaced; the lists are made anew each time, so naming the machines
again with one more, or one fewer, gives the directories of the new cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bus import keys
from conf.values import is_name
from services.cli.invocation import NO, WRONG_USE, Invocation, print_json

Names = list[str] | None


def keygen(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where the keys are to be, such as /etc/gale/keys")
    ],
    lb: Annotated[
        Names, typer.Option("--lb", metavar="NAME", help="A load balancer of the cluster.")
    ] = None,
    node: Annotated[
        Names, typer.Option("--node", metavar="NAME", help="A node of the cluster.")
    ] = None,
) -> None:
    """Make CURVE keys: this machine's, or DIR/NAME for each machine of a cluster."""
    lbs, nodes = tuple(lb or ()), tuple(node or ())
    for name in (*lbs, *nodes):
        if not is_name(name):
            typer.echo(f"{name!r} is no name of a machine", err=True)
            raise typer.Exit(WRONG_USE)
    try:
        made = make_cluster(directory, lbs, nodes) if lbs or nodes else {"": _made(directory)}
    except OSError as error:
        typer.echo(f"{error.filename or directory}: {error.strerror}", err=True)
        raise typer.Exit(NO) from None
    public = {name: key.decode() for name, key in made.items()}
    if Invocation.of(context).json:
        machines = [{"name": name, "public": key} for name, key in public.items()]
        print_json({"directory": str(directory), "machines": machines})
    elif lbs or nodes:
        for name, key in public.items():
            typer.echo(f"{directory / name}: {key}")
        typer.echo("Copy each to /etc/gale/keys of its machine, with its modes (cp -p, rsync -a).")
    else:
        typer.echo(f"{directory}: {public['']}")
        typer.echo(
            f"Copy {directory / keys.PUBLIC} to the others: as lbs/NAME.public if this is a load"
            " balancer,\nas nodes/NAME.public if it is a node; NAME is its name in its file."
        )


def make_cluster(directory: Path, lbs: tuple[str, ...], nodes: tuple[str, ...]) -> dict[str, bytes]:
    """DIR/NAME for each machine; returns their public keys. A machine may be both.

    Raises OSError.
    """
    directory.mkdir(mode=keys.DIRECTORY_MODE, parents=True, exist_ok=True)
    public = {name: _made(directory / name) for name in dict.fromkeys((*lbs, *nodes))}
    for name in public:
        _write_list(directory / name / keys.LBS, {lb: public[lb] for lb in lbs})
        admitted = nodes if name in lbs else ()
        _write_list(directory / name / keys.NODES, {node: public[node] for node in admitted})
    return public


def _made(directory: Path) -> bytes:
    """The public key of a machine, whose own keys are made if they are not there."""
    made = keys.make_own(directory)
    if made is not None:
        return made.public
    own = keys.KeyDirectory(directory).own
    if own is None:
        raise OSError(0, "is there and holds no key", str(directory / keys.SECRET))
    return own.public


def _write_list(folder: Path, public: dict[str, bytes]) -> None:
    for path in folder.glob(f"*{keys.SUFFIX}"):
        if path.name.removesuffix(keys.SUFFIX) not in public:
            path.unlink()
    for name, key in public.items():
        keys.write_key(folder / f"{name}{keys.SUFFIX}", key)
