"""Names to addresses, in a thread of its own: libzmq is never handed a name.

A name that cannot be resolved stalls whoever asks for it, for seconds: here nobody else. Names that
end in `.local` are asked for by multicast DNS (RFC 6762, by zeroconf), and by the system's resolver
if nobody answers, since that may know mDNS too; all others by the system's resolver. A load
balancer asks by multicast from its private address alone: on its public network the others would
answer with their public addresses.

What is not an IP address is asked for again every `REFRESH_S`, or `RETRY_S` while it is unknown,
for addresses move; and at once when whoever uses an address hears nothing there (`ask_again`). Of
several addresses the one that is used already stays, whatever order they come in. The last answer
stays valid while newer ones fail. Whatever a resolver raises is a failure of that name, and of no
other. Should the thread die nevertheless, whoever asks for an address next ends by that: names that
nobody follows any more would be a fault that shows weeks later.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

from bus.words import one_line
from services.machine import network_addresses

REFRESH_S = 30.0
RETRY_S = 2.0
MDNS_TIMEOUT_MS = 1_500


class Resolver:
    """Addresses and failures by name; `wake` is called, in the thread, when an address changes."""

    def __init__(
        self,
        wake: Callable[[], None],
        source: Callable[[], str | None] = lambda: None,
        own_name: str = "",
    ) -> None:
        """`source`: the address to ask by multicast from; None, from all there are. `own_name`: the
        name by which others ask for that address, so that nobody else need be asked for it."""
        self._wake = wake
        self._source = source
        self._own_name = own_name.lower()
        self._doubted: set[str] = set()
        self._wanted: tuple[str, ...] = ()
        self._addresses: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def want(self, hosts: tuple[str, ...]) -> None:
        """From now on keep these hosts resolved."""
        names = tuple(each for each in hosts if not (is_address(each) or self._is_own(each)))
        if names == self._wanted:
            return
        self._wanted = names
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
            self._thread.start()

    def address(self, host: str) -> str | None:
        """The host's address, if it is one or is known by now.

        Raises RuntimeError if a mistake of ours has ended the thread.
        """
        if self._thread is not None and not self._thread.is_alive():
            raise RuntimeError("the resolver has died")
        if self._is_own(host):
            return self._source()
        return host if is_address(host) else self._addresses.get(host)

    def _is_own(self, host: str) -> bool:
        return host.lower().rstrip(".") == self._own_name != ""

    def ask_again(self, host: str) -> None:
        """Nothing is heard at the host's address: it may have another by now."""
        if host in self._wanted:
            self._doubted.add(host)
            self._changed.set()

    def failure(self, host: str) -> str:
        """Why the host has no address yet."""
        return self._failures.get(host, f"{host}: being resolved")

    def _run(self) -> None:
        due_s: dict[str, float] = {}
        while True:
            now_s = time.monotonic()
            for name in self._wanted:
                if due_s.get(name, now_s) <= now_s or name in self._doubted:
                    self._doubted.discard(name)
                    due_s[name] = time.monotonic() + self._resolve(name)
            waiting_s = min((due_s[name] for name in self._wanted if name in due_s), default=None)
            timeout_s = REFRESH_S if waiting_s is None else max(0.0, waiting_s - time.monotonic())
            self._changed.wait(timeout_s)
            self._changed.clear()

    def _resolve(self, name: str) -> float:
        """Ask for one name; returns how long to wait before asking again."""
        try:
            source = self._source()
            found = resolve(name, [source] if source is not None else None)
        except Exception as error:  # resolvers raise more than they tell: UnicodeError, ...
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._failures[name] = f"{name} cannot be resolved: {one_line(why)}"
            self._wake()
            return RETRY_S
        if self._addresses.get(name) not in found:
            self._addresses[name] = found[0]
            self._wake()
        self._failures.pop(name, None)
        return REFRESH_S


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_local(name: str) -> bool:
    """Whether the name is one of multicast DNS."""
    return name.lower().rstrip(".").endswith(".local")


def resolve(name: str, interfaces: list[str] | None = None) -> list[str]:
    """The IPv4 addresses of a name, one at least; blocks, for `MDNS_TIMEOUT_MS` and longer.

    `interfaces`: the addresses to ask by multicast from. Raises OSError, and what else the system's
    resolver raises.
    """
    if is_local(name):
        addresses = ask_multicast(name, interfaces)
        if addresses:
            return addresses
    found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


def ask_multicast(name: str, interfaces: list[str] | None) -> list[str]:
    """What the network answers within `MDNS_TIMEOUT_MS`; blocks until then.

    The loopback is neither asked on nor taken for an answer: this machine's own responder tells
    127.0.0.1 there, by which no other machine can be reached.
    """
    import zeroconf  # eight megabytes that few need

    host = f"{name.rstrip('.')}."
    try:
        asker = zeroconf.Zeroconf(interfaces=interfaces or network_addresses())
    except (OSError, RuntimeError):
        return []  # no interface that could be asked from: the next try may find one
    try:
        # Public by its documentation, and missing from its __all__.
        answer = zeroconf.AddressResolverIPv4(host)  # type: ignore[attr-defined]
        if not answer.request(asker, MDNS_TIMEOUT_MS):
            return []
        addresses = answer.ip_addresses_by_version(zeroconf.IPVersion.V4Only)
        return [str(address) for address in addresses if not address.is_loopback]
    finally:
        asker.close()
