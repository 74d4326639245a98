"""The file system that all machines begin with, made by debootstrap once and kept.

It has what a freshly installed machine has, and of the packages that Gale's depend on those of the
distribution, for the machines have no way to a mirror.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from e2e.lab.plan import CHECKOUT_DIR

DIRECTORY = CHECKOUT_DIR / "build" / "machines"
SUITE = "bookworm"
PACKAGES = (
    *(
        "systemd",
        "systemd-sysv",
        "dbus",
        "udev",
        "kmod",
        "netbase",
        "procps",
        "iproute2",
        "ethtool",
    ),
    *("openssh-server", "sudo", "python3", "avahi-daemon", "libnss-mdns", "iputils-ping", "curl"),
    *("supervisor", "python3-bpfcc", "linux-libc-dev", "python3-pkg-resources", "python3-apt"),
    "logrotate",
)
PORTS = {"l4": 8080, "l2": 8180, "l3": 8280}
"""Where each node's server listens, by the mode of the service that leads there."""
HELLO = """\
import http.server
import socket
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{socket.gethostname()}\\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # as a server has it that is meant for many


for port in sys.argv[1:]:
    server = Server(("", int(port)), Handler)
    threading.Thread(target=server.serve_forever).start()
"""
HELLO_UNIT = """\
[Unit]
Description=Answers with the host's name
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/hello.py {ports}
DynamicUser=yes
[Install]
WantedBy=multi-user.target
"""
USER = "deployer"


def make_root() -> Path:
    """The directory; raises CalledProcessError if debootstrap cannot make it."""
    # Another list of packages makes another root.
    digest = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:8]
    root = DIRECTORY / f"root-{digest}"
    if root.exists():
        return root
    beside = root.with_name("root~next")
    shutil.rmtree(beside, ignore_errors=True)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    names = ",".join(dict.fromkeys(PACKAGES))
    words = ["debootstrap", "--variant=minbase", f"--include={names}", SUITE, str(beside)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    _furnish(beside)
    beside.rename(root)
    return root


def _furnish(root: Path) -> None:
    """A user who may do everything."""
    words = ["useradd", "--create-home", "--shell", "/bin/bash", USER]
    subprocess.run(["chroot", str(root), *words], check=True)
    (root / "etc" / "sudoers.d" / USER).write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    # Each machine is to have one of its own.
    (root / "etc" / "machine-id").write_text("uninitialized\n")


def add_server(root: Path) -> None:
    """What a machine that is to be a node serves, from its boot on."""
    (root / "usr" / "local" / "lib" / "hello.py").write_text(HELLO)
    units = root / "etc" / "systemd" / "system"
    unit = HELLO_UNIT.format(ports=" ".join(map(str, PORTS.values())))
    (units / "hello.service").write_text(unit)
    (units / "multi-user.target.wants" / "hello.service").symlink_to(
        "/etc/systemd/system/hello.service"
    )
