"""What TCP makes of it: requests, connections and gigabits through Gale and its peers.

    client ── [public switch] ── gale, nftables, haproxy, nginx ── [private switch] ── 3 nodes

Every load balancer is a namespace beside the others, before the same three nodes (nginx, and an
iperf3 server on the first), reached from the same client; `direct` is the client on the private
switch itself. All processes of all of them are pinned to one core, so what a load balancer
spends, client and nodes lack. Three loads, in turn: requests on connections kept alive (wrk),
a connection for each request (wrk), one download (iperf3).

Gale (L4, source NAT) has its XDP program on the public interface and its TC programs on both, and
its tables written once: no control plane is running. Its cables have GRO on, and the switch port
that feeds the XDP hook leaves no checksum to the hardware; the others keep what veth has by
default. nftables does DNAT and masquerading, HAProxy and nginx (stream) proxy connections with one
thread.

What is told is per second of CPU time, that of all these processes and of the core's ksoftirqd
taken together: which is what the core would do if it had nothing else to do. So that no trial
suffers from what an earlier one has left, nobody keeps TIME_WAIT, and a run of connections lasts a
second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bpf.loader import compile_programs
from bpf.pins import PinnedMaps
from bus.messages import Mode
from e2e.bench import core, wire
from e2e.bench.report import Line, Result
from e2e.bench.samples import Goal, Sample, at_least, ratios, turns
from e2e.bench.tables import Seat, Service, Tables
from e2e.lab import LabError

NODES = 3
HTTP_PORT, BULK_PORT = 8080, 5201
GALE, NFTABLES, HAPROXY, NGINX, DIRECT = "gale", "nftables", "haproxy", "nginx", "direct"
BALANCERS = (GALE, NFTABLES, HAPROXY, NGINX)
PATHS = (*BALANCERS, DIRECT)
KEPT, FRESH, BULK = "requests, kept alive", "new connections", "download"
LOADS = (KEPT, FRESH, BULK)
UNITS = {KEPT: "k/s", FRESH: "k/s", BULK: "Gbit/s"}
CONNECTIONS = 32
NFTABLES_ENTRIES = 1 << 20
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_PUB, _PRIV = "pub0", "priv0"
_SNAT_FIRST_PORT, _SNAT_PORTS = 20_000, 32_768
_QUICK_TCP: dict[str, int | str] = {
    "ipv4__tcp_max_tw_buckets": 0,
    "ipv4__tcp_timestamps": 2,
    "ipv4__ip_local_port_range": "10000 65000",
    "core__somaxconn": 4096,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A line of the table."""

    load: str
    against: str
    goal: Goal | None = None


COMPARISONS = (
    Comparison(KEPT, NFTABLES, at_least(1.05, digits=2)),
    Comparison(KEPT, HAPROXY, at_least(1.4)),
    Comparison(KEPT, NGINX),
    Comparison(KEPT, DIRECT),
    Comparison(FRESH, NFTABLES, at_least(1.0)),
    Comparison(FRESH, HAPROXY, at_least(1.5)),
    Comparison(FRESH, NGINX),
    Comparison(FRESH, DIRECT),
    Comparison(BULK, NFTABLES, at_least(0.9)),
    Comparison(BULK, HAPROXY),
    Comparison(BULK, NGINX),
    Comparison(BULK, DIRECT),
)

Seen = Mapping[tuple[str, str], Sequence[float]]


def run(trials: int, seconds: int, progress: Callable[[str], None]) -> Result:
    """All loads over all paths, taking turns."""
    seen: dict[tuple[str, str], list[float]] = {
        (load, path): [] for load in LOADS for path in PATHS
    }
    with wire.alone(), wire.room_for_nftables(NFTABLES_ENTRIES):
        progress("building the network")
        with _network() as network:
            for load in LOADS:
                for number, path in turns(PATHS, trials):
                    progress(f"trial {number + 1} of {trials}: {load}, {path}")
                    seen[load, path].append(network.measured(load, path, seconds))
    return Result(
        key="tcp",
        title="TCP through it",
        columns=("Gale", "times", "of"),
        lines=tuple(_line(one, seen) for one in COMPARISONS),
        bar_label="Gale, times what it is compared with",
        remark=(
            "Three nodes, one client, everything on one core, per second of its CPU time. "
            f"{trials} trials of {seconds} s (connections: 1 s), {CONNECTIONS} connections at a "
            "time, one for the download."
        ),
    )


def _line(one: Comparison, seen: Seen) -> Line:
    mine, theirs = Sample(tuple(seen[one.load, GALE])), Sample(tuple(seen[one.load, one.against]))
    times = ratios(mine, theirs)
    unit = f" {UNITS[one.load]}"
    return Line(
        name=f"{one.load}: gale / {one.against}",
        cells=(mine.text(1, unit), times.text(2), theirs.text(1, unit)),
        bar=times,
        judged=times.median,
        goal=one.goal,
    )


# --------------------------------------------------------------------------- the network


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace and its host number on both networks."""

    name: str
    host: int

    @property
    def namespace(self) -> str:
        return f"{wire.PREFIX}{self.name}"

    @property
    def public(self) -> str:
        return f"10.90.0.{self.host}"

    @property
    def private(self) -> str:
        return f"10.91.0.{self.host}"


CLIENT = Machine("client", 2)
LBS = {name: Machine(name, 11 + number) for number, name in enumerate(BALANCERS)}
SERVERS = tuple(Machine(f"node-{number}", 21 + number) for number in range(NODES))
SWITCH = Machine("switch", 0)


class Network:
    """What has been built, and how a load is put on it."""

    def __init__(self, cpu: int, servers: Sequence[int]) -> None:
        self._cpu = cpu
        self._at_work = (core.ksoftirqd(cpu), *servers)

    def measured(self, load: str, path: str, seconds: int) -> float:
        """Thousands in a second of CPU time; of the download, gigabits."""
        if load == BULK:
            return self._download(path, seconds) / 1e9
        if load == FRESH:
            return self._requests(path, 1, "Connection: close") / 1e3
        return self._requests(path, seconds, "Connection: keep-alive") / 1e3

    def _requests(self, path: str, seconds: int, header: str) -> float:
        url = f"http://{_address(path)}:{HTTP_PORT}/"
        words = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS)]
        said, cpu_s = self._run([*words, "--duration", f"{seconds}s", "--header", header, url])
        done = re.search(r"(\d+) requests in ", said)
        errors = re.search(r"Non-2xx.*|Socket errors: connect [1-9].*", said)
        if done is None or errors is not None:
            raise LabError(f"{path}: wrk failed:\n{said}")
        return int(done[1]) / cpu_s

    def _download(self, path: str, seconds: int) -> float:
        words = ["iperf3", "--client", _address(path), "--port", str(BULK_PORT), "--json"]
        said, cpu_s = self._run([*words, "--reverse", "--time", str(seconds)])
        return int(json.loads(said)["end"]["sum_received"]["bytes"]) * 8 / cpu_s

    def _run(self, words: Sequence[str]) -> tuple[str, float]:
        """What a command on the client said, and the CPU seconds it cost everybody."""
        begin = core.run_time_ns(self._at_work)
        with tempfile.TemporaryFile("w+") as output:
            client = subprocess.Popen(
                [*_pinned(CLIENT, self._cpu), *words], stdout=output, stderr=output
            )
            _, status, used = os.wait4(client.pid, 0)
            client.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            said = output.read()
        if client.returncode != 0:
            raise LabError(f"{' '.join(words)}:\n{said}")
        servers_ns = core.run_time_ns(self._at_work) - begin
        return said, used.ru_utime + used.ru_stime + servers_ns / 1e9


def _address(path: str) -> str:
    return SERVERS[0].private if path == DIRECT else LBS[path].public


def _pinned(machine: Machine, cpu: int) -> list[str]:
    """The words before a command that is to run there, on that core."""
    return ["taskset", "-c", str(cpu), *wire.enter(machine.namespace)]


@contextmanager
def _network() -> Iterator[Network]:
    cpu = core.pick()
    if not STREAM_MODULE.exists():
        raise LabError("nginx has no stream module: apt-get install libnginx-mod-stream")
    _lay_cables()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gale-bench-")))
        directory.chmod(0o755)
        start = partial(_start, stack, cpu, directory)
        servers = [start(node, words) for node in SERVERS for words in _of_node(node, directory)]
        servers.append(start(LBS[HAPROXY], _haproxy(directory)))
        servers.append(start(LBS[NGINX], _nginx(LBS[NGINX], _stream_config(), directory)))
        _start_gale()
        wire.run_in(LBS[NFTABLES].namespace, "nft", "-f", "-", stdin=_nftables())
        for path in PATHS:
            _wait_for(path, directory)
        yield Network(cpu, servers)


def _lay_cables() -> None:
    wire.add_namespace(SWITCH.name)
    wire.batch(
        SWITCH.namespace,
        [
            line
            for bridge in ("public", "private")
            for line in (
                f"link add {bridge} type bridge stp_state 0 mcast_snooping 0",
                f"link set {bridge} up",
            )
        ],
    )
    for machine in (CLIENT, *LBS.values(), *SERVERS):
        wire.add_namespace(machine.name)
        wire.set_values(machine.namespace, **_QUICK_TCP)
        if machine not in SERVERS:
            _plug_in(machine, _PUB, "public", machine.public)
        _plug_in(machine, _PRIV, "private", machine.private)
    wire.set_values(LBS[NFTABLES].namespace, ipv4__ip_forward=1, netfilter__nf_conntrack_checksum=0)


def _plug_in(machine: Machine, interface: str, bridge: str, address: str) -> None:
    port = f"{machine.name}-{bridge[:3]}"
    wire.cable((SWITCH.namespace, port), (machine.namespace, interface))
    wire.batch(SWITCH.namespace, [f"link set {port} master {bridge}"])
    wire.batch(machine.namespace, [f"address add {address}/24 dev {interface}"])
    if machine == LBS[GALE]:
        wire.set_offload(SWITCH.namespace, port, gro="on")
        wire.set_offload(machine.namespace, interface, gro="on")
        if bridge == "public":
            wire.set_offload(SWITCH.namespace, port, tx="off")


def _wait_for(path: str, logs: Path) -> None:
    """Until a server answers there: processes start in their own time."""
    words = [
        "curl",
        "--silent",
        "--fail",
        "--max-time",
        "2",
        f"http://{_address(path)}:{HTTP_PORT}/",
    ]
    for _ in range(50):
        done = subprocess.run(
            [*wire.enter(CLIENT.namespace), *words], capture_output=True, check=False
        )
        if done.returncode == 0:
            return
        time.sleep(0.1)
    said = "".join(log.read_text() for log in sorted(logs.glob(f"{path}*.log")))
    raise LabError(f"nothing answers by way of {path}:\n{said}")


# --------------------------------------------------------------------------- processes


def _start(
    stack: ExitStack, cpu: int, directory: Path, machine: Machine, words: Sequence[str]
) -> int:
    """A process that ends with the stack; its id."""
    with (directory / f"{machine.name}.{Path(words[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*_pinned(machine, cpu), *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process.pid


def _of_node(node: Machine, directory: Path) -> tuple[list[str], list[str]]:
    """A node's nginx and iperf3."""
    return (
        _nginx(node, _node_config(node), directory),
        ["iperf3", "--server", "--port", str(BULK_PORT)],
    )


def _nginx(machine: Machine, config: str, directory: Path) -> list[str]:
    """A single process in the foreground."""
    path = directory / f"{machine.name}.conf"
    path.write_text(
        f"{config}daemon off; master_process off; pid {path}.pid; error_log {path}.log;\n"
        "events { worker_connections 4096; }\n"
    )
    # -e: what it says before it has read the configuration goes there too.
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-e", f"{path}.log", "-c", str(path)]


def _node_config(node: Machine) -> str:
    return (
        f"http {{ access_log off; server {{ listen {node.private}:{HTTP_PORT} backlog=4096;\n"
        f"  keepalive_requests 1000000000; location / {{ return 200 '{node.name}\\n'; }} }} }}\n"
    )


def _stream_config() -> str:
    http = "".join(f" server {node.private}:{HTTP_PORT};" for node in SERVERS)
    bulk = f" server {SERVERS[0].private}:{BULK_PORT};"
    return (
        f"load_module {STREAM_MODULE};\nstream {{\n"
        f"  upstream http {{{http} }}\n  upstream bulk {{{bulk} }}\n"
        f"  server {{ listen {HTTP_PORT} backlog=4096; proxy_pass http; }}\n"
        f"  server {{ listen {BULK_PORT}; proxy_pass bulk; }}\n}}\n"
    )


def _haproxy(directory: Path) -> list[str]:
    servers = "".join(f"  server {node.name} {node.private}:{HTTP_PORT}\n" for node in SERVERS)
    config = directory / "haproxy.cfg"
    config.write_text(
        "global\n  nbthread 1\n  maxconn 2000\n"
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n"
        f"listen http\n  bind :{HTTP_PORT} backlog 4096\n  balance roundrobin\n{servers}"
        f"listen bulk\n  bind :{BULK_PORT}\n  server bulk {SERVERS[0].private}:{BULK_PORT}\n"
    )
    return ["haproxy", "-db", "-f", str(config)]


def _nftables() -> str:
    choice = ", ".join(f"{number} : {node.private}" for number, node in enumerate(SERVERS))
    node = f"numgen inc mod {NODES} map {{ {choice} }}"
    return f"""
        table ip bench {{
            chain before {{
                type nat hook prerouting priority dstnat
                iifname {_PUB} tcp dport {HTTP_PORT} dnat to {node}
                iifname {_PUB} tcp dport {BULK_PORT} dnat to {SERVERS[0].private}
            }}
            chain after {{
                type nat hook postrouting priority srcnat
                oifname {_PRIV} masquerade
            }}
        }}
    """


# --------------------------------------------------------------------------- Gale


def _start_gale() -> None:
    """In a process of its own, which ends: the programs stay on the interfaces."""
    process = multiprocessing.get_context("spawn").Process(target=_attach_gale)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise LabError("Gale's programs could not be attached; see above")


def _attach_gale() -> None:
    own = LBS[GALE]
    macs = [wire.mac_of(node.namespace, _PRIV) for node in SERVERS]
    own_mac = wire.mac_of(own.namespace, _PRIV)
    wire.move_to(own.namespace)
    public, private = socket.if_nametoindex(_PUB), socket.if_nametoindex(_PRIV)
    xdp, tc = compile_programs(["xdp.c", "tc.c"], maps=PinnedMaps(None))
    http, bulk = _service(HTTP_PORT), _service(BULK_PORT)
    tables = Tables(xdp)
    seats = {
        HTTP_PORT: [
            Seat(node.private, HTTP_PORT, private, mac, own_mac)
            for node, mac in zip(SERVERS, macs, strict=True)
        ],
        BULK_PORT: [Seat(SERVERS[0].private, BULK_PORT, private, macs[0], own_mac)],
    }
    tables.fill([(http, seats[HTTP_PORT]), (bulk, seats[BULK_PORT])], public, private)
    wire.attach_tc(_PRIV, tc.function("gale_tc_private", "tc"), "gale_tc_private")
    wire.attach_tc(_PUB, tc.function("gale_tc_public", "tc"), "gale_tc_public")
    wire.attach_xdp(_PUB, xdp.function("gale_xdp_public", "xdp"))


def _service(port: int) -> Service:
    return Service(
        LBS[GALE].public,
        port,
        Mode.L4,
        snat_address=LBS[GALE].private,
        snat_first_port=_SNAT_FIRST_PORT,
        snat_ports=_SNAT_PORTS,
    )
