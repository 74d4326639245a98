"""Every file of the lab: configurations, what nginx serves, and the mounts they live on.

All of it lies below `/run/gale/lab`, a tmpfs of the lab's own, so that taking it down is to unmount
it and state costs no fsync. A machine's directory:

    lb-0/    lb.toml  supervisord.conf  run/  state/  log/  bpf/ (a bpffs)  supervisor/
    node-0/  node.toml  supervisord.conf  nginx.conf  run/  state/  log/  bpf/  supervisor/
             a machine that is both has both sets, as /etc/gale and /etc/supervisor have
    keys/    one directory for each machine, if they have keys
    www/     what every node's nginx serves

`supervisor/` is what /etc/supervisor/conf.d is on a real machine: the shipped file of
conf/supervisor, linked, and `log` beside it. The environment of the services stands in
supervisord.conf itself, so that whoever starts supervisord there starts the same thing. On a
machine that is both it names the LB's file; the agent's own is named behind its program.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conf import ConfigError, Problem, Source, load_lb, load_node
from e2e.lab import plan, servers, users
from e2e.lab.network import ExtraFileError, command
from e2e.lab.plan import Plan, Service
from services.cli.keygen import make_cluster

WWW_DIR = plan.ROOT_DIR / "www"
PLAN_FILE = plan.ROOT_DIR / "plan.json"
BLOCK_BYTES = 1 << 20
SMALL_FILES = {"1k.bin": 1 << 10, "1m.bin": 1 << 20}
FILES = SMALL_FILES | {"200m.bin": 200 << 20}
SHIPPED_SUPERVISOR_DIR = plan.CHECKOUT_DIR / "conf" / "supervisor"
IMAGES_DIR = plan.CHECKOUT_DIR / "build" / "images"
"""Compiled programs, for all LBs of all labs: compiling is the slowest part of a start."""
SHIPPED = ("bpf", "bus", "conf", "services")
STAND_IN = "EXTRA.toml"
Table = dict[str, Any]

SUPERVISORD_CONF = """\
[unix_http_server]
file={home}/supervisor.sock

[supervisord]
logfile={home}/log/supervisord.log
pidfile={home}/supervisord.pid
childlogdir={home}/log
directory=/
minfds=4096
environment={environment}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{home}/supervisor.sock

[include]
files={home}/supervisor/*.conf
"""


def write_all(lab: Plan, overlay: Table) -> None:
    """Mount the lab's directory and fill it. `overlay` is laid over each LB's file, key by key."""
    plan.ROOT_DIR.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", plan.ROOT_DIR, "mode=0755,size=1g")
    PLAN_FILE.write_text(json.dumps(lab.as_plain()))
    _write_users()
    if lab.keys:
        make_cluster(plan.KEYS_DIR, lab.voters or lab.lb_names, lab.node_names)
        for path in (plan.KEYS_DIR, *plan.KEYS_DIR.rglob("*")):
            users.give(path, "root", "gale-keys", 0o750 if path.is_dir() else 0o640)
    _write_www(SMALL_FILES if lab.emulated else FILES)
    for machine in lab.supervised:
        _write_machine(lab, machine)
        bpf_dir = plan.home(machine) / "bpf"
        _mount("bpf", bpf_dir, "mode=0755")
        owner = "gale-dp" if plan.is_lb(machine) else "gale-agent"
        users.give(bpf_dir, owner, "gale", 0o750)
    for machine in lab.lb_names:
        _write_config(plan.home(machine) / "lb.toml", lb_config(lab, machine, overlay))
    for machine in lab.node_names:
        _write_node(lab, machine, services(lab, overlay))
    if lab.witness:
        _write_witness(lab, overlay)


def read_extra(lab: Plan, extra: Path | None) -> Table:
    """The file to be laid over each LB's, if the LBs and the nodes can be configured with it."""
    if extra is None:
        return {}
    try:
        overlay = Source.read(extra).data
        _check(lab, overlay)
    except ConfigError as error:
        raise ExtraFileError(str(error).replace(STAND_IN, str(extra))) from None
    except (TypeError, AttributeError, KeyError) as error:
        raise ExtraFileError(f"{extra}: this is not laid over an LB's file: {error}") from None
    return overlay


def _check(lab: Plan, overlay: Table) -> None:
    """Have Gale read what would be written; raises `ConfigError`, or what the writing raises."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "file.toml"
        texts: list[tuple[Callable[[Path], object], str]] = [
            (load_lb, toml_text(lb_config(lab, name, overlay))) for name in lab.lb_names
        ]
        served = services(lab, overlay)
        texts.append((load_node, toml_text(node_config(lab, lab.node_names[0], served))))
        for load, text in texts:
            place.write_text(text)
            try:
                load(place)
            except ConfigError as error:
                # Its lines are of the whole, which nobody has seen: the keys must do.
                found = (Problem(STAND_IN, 1, each.key, each.message) for each in error.problems)
                raise ConfigError(found) from None


def _write_users() -> None:
    """The users of a machine, and what they need of the checkout."""
    users.write()
    users.CHECKOUT.mkdir()
    command(["mount", "--bind", str(plan.CHECKOUT_DIR), str(users.CHECKOUT)])
    IMAGES_DIR.mkdir(parents=True, exist_ok=True)
    IMAGES_DIR.chmod(0o1777)
    for package in SHIPPED:
        # These users cannot keep bytecode, and would compile everything at each start.
        compileall.compile_dir(plan.CHECKOUT_DIR / package, quiet=2)


def _prepare(home: Path) -> None:
    """A machine's directories for sockets and state, as tmpfiles.d makes them."""
    (home / "run" / "bus").mkdir(parents=True)
    (home / "state").mkdir()
    users.give(home / "run", "root", "gale", 0o1775)
    users.give(home / "run" / "bus", "root", "gale", 0o1770)
    users.give(home / "state", "root", "gale", 0o1770)


def _mount(kind: str, where: Path, options: str) -> None:
    command(["mount", "-t", kind, "-o", options, "gale-lab", str(where)])


def _write_www(sizes: dict[str, int]) -> None:
    """Bytes from a seeded generator: a piece lost, doubled or swapped changes the sum."""
    WWW_DIR.mkdir()
    for name, size in sizes.items():
        generator = random.Random(size)
        digest = hashlib.sha256()
        with (WWW_DIR / name).open("wb") as file:
            for begin in range(0, size, BLOCK_BYTES):
                block = generator.randbytes(min(BLOCK_BYTES, size - begin))
                digest.update(block)
                file.write(block)
        (WWW_DIR / f"{name}.sha256").write_text(f"{digest.hexdigest()}  {name}\n")


def _write_machine(lab: Plan, machine: str) -> None:
    home = plan.home(machine)
    _prepare(home)
    for directory in ("log", "bpf", "supervisor"):
        (home / directory).mkdir(parents=True)
    (home / "state" / "programs").symlink_to(IMAGES_DIR)
    environment = ",".join(f'{name}="{value}"' for name, value in plan.environment(machine).items())
    plan.supervisor_conf(machine).write_text(
        SUPERVISORD_CONF.format(home=home, environment=environment)
    )
    for shipped, text in groups(lab, machine).items():
        place = home / "supervisor" / shipped
        if text:
            place.write_text(text)
        else:
            place.symlink_to(SHIPPED_SUPERVISOR_DIR / shipped)
    (home / "supervisor" / "start").symlink_to(SHIPPED_SUPERVISOR_DIR / "start")
    (home / "supervisor" / "log").symlink_to(home / "log")


def groups(lab: Plan, machine: str) -> dict[str, str]:
    """The shipped files that supervisord of a machine reads; empty: unchanged."""
    own = {"gale.conf": ""} if machine in lab.lb_names else {}
    if machine in lab.node_names:
        own["gale-node.conf"] = (
            _with_environment("gale-node.conf", _of_node(machine)) if own else ""
        )
    return own


def _of_node(machine: str) -> dict[str, Path]:
    return {"GALE_CONFIG": plan.home(machine) / "node.toml"}


def _with_environment(shipped: str, variables: Mapping[str, Path]) -> str:
    """A shipped file, whose last section is a program's, with what that one finds there."""
    environment = ",".join(f'{name}="{value}"' for name, value in variables.items())
    return f"{(SHIPPED_SUPERVISOR_DIR / shipped).read_text()}environment={environment}\n"


def _write_node(lab: Plan, machine: str, served: tuple[Service, ...]) -> None:
    home = plan.home(machine)
    _write_config(home / "node.toml", node_config(lab, machine, served))
    (home / "nginx.conf").write_text(servers.nginx_conf(machine, WWW_DIR))
    (home / "supervisor" / "server.conf").write_text(servers.supervisor_conf(machine, served))


def _write_config(path: Path, config: Table) -> None:
    """As on any machine the administrator's, and readable for the processes alone."""
    path.write_text(toml_text(config))
    users.give(path, "root", "gale", 0o640)


def lb_config(lab: Plan, machine: str, overlay: Table) -> Table:
    links = lab.links(machine)
    ours: Table = {
        "local": {
            "name": machine,
            "node_port": 7070,
            "clients_port": 8080,
            "net_interface_private": links[-1].network.interface,
            "net_interface_public": links[0].network.interface,
            "mode": lab.mode,
        },
        "node_health": {"checks_before_routing": 3, "checks_timeout": "1s"},
        "services": [
            {"name": service.name, "port": service.port, "protocol": service.protocol}
            for service in plan.SERVICES
        ],
    }
    if lab.keys:
        ours["security"] = {"keys": str(plan.keys(machine))}
    if lab.floating:
        unit: Table = {"address": plan.VIP, "snat_addresses": list(lab.snat_addresses)}
        ours["virtual_ips"] = [unit]
    if lab.voters:
        ours["load_balancer_quorum"] = {"addresses": _quorum_addresses(lab)}
    return overlaid(ours, overlay)


def _quorum_addresses(lab: Plan) -> list[Table]:
    return [
        _place(lab, voter) | {"port": plan.QUORUM_PORT} | ({"name": voter} if lab.keys else {})
        for voter in lab.voters
    ]


def _place(lab: Plan, machine: str) -> Table:
    """How the others are told where a machine is, on the private network."""
    if lab.names:
        return {"hostname": f"{machine}.local"}
    return {"ip": lab.links(machine)[-1].address}


def _write_witness(lab: Plan, overlay: Table) -> None:
    """A quorum process beside the first node's agent, with a file and a state of its own."""
    machine = lab.node_names[0]
    home = plan.home(plan.WITNESS)
    _prepare(home)
    config = lb_config(lab, lab.lb_names[0], overlay)
    config["local"] |= {
        "name": plan.WITNESS,
        "net_interface_public": lab.links(machine)[0].network.interface,
    }
    config["load_balancer_quorum"]["witness"] = True
    if lab.keys:
        config["security"]["keys"] = str(plan.keys(machine))
    _write_config(home / "lb.toml", config)
    variables = {"CONFIG": "lb.toml", "RUN_DIR": "run", "STATE_DIR": "state"}
    own = {f"GALE_{name}": home / path for name, path in variables.items()}
    place = plan.home(machine) / "supervisor" / "gale-witness.conf"
    place.write_text(_with_environment("gale-witness.conf", own))


def services(lab: Plan, overlay: Table) -> tuple[Service, ...]:
    """What the LBs' file leads the nodes to expect. What is wrong with it, the LBs will say."""
    tables = lb_config(lab, lab.lb_names[0], overlay)["services"]
    return tuple(
        Service(
            table["name"],
            first_port(table.get("node_port", table["port"])),
            table.get("protocol", "tcp"),
        )
        for table in tables
        if "name" in table and "port" in table
    )


def first_port(value: int | str) -> int:
    """Of a port, or of a range such as "9000-9099"."""
    return int(str(value).partition("-")[0])


def web_port(lab: Plan, overlay: Table) -> int | None:
    """The VIP's port that leads to the nodes' nginx, if any does."""
    for table in lb_config(lab, lab.lb_names[0], overlay)["services"]:
        if table.get("node_port", table.get("port")) == servers.HTTP_PORT:
            return first_port(table["port"])
    return None


def uses_outer_headers(lab: Plan, overlay: Table) -> bool:
    """Whether any service is of mode L3."""
    config = lb_config(lab, lab.lb_names[0], overlay)
    mode = config["local"]["mode"]
    return any(table.get("mode", mode) == "l3" for table in config["services"])


def replies_by_xdp(lab: Plan, overlay: Table) -> bool:
    config = lb_config(lab, lab.lb_names[0], overlay)
    return bool(config.get("dataplane", {}).get("reply_hook") == "xdp")


def node_config(lab: Plan, machine: str, served: tuple[Service, ...]) -> Table:
    lbs: list[Table] = [_place(lab, lb) | {"port": 7070} for lb in lab.lb_names]
    if lab.keys:
        lbs = [each | {"name": lb} for each, lb in zip(lbs, lab.lb_names, strict=True)]
    return {
        "load_balancer": {"addresses": lbs},
        "node": {"name": machine},
        **({"security": {"keys": str(plan.keys(machine))}} if lab.keys else {}),
        "services": [
            {"name": service.name, "port": service.port, "check": servers.check(service)}
            for service in served
        ],
    }


def overlaid(base: Table, extra: Table) -> Table:
    """`extra` over `base`: tables key by key, everything else replaced."""
    merged = dict(base)
    for key, value in extra.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = overlaid(below, value)
        else:
            merged[key] = value
    return merged


def toml_text(document: Table) -> str:
    """A document of tables and arrays of tables; JSON's scalars are TOML's."""
    parts = []
    for name, value in document.items():
        if isinstance(value, dict):
            parts.append(_toml_table(f"[{name}]", value))
        else:
            parts.extend(_toml_table(f"[[{name}]]", table) for table in value)
    return "\n".join(parts)


def _toml_table(header: str, table: Table) -> str:
    lines = [header, *(f"{key} = {_toml_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(one) for one in value) + "]"
    return json.dumps(value)


def remove_all() -> None:
    """Unmount everything at or below the lab's directory, the deepest first, and remove it."""
    for mount in sorted(_mounts(), key=len, reverse=True):
        command(["umount", "--lazy", mount])
    if plan.ROOT_DIR.exists():
        shutil.rmtree(plan.ROOT_DIR)
    parent = plan.ROOT_DIR.parent
    if parent.is_dir() and not any(parent.iterdir()):
        parent.rmdir()


def _mounts() -> list[str]:
    root = str(plan.ROOT_DIR)
    table = Path("/proc/self/mountinfo").read_text()
    points = [line.split()[4] for line in table.splitlines()]
    return [point for point in points if point == root or point.startswith(root + "/")]
