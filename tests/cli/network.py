"""A network namespace with `pub0` and `priv0`, a BPF file system, and `gale` run inside."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bpf.syscall import (
    ProgramFlag,
    ProgramKind,
    load_program,
    pin_object,
)
from tests.cli.files import LB_CONFIG

_numbers = itertools.count()
_EXIT = b"\x95" + 7 * b"\0"
PASS = {ProgramKind.XDP: 2, ProgramKind.TC: 0}


def program(name: str, kind: ProgramKind, pin: Path) -> int:
    """The shortest program there is, loaded and pinned; returns its fd."""
    instructions = b"\xb7\0\0\0" + PASS[kind].to_bytes(4, "little") + _EXIT
    fd = load_program(name, kind, instructions, b"GPL", ProgramFlag.NONE)
    pin.parent.mkdir(parents=True, exist_ok=True)
    pin_object(fd, pin)
    return fd


ATTACH = """
import sys
from pathlib import Path
from pyroute2 import IPRoute
from bpf.attach import attach_tc, attach_xdp
from bpf.syscall import get_object
loaded, bpf_dir = map(Path, sys.argv[1:])
prog = bpf_dir / "prog"
prog.mkdir(parents=True)
with IPRoute() as netlink:
    attach_xdp(netlink, "pub0", get_object(loaded / "new_xdp_public"), prog / "xdp_public")
    attach_tc(netlink, "pub0", get_object(loaded / "new_tc_public"), prog / "tc_public")
    attach_tc(netlink, "priv0", get_object(loaded / "new_tc_private"), prog / "tc_private")
for path in loaded.glob("new_*"):
    path.unlink()
"""
"""What the dataplane does, by its own code, in a process inside the namespace."""


class Namespace:
    """Unique by its name, so that many workers have one each."""

    def __init__(self) -> None:
        self.name = f"gale-cli-{os.getpid()}-{next(_numbers)}"
        self.directory = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
        self.mount = self.directory / "bpf"
        self.bpf_dir = self.mount / "gale" / "v1"
        self.foreign_dir = self.mount / "foreign"
        self.run_dir = self.directory / "run"
        self.state_dir = self.directory / "state"
        self._helpers: list[subprocess.Popen[str]] = []
        self.config = self.directory / "lb.toml"
        self.config.write_text(LB_CONFIG)
        self.mount.mkdir()
        call("ip", "netns", "add", self.name)
        call("mount", "-t", "bpf", "bpf", str(self.mount))
        self.run("ip", "link", "set", "lo", "up")
        for name, address in (("pub0", "10.80.0.10/24"), ("priv0", "10.81.0.10/24")):
            self.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
            self.run("ip", "address", "add", address, "dev", name)
            self.run("ip", "link", "set", name, "up")
            self.run("ip", "link", "set", f"{name}-far", "up")
            self.run("ethtool", "-K", f"{name}-far", "gro", "on")

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", *words]

    def run(self, *words: str) -> str:
        return call(*self.command(*words))

    def gale(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`gale` here, with this machine's configuration; whatever it answers."""
        program = [sys.executable, "-c", "from services.cli.main import main; main()"]
        return subprocess.run(
            self.command(*program, *arguments),
            env=os.environ
            | {
                "GALE_CONFIG": str(self.config),
                "GALE_RUN_DIR": str(self.run_dir),
                "GALE_STATE_DIR": str(self.state_dir),
                "GALE_BPF_DIR": str(self.bpf_dir),
            }
            | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def listen(self, port: int, address: str = "0.0.0.0") -> None:
        """Somebody who listens on that TCP port, until the namespace is closed."""
        self._help(f"s = socket.create_server(({address!r}, {port}))")

    def listen_unix(self, process: str) -> None:
        """Somebody in the place of a process of Gale's."""
        path = self.run_dir / "bus" / f"{process}.cmd.ipc"
        path.parent.mkdir(parents=True)
        self._help(f"s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen()")

    def _help(self, code: str) -> None:
        words = (sys.executable, "-c", f"import socket, sys; {code}; print(1, flush=True); input()")
        helper = subprocess.Popen(
            self.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._helpers.append(helper)
        assert helper.stdout is not None
        assert helper.stdout.readline() == "1\n"

    def attach_ours(self) -> None:
        """All three programs as the dataplane attaches them."""
        names = {ProgramKind.XDP: ["xdp_public"], ProgramKind.TC: ["tc_public", "tc_private"]}
        for kind, pins in names.items():
            for name in pins:
                os.close(program(f"gale_{name}", kind, self.mount / f"new_{name}"))
        self.run(sys.executable, "-c", ATTACH, str(self.mount), str(self.bpf_dir))

    def attach_xdp(self, interface: str, name: str, flavour: str = "xdpdrv") -> Path:
        """Somebody's XDP program; returns where it is pinned: outside of what Gale pins."""
        pin = self.foreign_dir / name
        os.close(program(name, ProgramKind.XDP, pin))
        self.run("ip", "link", "set", "dev", interface, flavour, "pinned", str(pin))
        return pin

    def attach_tc(self, interface: str, name: str, priority: int) -> None:
        """Somebody's TC filter."""
        pin = self.foreign_dir / name
        os.close(program(name, ProgramKind.TC, pin))
        if "clsact" not in self.run("tc", "qdisc", "show", "dev", interface):
            self.run("tc", "qdisc", "add", "dev", interface, "clsact")
        words = f"filter add dev {interface} ingress prio {priority} bpf da pinned {pin}"
        self.run("tc", *words.split())

    def ingress(self, interface: str) -> str:
        return self.run("tc", "filter", "show", "dev", interface, "ingress")

    def xdp(self, interface: str) -> str:
        """The words of `ip link` from `prog` on; empty without an XDP program."""
        return self.run("ip", "-d", "link", "show", "dev", interface).partition("prog/xdp")[2]

    def close(self) -> None:
        for helper in self._helpers:
            helper.kill()
            helper.communicate()
        if os.path.ismount(self.state_dir):
            call("umount", str(self.state_dir))
        call("ip", "netns", "del", self.name)
        call("umount", str(self.mount))
        for path in sorted(self.directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.directory.rmdir()


def call(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout
