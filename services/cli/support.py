"""`gale support FILE`: one archive for a bug report.

    gale support /tmp/gale-support.tar.gz

What it holds: what the API says (status, nodes, services, quorum, events, metrics), what `gale
doctor` finds, the pinned maps by shape and number of entries, interfaces, routes and filters, the
configuration, the end of each log, versions. What cannot be had is named in `missing.txt` with the
reason: an LB in trouble is just when this is wanted.

**What it does not hold**: keys and tokens. Neither their files are read into it, nor does what they
say stand in any other part: each line of theirs is looked for in every part and taken out, and so
is whatever follows `Bearer`. Nor flows, which have clients' addresses; logs and events may name
nodes and LBs.
"""

from __future__ import annotations

import io
import os
import platform
import re
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from bpf.pins import map_info
from bpf.syscall import MapType, get_object, read_entries
from conf import ConfigError, LbConfig, NodeConfig, Paths, Source, load_either
from services.cli.client import ApiError, Client
from services.cli.invocation import NO, WELL, Invocation, print_json

LOG_BYTES = 1 << 20
"""Of each log, its end."""
LOG_DIRS = (Path("/var/log/gale"), Path("/etc/supervisor/conf.d/log"))
COMMAND_TIMEOUT_S = 10.0
PACKAGES = ("gale", "pyzmq", "numpy", "fastapi", "pyroute2", "supervisor")
COMMANDS = {
    "links.txt": ("ip", "-details", "-statistics", "link"),
    "addresses.txt": ("ip", "address"),
    "routes.txt": ("ip", "route", "show", "table", "all"),
    "neighbours.txt": ("ip", "neighbour"),
    "programs.txt": ("bpftool", "net", "show"),
    "processes.txt": ("supervisorctl", "status"),
}
API = {
    "status.json": "/v1/status",
    "nodes.json": "/v1/nodes",
    "services.json": "/v1/services",
    "quorum.json": "/v1/quorum",
}
LEFT_OUT = "[left-out]"
SHORTEST_SECRET = 8
"""Characters: what is shorter would be found in innocent places."""
_BEARER = re.compile(r"(?i)(bearer\s+)\S+")
Part = Callable[[], str]


def support(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to write it: a .tar.gz.")],
    logs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the logs are, if elsewhere.")
    ] = None,
) -> None:
    """One archive for a bug report; keys and tokens are left out."""
    invocation = Invocation.of(context)
    path = invocation.config_path()
    config = _config(path)
    parts = dict(_parts(invocation, path, config, [logs] if logs is not None else [*LOG_DIRS]))
    secrets = secrets_of(config)
    held: dict[str, str] = {}
    missing: list[str] = []
    for name, part in parts.items():
        try:
            held[name] = without(part(), secrets)
        except (ApiError, OSError, subprocess.SubprocessError, ConfigError, ValueError) as error:
            missing.append(f"{name}: {without(str(error), secrets)}")
    held["missing.txt"] = "".join(f"{line}\n" for line in missing)
    try:
        _write(file, held)
    except OSError as error:
        typer.echo(f"{file}: {error.strerror}; choose another place", err=True)
        raise typer.Exit(NO) from None
    if invocation.json:
        print_json({"file": str(file), "parts": sorted(held), "missing": missing})
    else:
        typer.echo(f"{file}: {len(held)} parts, {file.stat().st_size >> 10} kB")
        for line in missing:
            typer.echo(f"  without {line}")
    raise typer.Exit(WELL)


def _config(path: Path) -> LbConfig | NodeConfig | None:
    """None: it is not there, or wrong; the file itself goes along in any case."""
    try:
        return load_either(Source.read(path))
    except ConfigError:
        return None


def _parts(
    invocation: Invocation, path: Path, config: LbConfig | NodeConfig | None, logs: list[Path]
) -> Iterator[tuple[str, Part]]:
    """Each part's name in the archive, and how it is made."""
    yield "versions.txt", _versions
    yield "config.toml", path.read_text
    yield "doctor.json", lambda: _doctor(invocation)
    yield "maps.json", lambda: _maps(Paths.from_environment().bpf_dir / "maps")
    for name, words in COMMANDS.items():
        yield name, partial(_command, words)
    if isinstance(config, LbConfig):
        client = Client(config.local.api_port)
        for name, place in API.items():
            yield name, partial(_asked, client, place)
        yield "events.json", partial(_events, client)
        yield "metrics.txt", lambda: client.text("/metrics")
    found = {file.resolve() for each in logs if each.is_dir() for file in each.glob("*.log")}
    for log in sorted(found):
        yield f"logs/{log.name}", partial(_end_of, log)


def _asked(client: Client, place: str) -> str:
    return _json(client.get(place))


def _events(client: Client) -> str:
    """All but those of the NAT log, which name clients."""
    page = client.get("/v1/events?since=oldest:0")
    kept = [each for each in page["events"] if not each["topic"].startswith("flow.")]
    return _json(page | {"events": kept})


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _versions() -> str:
    lines = [f"made {time.strftime('%Y-%m-%d %H:%M:%S %z')}", f"kernel {platform.uname().release}"]
    lines += [f"machine {platform.uname().machine}, python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} is not installed")
    release = Path("/etc/os-release")
    return "\n".join([*lines, release.read_text() if release.exists() else ""])


def _doctor(invocation: Invocation) -> str:
    from services.cli.doctor import examine

    return _json([asdict(finding) for finding in examine(invocation)])


def _maps(directory: Path) -> str:
    """The pinned maps: shapes, and of hashes how many entries there are."""
    told = {}
    for pin in sorted(directory.iterdir()):
        fd = get_object(pin)
        try:
            info = map_info(fd)
            shape = asdict(info) | {"type": MapType(info.type).name.lower()}
            if "HASH" in MapType(info.type).name:
                size = info.key_size
                shape["entries"] = sum(len(keys) // size for keys, _ in read_entries(fd))
            told[pin.name] = shape
        finally:
            os.close(fd)
    return _json(told)


def _command(words: tuple[str, ...]) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    return done.stdout + done.stderr


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        return file.read().decode(errors="replace")


# --------------------------------------------------------------------------- what is left out


def secrets_of(config: LbConfig | NodeConfig | None) -> list[str]:
    """Each line of the token's and the keys' files that this user can read."""
    security = getattr(config, "security", None)
    keys, token = getattr(security, "keys", None), getattr(security, "api_token_file", None)
    files = [token] if token is not None else []
    if keys is not None and keys.is_dir():
        files += [path for path in sorted(keys.rglob("*")) if path.is_file()]
    found = set()
    for path in files:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            # `secret-key = "..."`, or the bare word.
            found |= set(re.findall(r"\"([^\"]+)\"", line)) or {line.strip()}
    return sorted((each for each in found if len(each) >= SHORTEST_SECRET), key=len, reverse=True)


def without(text: str, secrets: list[str]) -> str:
    """The text with every secret taken out."""
    for secret in secrets:
        text = text.replace(secret, LEFT_OUT)
    return _BEARER.sub(rf"\1{LEFT_OUT}", text)


def _write(file: Path, held: dict[str, str]) -> None:
    """Readable by its owner alone: it says a good deal of a network."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, text in held.items():
            content = text.encode()
            entry = tarfile.TarInfo(f"gale-support/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
