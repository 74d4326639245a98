"""The network of the TCP benchmarks: every load balancer between one client and the same nodes.

    client ═══ gale, nftables, haproxy, nginx ═══ nodes

Every load balancer is a namespace of its own, with a cable to the client's and one to the nodes',
where three servers (nginx, and an iperf3 beside them) have three addresses on each; `direct` is a
cable from client to nodes. There is no switch, which would cost the core as much as a load
balancer. All processes of all of them are pinned to one core, so what a load balancer spends,
client and nodes lack.

Gale (L4, source NAT) has its XDP program on the public interface and its TC programs on both, and
its tables written once: no control plane is running. The client leaves it no checksum to the
hardware, and the nodes' end of its cable has GRO on, or veth would not take what XDP sends; all
else, and the others, keep what veth has by default. nftables does DNAT and masquerading, HAProxy
and nginx (stream) proxy connections with one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Directory
from tempfile import TemporaryDirectory, TemporaryFile

from bpf.loader import compile_programs
from bpf.pins import PinnedMaps
from bus.words import Mode
from e2e.bench import core, wire
from e2e.bench.tables import Seat, Service, Tables
from e2e.lab import LabError

NODES = 3
HTTP_PORT, BULK_PORT = 8080, 5201
GALE, NFTABLES, HAPROXY, NGINX, DIRECT = "gale", "nftables", "haproxy", "nginx", "direct"
BALANCERS = (GALE, NFTABLES, HAPROXY, NGINX)
NFTABLES_ENTRIES = 1 << 20
STREAM_MODULE = Directory("/usr/lib/nginx/modules/ngx_stream_module.so")
_PUB, _PRIV = "pub0", "priv0"
_SNAT_FIRST_PORT, _SNAT_PORTS = 1536, 31_232
"""What an LB has on its own address."""

Settings = Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Path:
    """One way from client to nodes, and its addresses."""

    name: str
    number: int

    @property
    def namespace(self) -> str:
        """The load balancer's."""
        return f"{wire.PREFIX}{self.name}"

    @property
    def client(self) -> str:
        return f"10.90.{self.number}.2"

    @property
    def public(self) -> str:
        """The load balancer's address towards the client; without one, a node's."""
        return self.node(0) if self.name == DIRECT else f"10.90.{self.number}.1"

    @property
    def private(self) -> str:
        """The load balancer's address towards the nodes; without one, the client's."""
        return f"10.91.{self.number}.1"

    def node(self, number: int) -> str:
        return f"10.91.{self.number}.{21 + number}"


CLIENT, SERVERS = f"{wire.PREFIX}client", f"{wire.PREFIX}nodes"
PATHS = {name: Path(name, number) for number, name in enumerate((*BALANCERS, DIRECT))}


class Network:
    """What has been built, and how a command is run on the client."""

    def __init__(self, cpu: int, servers: Sequence[int]) -> None:
        self._cpu = cpu
        self._at_work = (core.ksoftirqd(cpu), *servers)

    def run(self, words: Sequence[str]) -> tuple[str, float]:
        """What a command on the client said, and the CPU seconds it cost everybody."""
        begin = core.run_time_ns(self._at_work)
        with TemporaryFile("w+") as output:
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


def _pinned(namespace: str, cpu: int) -> list[str]:
    """The words before a command that is to run there, on that core."""
    return ["taskset", "-c", str(cpu), *wire.enter(namespace)]


@contextmanager
def network(ends: Settings, balancers: Settings) -> Iterator[Network]:
    """The network with these settings (in names, two underscores are a dot) at client and nodes,
    and those at the load balancers."""
    cpu = core.pick()
    if not STREAM_MODULE.exists():
        raise LabError("nginx has no stream module: apt-get install libnginx-mod-stream")
    _lay_cables(ends, balancers)
    with ExitStack() as stack:
        directory = Directory(stack.enter_context(TemporaryDirectory(prefix="gale-bench-")))
        directory.chmod(0o755)
        start = partial(_start, stack, cpu, directory)
        servers = [start(SERVERS, f"node-{n}", _node(n, directory)) for n in range(NODES)]
        servers.append(start(SERVERS, "iperf3", ["iperf3", "--server", "--port", str(BULK_PORT)]))
        haproxy, nginx = PATHS[HAPROXY], PATHS[NGINX]
        servers.append(start(haproxy.namespace, HAPROXY, _haproxy(haproxy, directory)))
        servers.append(start(nginx.namespace, NGINX, _stream_proxy(nginx, directory)))
        _start_gale()
        nftables = PATHS[NFTABLES]
        wire.run_in(nftables.namespace, "nft", "-f", "-", stdin=_ruleset(nftables))
        for path in PATHS.values():
            _wait_for(path, directory)
        yield Network(cpu, servers)


def _lay_cables(ends: Settings, balancers: Settings) -> None:
    for namespace in (CLIENT, SERVERS):
        wire.add_namespace(namespace, **ends)
    for name in BALANCERS:
        wire.add_namespace(PATHS[name].namespace, **balancers)
    for path in PATHS.values():
        if path.name == DIRECT:
            wire.cable((CLIENT, path.name), (SERVERS, path.name))
            _address(CLIENT, path.name, path.private)
        else:
            wire.cable((CLIENT, path.name), (path.namespace, _PUB))
            wire.cable((path.namespace, _PRIV), (SERVERS, path.name))
            _address(CLIENT, path.name, path.client)
            _address(path.namespace, _PUB, path.public)
            _address(path.namespace, _PRIV, path.private)
        _address(SERVERS, path.name, *(path.node(number) for number in range(NODES)))
    wire.set_offload(CLIENT, GALE, tx="off")
    wire.set_offload(SERVERS, GALE, gro="on")
    wire.set_values(
        PATHS[NFTABLES].namespace, ipv4__ip_forward=1, netfilter__nf_conntrack_checksum=0
    )


def _address(namespace: str, interface: str, *addresses: str) -> None:
    wire.batch(namespace, [f"address add {one}/24 dev {interface}" for one in addresses])


def _wait_for(path: Path, logs: Directory) -> None:
    """Until a server answers there: processes start in their own time."""
    url = f"http://{path.public}:{HTTP_PORT}/"
    words = ["curl", "--silent", "--fail", "--max-time", "2", url]
    for _ in range(50):
        done = subprocess.run([*wire.enter(CLIENT), *words], capture_output=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    said = "".join(log.read_text() for log in sorted(logs.glob("*.log")))
    raise LabError(f"nothing answers by way of {path.name}:\n{said}")


# --------------------------------------------------------------------------- processes


def _start(
    stack: ExitStack,
    cpu: int,
    directory: Directory,
    namespace: str,
    name: str,
    words: Sequence[str],
) -> int:
    """A process that ends with the stack; its id."""
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*_pinned(namespace, cpu), *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process.pid


def _node(number: int, directory: Directory) -> list[str]:
    listen = "\n".join(
        f"    listen {path.node(number)}:{HTTP_PORT} backlog=4096;" for path in PATHS.values()
    )
    return _nginx(
        f"node-{number}",
        f"http {{ access_log off; server {{\n{listen}\n    keepalive_requests 1000000000;\n"
        f"    location / {{ return 200 'node-{number}\\n'; }} }} }}\n",
        directory,
    )


def _stream_proxy(path: Path, directory: Directory) -> list[str]:
    http = "".join(f" server {path.node(number)}:{HTTP_PORT};" for number in range(NODES))
    return _nginx(
        NGINX,
        f"load_module {STREAM_MODULE};\nstream {{\n"
        f"  upstream http {{{http} }}\n"
        f"  server {{ listen {HTTP_PORT} backlog=4096; proxy_pass http; }}\n"
        f"  server {{ listen {BULK_PORT}; proxy_pass {path.node(0)}:{BULK_PORT}; }}\n}}\n",
        directory,
    )


def _nginx(name: str, config: str, directory: Directory) -> list[str]:
    """A single process in the foreground."""
    path = directory / f"{name}.conf"
    path.write_text(
        f"{config}daemon off; master_process off; pid {path}.pid; error_log {path}.log;\n"
        "events { worker_connections 4096; }\n"
    )
    # -e: what it says before it has read the configuration goes there too.
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-e", f"{path}.log", "-c", str(path)]


def _haproxy(path: Path, directory: Directory) -> list[str]:
    servers = "".join(
        f"  server node-{number} {path.node(number)}:{HTTP_PORT}\n" for number in range(NODES)
    )
    config = directory / "haproxy.cfg"
    config.write_text(
        "global\n  nbthread 1\n  maxconn 2000\n"
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n"
        f"listen http\n  bind :{HTTP_PORT} backlog 4096\n  balance roundrobin\n{servers}"
        f"listen bulk\n  bind :{BULK_PORT}\n  server bulk {path.node(0)}:{BULK_PORT}\n"
    )
    return ["haproxy", "-db", "-f", str(config)]


def _ruleset(path: Path) -> str:
    choice = ", ".join(f"{number} : {path.node(number)}" for number in range(NODES))
    node = f"numgen inc mod {NODES} map {{ {choice} }}"
    return f"""
        table ip bench {{
            chain before {{
                type nat hook prerouting priority dstnat
                iifname {_PUB} tcp dport {HTTP_PORT} dnat to {node}
                iifname {_PUB} tcp dport {BULK_PORT} dnat to {path.node(0)}
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
    path = PATHS[GALE]
    nodes_mac, own_mac = wire.mac_of(SERVERS, GALE), wire.mac_of(path.namespace, _PRIV)
    public_mac = wire.mac_of(path.namespace, _PUB)
    wire.move_to(path.namespace)
    public, private = socket.if_nametoindex(_PUB), socket.if_nametoindex(_PRIV)
    http = [Seat(path.node(n), HTTP_PORT, private, nodes_mac, own_mac) for n in range(NODES)]
    bulk = [Seat(path.node(0), BULK_PORT, private, nodes_mac, own_mac)]
    xdp, tc = compile_programs(["xdp.c", "tc.c"], maps=PinnedMaps(None))
    services = [(_service(path, HTTP_PORT), http), (_service(path, BULK_PORT), bulk)]
    Tables(xdp).fill(services, public, private, public_mac, own_mac)
    wire.attach_tc(_PRIV, tc.function("gale_tc_private", "tc"), "gale_tc_private")
    wire.attach_tc(_PUB, tc.function("gale_tc_public", "tc"), "gale_tc_public")
    wire.attach_xdp(_PUB, xdp.function("gale_xdp_public", "xdp"))


def _service(path: Path, port: int) -> Service:
    return Service(
        path.public,
        port,
        Mode.L4,
        snat_address=path.private,
        snat_first_port=_SNAT_FIRST_PORT,
        snat_ports=_SNAT_PORTS,
    )
