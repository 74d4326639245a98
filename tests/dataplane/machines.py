"""A client, an LB and two nodes in network namespaces, and the real dataplane process on the LB.

Quorum and health are played by the test: it publishes the table and the view. What goes through is
real TCP: sockets are opened inside the namespaces by the test's own threads. The node machine has
two addresses and stands for two nodes; its server first tells which address it was reached at, and
then echoes.

As on the lab's network, GRO is on at both ends of the LB's cables, and the client's TX checksums
are off, because its cable feeds an XDP hook.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import zmq

from bpf.loader import fill_cache
from bus import topics
from bus.commands import request
from bus.events import (
    DataplaneEvent,
    ProcessEvent,
)
from bus.socket import (
    Publisher,
    Subscriber,
)
from bus.states import (
    CommittedTable,
    Counters,
    DataplaneState,
    LocalView,
    NodeTable,
    NodeView,
    SnatSlice,
    TableNode,
    TableService,
)
from bus.topics import Topic
from bus.words import (
    Mode,
    NodeState,
    Protocol,
)
from services.dataplane.programs import SOURCES, ProgramPlan
from tests.bpf.harness import IMAGES, private_bpffs

PATIENCE_S = 60.0
PUBLIC, CLIENT = "10.60.0.1", "10.60.0.2"
PRIVATE, NODES = "10.61.0.1", ("10.61.0.21", "10.61.0.22")
PORT, NODE_PORT = 8080, 9000
FIRST_PORT, PORTS = 20_000, 4096
LB = "lb-0"
_numbers = itertools.count()
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

CONFIG = f"""
[local]
name = "{LB}"
net_interface_public = "pub0"
net_interface_private = "priv0"
[dataplane]
conntrack_entries = 8192
half_open_entries = 8192
"""


@contextlib.contextmanager
def in_network(name: str) -> Iterator[None]:
    """Sockets that this thread opens within belong to that namespace, for good."""
    with Path("/proc/thread-self/ns/net").open() as home, Path("/run/netns", name).open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def table(
    epoch: int = 1,
    states: tuple[NodeState, ...] = (NodeState.UP, NodeState.UP),
    **fields: Any,
) -> NodeTable:
    """One L4 service on the LB's own address, served by both nodes."""
    nodes = tuple(
        TableNode(f"node-{number}@{address}", f"node-{number}", address, state, 100, ())
        for number, (address, state) in enumerate(zip(NODES, states, strict=True))
    )
    values: dict[str, Any] = {
        "term": 1,
        "epoch": epoch,
        "hash_seed": 0x1234_5678_9ABC_DEF0,
        "services": (TableService("default", None, PORT, Protocol.TCP, Mode.L4, NODE_PORT),),
        "nodes": nodes,
        "bans": (),
        "vip_owners": (),
        "snat_slices": (SnatSlice(LB, None, FIRST_PORT, PORTS),),
    }
    return NodeTable(**values | fields)


def observed(node: TableNode, state: NodeState) -> NodeView:
    return NodeView(node.id, node.name, node.address, state, "", 100, (), 0, 0)


class Site:
    """The machines, and what the processes on them say."""

    def __init__(self, directory: Path, bpf_dir: Path) -> None:
        self.directory, self.bpf_dir = directory, bpf_dir
        self.run_dir, self.state_dir = directory / "run", directory / "state"
        self.state_dir.mkdir()
        IMAGES.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "programs").symlink_to(IMAGES)
        unique = f"{os.getpid()}-{next(_numbers)}"
        self.lb, self.client, self.node = (
            f"gale-dp-{who}-{unique}" for who in ("lb", "client", "node")
        )
        self.write_config()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.state: DataplaneState | None = None
        self.counters: Counters | None = None
        self.repeated = 0
        """How often a state was said to hold still."""
        self.started: list[ProcessEvent] = []
        self.degraded: list[DataplaneEvent] = []
        self._versions = itertools.count(1)
        self._open = contextlib.ExitStack()
        self.context: zmq.Context[Any] = zmq.Context()
        self._publishers = {
            who: Publisher(self.context, topics.publisher_path(self.run_dir, who), who, LB)
            for who in (topics.QUORUM, topics.HEALTH)
        }
        self._subscriber = Subscriber(
            self.context,
            self.run_dir,
            {topics.DATAPLANE: topics.PUBLISHES[topics.DATAPLANE]},
        )

    # ------------------------------------------------------------------ the network

    def build(self) -> None:
        for name in (self.lb, self.client, self.node):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        self.inside(self.lb, "sysctl", "-qw", "net.ipv4.ip_forward=0")
        self.plug_in_public()
        self.plug_in_private()
        for address in NODES:
            self.serve(address)

    def plug_in_public(self) -> None:
        self.plug(self.client, "pub0", CLIENT)
        self.inside(self.client, "ethtool", "-K", "pub0", "tx", "off")
        run("ip", "-n", self.lb, "address", "add", f"{PUBLIC}/24", "dev", "pub0")
        run("ip", "-n", self.lb, "link", "set", "pub0", "up")

    def plug_in_private(self) -> None:
        self.plug(self.node, "priv0", NODES[0])
        run("ip", "-n", self.node, "address", "add", f"{NODES[1]}/24", "dev", "priv0")
        run("ip", "-n", self.lb, "address", "add", f"{PRIVATE}/24", "dev", "priv0")
        run("ip", "-n", self.lb, "link", "set", "priv0", "up")

    def rebuild_private_as_bridge(self) -> None:
        """`priv0` of the LB becomes a bridge, which the cable is a port of."""
        ip = ("ip", "-n", self.lb)
        run(*ip, "address", "flush", "dev", "priv0")
        run(*ip, "link", "set", "priv0", "down")
        run(*ip, "link", "set", "priv0", "name", "cable0")
        run(*ip, "link", "add", "priv0", "type", "bridge", "stp_state", "0")
        run(*ip, "link", "set", "cable0", "master", "priv0", "up")
        run(*ip, "address", "add", f"{PRIVATE}/24", "dev", "priv0")
        run(*ip, "link", "set", "priv0", "up")

    def plug(self, where: str, name: str, address: str) -> None:
        """A cable from the LB to another machine, whose end is ready."""
        run(
            *("ip", "-n", self.lb, "link", "add", name, "type", "veth"),
            *("peer", "name", name, "netns", where),
        )
        run("ip", "-n", where, "address", "add", f"{address}/24", "dev", name)
        run("ip", "-n", where, "link", "set", name, "up")
        for end in (self.lb, where):
            self.inside(end, "ethtool", "-K", name, "gro", "on")

    def inside(self, machine: str, *command: str) -> str:
        return run("nsenter", f"--net=/run/netns/{machine}", *command)

    # ------------------------------------------------------------------ TCP

    def serve(self, address: str) -> None:
        with in_network(self.node):
            listening = socket.create_server((address, NODE_PORT), backlog=512)
        self._open.callback(listening.close)
        threading.Thread(target=_accept, args=(listening, address), daemon=True).start()

    def keep(self, ours: socket.socket) -> None:
        """Until this site is closed."""
        self._open.callback(ours.close)

    def connect(self) -> Connection:
        with in_network(self.client):
            ours = socket.socket()
        self._open.callback(ours.close)
        ours.settimeout(PATIENCE_S)
        ours.connect((PUBLIC, PORT))
        return Connection(ours)

    # ------------------------------------------------------------------ the process

    def write_config(self, text: str = CONFIG) -> None:
        (self.directory / "lb.toml").write_text(text)

    def command(self) -> list[str]:
        script = str(Path(sys.executable).with_name("gale-dataplane"))
        return ["nsenter", f"--net=/run/netns/{self.lb}", script]

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "GALE_CONFIG": str(self.directory / "lb.toml"),
            "GALE_RUN_DIR": str(self.run_dir),
            "GALE_STATE_DIR": str(self.state_dir),
            "GALE_BPF_DIR": str(self.bpf_dir),
        }

    def start(self) -> subprocess.Popen[bytes]:
        """What was heard of a copy that has ended is forgotten; one that lives says it but once."""
        self.look()
        if all(process.poll() is not None for process in self.processes):
            self.state, self.counters = None, None
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(self.command(), env=self.environment(), stderr=log)
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def log(self) -> str:
        return (self.directory / "log").read_text()

    # ------------------------------------------------------------------ the bus

    def publish(self, agreed: NodeTable) -> None:
        message = CommittedTable(next(self._versions), agreed)
        self._publishers[topics.QUORUM].publish(Topic.STATE_TABLE, message)

    def silence_quorum(self) -> None:
        """As if its process were dead."""
        self._publishers.pop(topics.QUORUM).close()

    def publish_view(self, *nodes: NodeView) -> None:
        message = LocalView(next(self._versions), nodes)
        self._publishers[topics.HEALTH].publish(Topic.STATE_VIEW, message)

    def look(self) -> DataplaneState | None:
        for publisher in self._publishers.values():
            publisher.serve()
        for envelope in self._subscriber.receive():
            match envelope.data:
                case DataplaneState():
                    self.state = envelope.data
                case Counters():
                    self.counters = envelope.data
                case ProcessEvent():
                    self.started.append(envelope.data)
                case DataplaneEvent() if envelope.topic is Topic.DATAPLANE_DEGRADED:
                    self.degraded.append(envelope.data)
        self.repeated += len(self._subscriber.repeated)
        return self.state

    def until(self, is_so: Callable[[DataplaneState], Any], what: str = "") -> DataplaneState:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            state = self.look()
            if state is not None and is_so(state):
                return state
            time.sleep(0.005)
        raise AssertionError(f"never {what}: {self.state}\n{self.counters}\n{self.log()}")

    def until_ready(self, epoch: int = 1) -> DataplaneState:
        return self.until(
            lambda state: (
                state.ready
                and state.epoch == epoch
                and all(hook.attached for hook in state.hooks)
                and all(seat.resolved for seat in state.seats)
            ),
            "ready",
        )

    def until_waited(self, process: subprocess.Popen[bytes]) -> None:
        """Until the process, which waits, has tried again a few times."""
        enough = self.repeated + 6
        while self.repeated < enough:
            self.look()
            assert process.poll() is None, self.log()
            time.sleep(0.005)

    def until_counted(self, is_so: Callable[[Counters], Any]) -> Counters:
        self.until(lambda _: self.counters is not None and is_so(self.counters), "counted")
        assert self.counters is not None
        return self.counters

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        path = topics.command_path(self.run_dir, topics.DATAPLANE)
        return request(self.context, path, verb, arguments, 20_000)

    def bring_up(self) -> subprocess.Popen[bytes]:
        self.publish(table())
        process = self.start()
        self.until_ready()
        return process

    # ------------------------------------------------------------------ the kernel

    def attached_xdp(self, interface: str = "pub0") -> int | None:
        """The id of the program, by iproute2."""
        shown = json.loads(run("ip", "-n", self.lb, "-j", "-d", "link", "show", interface))[0]
        number: int | None = shown.get("xdp", {}).get("prog", {}).get("id")
        return number

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self._open.close()
        self._subscriber.close()
        for publisher in self._publishers.values():
            publisher.close()
        self.context.term()
        for name in (self.lb, self.client, self.node):
            subprocess.run(("ip", "netns", "delete", name), check=False, capture_output=True)


class Connection:
    """A client's connection; it knows which node answered."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._file = ours.makefile("rb")
        self.address = "{}:{}".format(*ours.getsockname())
        self.node = self._file.readline().decode().strip()

    def echo(self, text: bytes = b"ping\n") -> bool:
        self._socket.sendall(text)
        return self._file.readline() == text

    def is_reset(self) -> bool:
        """Sends nothing, and waits for a RST."""
        try:
            self._file.readline()
        except ConnectionResetError:
            return True
        return False

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _accept(listening: socket.socket, address: str) -> None:
    with contextlib.suppress(OSError):
        while True:
            accepted, _ = listening.accept()
            threading.Thread(target=_serve, args=(accepted, address), daemon=True).start()


def _serve(accepted: socket.socket, address: str) -> None:
    with contextlib.suppress(OSError), accepted:
        accepted.sendall(f"{address}\n".encode())
        while data := accepted.recv(65536):
            accepted.sendall(data)


def defines(
    entries: int = 8192, half_open: int = 8192, old_buckets: int = 1
) -> dict[str, str | int]:
    """What a process with these sizes compiles its programs with."""
    plan = ProgramPlan("pub0", "priv0", False, False, entries, half_open)
    return plan.defines | {"FLOW_BUCKETS": plan.flow_buckets, "OLD_FLOW_BUCKETS": old_buckets}


def compile_for(
    entries: int = 8192,
    half_open: int = 8192,
    old_buckets: int = 1,
    *,
    besides: Literal["", "GALE_TRACE", "GALE_CAPTURE"] = "",
) -> None:
    """What a process with these sizes will ask for: so its start takes no time of the test's.

    `besides`: the variant that its first trace or capture will ask for, instead.
    """
    asked = {besides: 1} if besides else {}
    fill_cache(SOURCES, defines(entries, half_open, old_buckets) | asked, IMAGES)


@contextlib.contextmanager
def site() -> Iterator[Site]:
    compile_for()
    directory = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    with private_bpffs() as bpf_dir:
        made = Site(directory, bpf_dir)
        try:
            made.build()
            yield made
        finally:
            made.close()
            shutil.rmtree(directory)
