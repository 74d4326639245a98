"""Names to addresses, in a thread of its own: libzmq is never handed a name.

A name that cannot be resolved stalls whoever asks for it, for seconds: here nobody else. Names that
end in `.local` are asked for by multicast DNS (zeroconf), and by the system's resolver if nobody
answers, since that may know mDNS too; all others by the system's resolver. What is not an IP
address is asked for again every `REFRESH_S`, or `RETRY_S` while it is unknown, for addresses move.
The last answer stays valid while newer ones fail. Whatever a resolver raises is a failure of that
name, and of no other; should the thread die nevertheless, `alive` says so.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

from bus.words import one_line

REFRESH_S = 30.0
RETRY_S = 2.0
MDNS_TIMEOUT_MS = 1_500


class Resolver:
    """`addresses` and `failures` by name; `wake` is called, in the thread, when they change."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._wanted: tuple[str, ...] = ()
        self._addresses: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def want(self, hosts: tuple[str, ...]) -> None:
        """From now on keep these hosts resolved."""
        names = tuple(host for host in hosts if not is_address(host))
        if names == self._wanted:
            return
        self._wanted = names
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
            self._thread.start()

    def address(self, host: str) -> str | None:
        """The host's address, if it is one or is known by now."""
        return host if is_address(host) else self._addresses.get(host)

    @property
    def alive(self) -> bool:
        """False: a mistake of ours has ended the thread."""
        return self._thread is None or self._thread.is_alive()

    def failure(self, host: str) -> str:
        """Why the host has no address yet."""
        return self._failures.get(host, f"{host}: being resolved")

    def _run(self) -> None:
        due_s: dict[str, float] = {}
        while True:
            now_s = time.monotonic()
            for name in self._wanted:
                if due_s.get(name, now_s) <= now_s:
                    due_s[name] = time.monotonic() + self._resolve(name)
            waiting_s = min((due_s[name] for name in self._wanted if name in due_s), default=None)
            timeout_s = REFRESH_S if waiting_s is None else max(0.0, waiting_s - time.monotonic())
            self._changed.wait(timeout_s)
            self._changed.clear()

    def _resolve(self, name: str) -> float:
        """Ask for one name; returns how long to wait before asking again."""
        try:
            address = resolve(name)
        except Exception as error:  # resolvers raise more than they tell: UnicodeError, ...
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._failures[name] = f"{name} cannot be resolved: {one_line(why)}"
            self._wake()
            return RETRY_S
        if self._addresses.get(name) != address:
            self._addresses[name] = address
            self._wake()
        self._failures.pop(name, None)
        return REFRESH_S


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def resolve(name: str, interfaces: list[str] | None = None) -> str:
    """The IPv4 address of a name; blocks. `interfaces`: the addresses to ask by multicast from."""
    if name.lower().rstrip(".").endswith(".local"):
        address = _ask_multicast(name, interfaces)
        if address is not None:
            return address
    found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    return str(found[0][4][0])


def _ask_multicast(name: str, interfaces: list[str] | None) -> str | None:
    import zeroconf  # eight megabytes that few need

    host = f"{name.rstrip('.')}."
    try:
        asker = zeroconf.Zeroconf(interfaces=interfaces or zeroconf.InterfaceChoice.All)
    except (OSError, RuntimeError):
        return None  # no interface that could be asked from: the next try may find one
    try:
        # Public by its documentation, and missing from its __all__.
        answer = zeroconf.AddressResolverIPv4(host)  # type: ignore[attr-defined]
        if not answer.request(asker, MDNS_TIMEOUT_MS):
            return None
        addresses = answer.ip_addresses_by_version(zeroconf.IPVersion.V4Only)
        return str(addresses[0]) if addresses else None
    finally:
        asker.close()
