"""An LB, a client and a node on a real wire: two network namespaces and a cable.

`outside` is the client (10.80.0.2), the router (10.81.0.254) and the LB (10.81.0.10), whose health
process runs there; `node` is the machine under test, with the agent as it is shipped. The client is
the kernel's own TCP. What it sends to the VIP reaches the node as an LB would send it: in L2, by
a route over the node, so that the frame has its MAC and the packet is as it was; in L3, by a TUN
device whose packets are wrapped here, byte by byte. What comes back, comes by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.health.processes import Site
from tests.node.host_state import snapshot, tool

VIP = "10.80.0.100"
CLIENT, LB, NODE, ROUTER = "10.80.0.2", "10.81.0.10", "10.81.0.20", "10.81.0.254"
PORT = 8080
HEADERS = {"ipip": 20, "gue": 32}
GUE_PORT = 6080
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 1, 0x1000
_TCP_MAXSEG = 2
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, in that namespace; sockets made there stay there."""
    with (
        Path("/proc/thread-self/ns/net").open() as home,
        Path(f"/run/netns/{namespace}").open() as there,
    ):
        assert _libc.setns(there.fileno(), _CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert _libc.setns(home.fileno(), _CLONE_NEWNET) == 0


class Wire(Site):
    """The site of health and agent, with a wire between them."""

    def __init__(self, directory: Path, mode: str, encap: str, node_options: str) -> None:
        number = f"{os.getpid()}-{next(_numbers)}"
        self.outside, self.machine = f"gale-out-{number}", f"gale-in-{number}"
        self.mode, self.encap, self.node_options = mode, encap, node_options
        self.bpf_dir = directory / "bpf"
        self.closing = contextlib.ExitStack()
        super().__init__(directory, interface="far0", node_port=7070, server_port=PORT)

    # ------------------------------------------------------------- building

    def build(self) -> None:
        self.bpf_dir.mkdir()
        tool("mount", "-t", "bpf", "bpf", str(self.bpf_dir))
        self.closing.callback(tool, "umount", str(self.bpf_dir))
        for name in (self.outside, self.machine):
            tool("ip", "netns", "add", name)
            self.closing.callback(tool, "ip", "netns", "del", name)
        with inside(self.outside):
            for line in (
                f"link add far0 type veth peer name priv0 netns {self.machine}",
                "link set lo up",
                "link set far0 up",
                f"address add {LB}/24 dev far0",
                f"address add {ROUTER}/24 dev far0",
                f"address add {CLIENT}/32 dev lo",
            ):
                tool("ip", *line.split())
            self._quiet()
        with inside(self.machine):
            for line in (
                "link set lo up",
                "link set priv0 up",
                f"address add {NODE}/24 dev priv0",
                f"route add default via {ROUTER}",
            ):
                tool("ip", *line.split())
            self._quiet()
            self.before = snapshot()
        self._lead_to_node()
        threading.Thread(target=self._answer, args=(self._listen(),), daemon=True).start()

    @staticmethod
    def _quiet() -> None:
        for path in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter"):
            path.write_text("0")

    def _lead_to_node(self) -> None:
        with inside(self.outside):
            if self.mode == "l2":
                tool("ip", "route", "add", VIP, "via", NODE, "src", CLIENT)
                return
            tun = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
            self.closing.callback(os.close, tun)
            tool("ip", "link", "set", "tun0", "up")
            tool("ip", "route", "add", VIP, "dev", "tun0", "src", CLIENT)
            out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        stop, stopped = os.pipe()
        wrapping = threading.Thread(target=self._wrap, args=(tun, out, stop))
        wrapping.start()
        self.closing.callback(out.close)
        self.closing.callback(os.close, stop)
        self.closing.callback(wrapping.join)
        self.closing.callback(os.close, stopped)

    def _wrap(self, tun: int, out: socket.socket, stop: int) -> None:
        poller = select.poll()
        poller.register(tun, select.POLLIN)
        poller.register(stop, select.POLLHUP)
        while stop not in dict(poller.poll()):
            inner = os.read(tun, 65_536)
            if inner[0] >> 4 == 4:
                out.sendto(self.wrapped(inner), (NODE, 0))

    def wrapped(self, inner: bytes) -> bytes:
        """In the outer header an LB would put around it; the kernel fills in its checksum."""
        payload = inner
        if self.encap == "gue":
            gue = struct.pack("!BBH", 0, socket.IPPROTO_IPIP, 0)
            ports = struct.pack("!HHHH", 0xC123, GUE_PORT, 12 + len(inner), 0)
            payload = ports + gue + inner
        protocol = socket.IPPROTO_UDP if self.encap == "gue" else socket.IPPROTO_IPIP
        addresses = socket.inet_aton(LB) + socket.inet_aton(NODE)
        total = 20 + len(payload)
        return struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0x4000, 64, protocol, 0) + (
            addresses + payload
        )

    def _listen(self) -> socket.socket:
        with inside(self.machine):
            return self.closing.enter_context(socket.create_server(("0.0.0.0", PORT)))

    @staticmethod
    def _answer(server: socket.socket) -> None:
        """Say whom one sees, then send everything back."""

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                peer, own = connection.getpeername()[0], connection.getsockname()[0]
                connection.sendall(f"{peer} {own}\n".encode())
                while text := connection.recv(65_536):
                    connection.sendall(text)

        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    # ------------------------------------------------------------- processes

    def write_lb_file(self, extra: str = "") -> None:
        super().write_lb_file(f'mode = "{self.mode}"\naddress = "{VIP}"\n{extra}')
        encap = f'encap = "{self.encap}"\n' if self.mode == "l3" else ""
        text = self.lb_file.read_text() + encap + f'\n[[virtual_ips]]\naddress = "{VIP}"\n'
        self.lb_file.write_text(text)

    def write_node_file(
        self, lb_port: int | None = None, host: str = f'ip = "{LB}"', services: str = ""
    ) -> None:
        super().write_node_file(7070, host, f"{self.node_options}\n{services}")

    def start(self, module: str, config: Path) -> subprocess.Popen[bytes]:
        namespace = self.machine if "node" in module else self.outside
        environment = {
            **os.environ,
            "GALE_CONFIG": str(config),
            "GALE_RUN_DIR": str(self.run_dir),
            "GALE_STATE_DIR": str(self.directory / "state"),
            "GALE_BPF_DIR": str(self.bpf_dir),
        }
        with inside(namespace), (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module], env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def agent_status(self, method: str = "GET", path: str = "/status") -> dict[str, Any] | None:
        with inside(self.machine):
            return super().agent_status(method, path)

    def node_state(self) -> dict[str, Any]:
        with inside(self.machine):
            return snapshot()

    # ------------------------------------------------------------- the client

    def connect(self) -> tuple[socket.socket, str]:
        """A connection through the VIP, and the server's first line."""
        with inside(self.outside):
            client = socket.socket()
        client.settimeout(30)
        client.connect((VIP, PORT))
        return client, client.recv(100).decode()

    def close(self) -> None:
        super().close()
        self.closing.close()


def echoed(client: socket.socket, text: bytes) -> bytes:
    """What comes back of it."""
    sender = threading.Thread(target=client.sendall, args=(text,))
    sender.start()
    received = b""
    while len(received) < len(text):
        part = client.recv(65_536)
        if not part:
            break
        received += part
    sender.join()
    return received


def segment_limit(client: socket.socket) -> int:
    """The MSS that the SYN-ACK told, less what timestamps take of each segment."""
    return client.getsockopt(socket.IPPROTO_TCP, _TCP_MAXSEG)


@contextmanager
def wire(mode: str, encap: str = "ipip", node_options: str = "") -> Iterator[Wire]:
    directory = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    made = Wire(directory, mode, encap, node_options)
    try:
        made.build()
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)
