"""keepalived's VRRP in network namespaces of its own: what a VIP is moved by where Gale is not.

    client ─┐
    vrrp-0 ─┼─ bridge        public 10.94.0.0/24: client .2, routers .10, .11, VIP .100
    vrrp-1 ─┘

Each router has keepalived with the interval that is asked for, equal priorities and no pre-emption
(the best case: nothing moves without need), and a server of its own that answers datagrams: so what
is measured is how a VIP moves, and not what is behind it. A killed keepalived leaves the address
where it is, as it does on any machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from e2e.failover import Probing, prober_words
from e2e.hosts import wait_for
from e2e.lab import LabError, plan
from e2e.lab.network import command

ROUTERS = 2
CLIENT, SWITCH = "gale-vrrp-client", "gale-vrrp-switch"
NETWORK, VIP, PORT = "10.94.0", "10.94.0.100", 5300
_CONFIG = """\
global_defs {{
    router_id {name}
    vrrp_version 3
}}
vrrp_instance vip {{
    state BACKUP
    nopreempt
    interface eth0
    virtual_router_id 7
    priority 100
    advert_int {interval_s}
    virtual_ipaddress {{
        {vip}/24
    }}
}}
"""
_SERVER = plan.CHECKOUT_DIR / "e2e" / "lab" / "udp.py"


def _enter(name: str) -> list[str]:
    return ["nsenter", f"--net={plan.NETNS_DIR / name}", "--"]


def _ip(name: str, *words: str) -> str:
    return command(["ip", "-n", name, *words])


class Routers:
    """Two routers, and a client beside them."""

    def __init__(self, directory: Path, interval_s: float) -> None:
        self._directory, self._interval_s = directory, interval_s
        self.names = tuple(f"gale-vrrp-{number}" for number in range(ROUTERS))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._servers: list[subprocess.Popen[bytes]] = []

    def start(self, stack: ExitStack) -> None:
        for name in (SWITCH, CLIENT, *self.names):
            _ip_netns("add", name)
            stack.callback(_ip_netns, "delete", name)
            _ip(name, "link", "set", "lo", "up")
        stack.callback(self._stop_all)
        _ip(SWITCH, "link", "add", "public", "type", "bridge", "stp_state", "0")
        _ip(SWITCH, "link", "set", "public", "up")
        for name, host in ((CLIENT, 2), *((each, 10 + i) for i, each in enumerate(self.names))):
            port = self._port(name)
            _ip(SWITCH, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip(SWITCH, "link", "set", port, "master", "public", "up")
            _ip(name, "address", "add", f"{NETWORK}.{host}/24", "dev", "eth0")
            _ip(name, "link", "set", "eth0", "up")
        for name in self.names:
            words = [*_enter(name), sys.executable, str(_SERVER), name, str(PORT)]
            self._servers.append(subprocess.Popen(words))
            self.run(name)

    @staticmethod
    def _port(name: str) -> str:
        return name.removeprefix("gale-vrrp-") + "-port"

    def _stop_all(self) -> None:
        for name in list(self._running):
            self.end(name, signal.SIGKILL)
        for server in self._servers:
            server.kill()
            server.wait()

    # ------------------------------------------------------------------ one router

    def run(self, name: str) -> None:
        """Start keepalived there, with whatever is left of it gone."""
        place = self._directory / f"{name}.conf"
        place.write_text(_CONFIG.format(name=name, interval_s=self._interval_s, vip=VIP))
        subprocess.run(
            ["ip", "-n", name, "address", "del", f"{VIP}/24", "dev", "eth0"],
            capture_output=True,
            check=False,
        )
        pid, vrrp = (self._directory / f"{name}.{kind}.pid" for kind in ("main", "vrrp"))
        for of_before in (pid, vrrp):  # of one that was killed, and that nobody may have waited for
            of_before.unlink(missing_ok=True)
        words = ["keepalived", "--dont-fork", "--log-console", "--vrrp", f"--use-file={place}"]
        words += [f"--pid={pid}", f"--vrrp_pid={vrrp}"]
        log = (self._directory / f"{name}.log").open("ab")
        self._running[name] = subprocess.Popen(
            [*_enter(name), *words], stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def end(self, name: str, number: signal.Signals) -> None:
        """All of keepalived's processes there, at once."""
        process = self._running.pop(name)
        os.killpg(process.pid, number)
        process.wait()

    def set_link(self, name: str, *, up: bool) -> None:
        _ip(SWITCH, "link", "set", self._port(name), "up" if up else "down")

    def set_cut(self, name: str, *, cut: bool) -> None:
        words = ["bridge", "link", "set", "dev", self._port(name), "state", "0" if cut else "3"]
        command([*_enter(SWITCH), *words])

    # ------------------------------------------------------------------ all

    def holders(self) -> list[str]:
        shown = {name: _ip(name, "-o", "address", "show", "to", VIP) for name in self.names}
        return [name for name, text in shown.items() if text.strip()]

    def holder(self) -> str:
        def only() -> str | None:
            found = self.holders()
            return found[0] if len(found) == 1 else None

        found = wait_for(only, "one router to have the VIP", timeout_s=30)
        time.sleep(3 * self._interval_s)
        return found

    def probing(self) -> Probing:
        words = [*_enter(CLIENT), *prober_words(VIP, PORT, "udp")]
        pipe = subprocess.PIPE
        return Probing(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True))


def _ip_netns(verb: str, name: str) -> None:
    command(["ip", "netns", verb, name])


@contextmanager
def routers(directory: Path, interval_s: float, say: Callable[[str], None]) -> Iterator[Routers]:
    """For as long as the block lasts."""
    found = subprocess.run(["keepalived", "--version"], capture_output=True, check=False)
    if found.returncode != 0:
        raise LabError("keepalived is not installed; `apt-get install keepalived`")
    say(f"keepalived, an advertisement every {interval_s:g} s")
    with ExitStack() as stack:
        made = Routers(directory, interval_s)
        made.start(stack)
        yield made
