"""The file system that all machines begin with, made by debootstrap once and kept.

It has what a freshly installed machine has, and of the packages that Gale's depend on those of the
distribution, for the machines have no way to a mirror.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from e2e.lab.plan import CHECKOUT_DIR

DIRECTORY = CHECKOUT_DIR / "build" / "machines"
ROOT = DIRECTORY / "root"
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
)
HELLO = """\
import http.server
import socket


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{socket.gethostname()}\\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
HELLO_UNIT = """\
[Unit]
Description=Answers with the host's name
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/hello.py
DynamicUser=yes
[Install]
WantedBy=multi-user.target
"""
USER = "deployer"


def make_root() -> Path:
    """The directory; raises CalledProcessError if debootstrap cannot make it."""
    if ROOT.exists():
        return ROOT
    beside = ROOT.with_name("root~next")
    shutil.rmtree(beside, ignore_errors=True)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    names = ",".join(dict.fromkeys(PACKAGES))
    words = ["debootstrap", "--variant=minbase", f"--include={names}", SUITE, str(beside)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    _furnish(beside)
    beside.rename(ROOT)
    return ROOT


def _furnish(root: Path) -> None:
    """A user who may do everything, and a server that only nodes will be told to start."""
    words = ["useradd", "--create-home", "--shell", "/bin/bash", USER]
    subprocess.run(["chroot", str(root), *words], check=True)
    (root / "etc" / "sudoers.d" / USER).write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    (root / "usr" / "local" / "lib" / "hello.py").write_text(HELLO)
    (root / "etc" / "systemd" / "system" / "hello.service").write_text(HELLO_UNIT)
    # Each machine is to have one of its own.
    (root / "etc" / "machine-id").write_text("uninitialized\n")
