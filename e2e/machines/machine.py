"""One machine: its layer, its cable, its boot and its end.

A machine's namespace is made here, with one interface `eth0` that a bridge of the namespace
`gale-wire` joins to the others; systemd-nspawn boots the machine into it. `shutdown` ends the first
process, and with it all the others there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.machines.root import USER, add_server

RUN_DIR = Path("/run/gale-machines")
WIRE = "gale-wire"
PREFIX = "10.83.0"
OUR_HOST = 254
BOOT_TIMEOUT_S = 120.0
CGROUP = Path("/sys/fs/cgroup/systemd/gale-machines")


def call(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a tool of the host; RuntimeError with what it complained of."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout}")
    return done


def on_wire(*words: str) -> list[str]:
    """The words of a command that is to run where all machines can be reached."""
    return ["nsenter", f"--net=/run/netns/{WIRE}", "--", *words]


@contextlib.contextmanager
def wire() -> Iterator[None]:
    """The network of all machines, with this one's end of it, while the block lasts."""
    call("ip", "netns", "add", WIRE)
    try:
        bridge = ["link", "add", "name", "wire", "type", "bridge", "mcast_snooping", "0"]
        call("ip", "-n", WIRE, *bridge)
        call("ip", "-n", WIRE, "address", "add", f"{PREFIX}.{OUR_HOST}/24", "dev", "wire")
        for name in ("lo", "wire"):
            call("ip", "-n", WIRE, "link", "set", name, "up")
        yield
    finally:
        call("ip", "netns", "delete", WIRE, check=False)


@dataclass(slots=True)
class Machine:
    """A machine by its name; `host` is the last part of its address."""

    name: str
    host: int
    lower: Path
    serves: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        return f"{PREFIX}.{self.host}"

    @property
    def home(self) -> Path:
        return RUN_DIR / self.name

    @property
    def root(self) -> Path:
        return self.home / "root"

    @property
    def namespace(self) -> str:
        return f"gale-{self.name}"

    # ------------------------------------------------------------------ boot and end

    def make(self, public_key: str) -> None:
        """Its disk, as a freshly installed machine has it."""
        self._lay_root(public_key)

    def boot(self) -> None:
        """Returns when sshd answers. What is on the disk is there again, and nothing else is."""
        self._lay_cable()
        (self.home / "bpf").mkdir(exist_ok=True)
        call("mount", "-t", "bpf", "-o", "mode=0700", "bpf", self.home / "bpf")
        words = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"]
        words += ["--console=read-only", f"--machine={self.name}", f"--directory={self.root}"]
        words += [f"--network-namespace-path=/run/netns/{self.namespace}", "--capability=all"]
        words += ["--system-call-filter=bpf perf_event_open", f"--bind={self.home}/bpf:/sys/fs/bpf"]
        log = (self.home / "console.log").open("wb")
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            preexec_fn=_enter_cgroup,
        )
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while call(*on_wire("ssh-keyscan", "-T", "1", self.address), check=False).stdout == "":
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"{self.name}: {(self.home / 'console.log').read_text()}")
            time.sleep(0.2)

    def _lay_root(self, public_key: str) -> None:
        for name in ("upper", "work", "root"):
            (self.home / name).mkdir(parents=True)
        options = f"lowerdir={self.lower},upperdir={self.home}/upper,workdir={self.home}/work"
        call("mount", "-t", "overlay", "-o", options, "overlay", self.root)
        (self.root / "etc" / "hostname").write_text(f"{self.name}\n")
        (self.root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        # No way to a mirror: what was known when the root was made is as new as it gets.
        (self.root / "var" / "lib" / "apt" / "lists").touch()
        home = self.root / "home" / USER / ".ssh"
        home.mkdir(mode=0o700)
        (home / "authorized_keys").write_text(public_key)
        owner = home.parent.stat()
        for path in (home, home / "authorized_keys"):
            os.chown(path, owner.st_uid, owner.st_gid)
        if self.serves:
            add_server(self.root)

    def _lay_cable(self) -> None:
        call("ip", "netns", "add", self.namespace)
        ends = ["type", "veth", "peer", "name", "eth0", "netns", self.namespace]
        call("ip", "-n", WIRE, "link", "add", self.name, *ends)
        call("ip", "-n", WIRE, "link", "set", self.name, "master", "wire", "up")
        call("ip", "-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            call("ip", "-n", self.namespace, "link", "set", name, "up")
        # What XDP sends to a veth is delivered where the other end polls, and it finishes no sums.
        call(*on_wire("ethtool", "-K", self.name, "gro", "on", "tx", "off"))
        inside = ["nsenter", f"--net=/run/netns/{self.namespace}", "--"]
        call(*inside, "ethtool", "-K", "eth0", "gro", "on")

    def kill(self) -> None:
        """As if its power were cut: its card, what its kernel has and its processes end at once."""
        call("ip", "-n", WIRE, "link", "delete", self.name, check=False)
        if self._process is not None:
            first = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
            for pid in first.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            self._process.wait()
            self._process = None
        call("ip", "netns", "delete", self.namespace, check=False)
        call("umount", "--lazy", self.home / "bpf", check=False)

    def clear(self) -> None:
        """End it, and remove all that was made for it."""
        self.kill()
        call("umount", "--lazy", self.root, check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def mac(self) -> str:
        """Of its card, as long as it runs."""
        shown = call("ip", "-n", self.namespace, "-o", "link", "show", "dev", "eth0").stdout
        return shown.partition("link/ether ")[2].split()[0]

    # ------------------------------------------------------------------ what is done there

    def enter(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command there as root; its output."""
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        (pid,) = path.read_text().split()
        inside = ["nsenter", f"--target={pid}", "--all", "--", *words]
        return subprocess.run(inside, capture_output=True, text=True, check=False)


def _enter_cgroup() -> None:
    """The machine's systemd takes the cgroup that it finds itself in for its own."""
    with contextlib.suppress(OSError):
        mine = CGROUP / str(os.getpid())
        mine.mkdir(parents=True)
        (mine / "cgroup.procs").write_text("0")
