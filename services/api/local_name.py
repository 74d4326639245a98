"""This load balancer's name on its private network, where nobody else on the machine tells it.

Load balancers and nodes may be given as `lb-0.local` in the files, which is asked for by multicast
DNS (RFC 6762). Usually the machine's avahi-daemon answers. On a machine without one this process
does: for `NAME.local`, NAME being `local.name`, and only if the LBs' own list has that name; with
the address of the private interface, and on that interface. It looks every `LOOK_S` whether that
address is another by now, or gone. Before it answers it asks: if the network knows the name with
this machine's address, somebody answers already; if with another address, the name is another
machine's, and the log says so.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from bus.words import one_line
from conf import LbConfig
from services.logs import words_of
from services.machine import LOOPBACK, own_address
from services.resolve import ask_multicast

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncZeroconf

LOOK_S = 2.0
OTHERS_S = 30.0
"""While somebody else answers for the name: how long until it is asked for again."""
SERVICE = "_gale._tcp.local."

_log = structlog.get_logger()


class LocalName:
    """Answers for one name at a time; `run` does it until the process ends."""

    def __init__(self, config: Callable[[], LbConfig]) -> None:
        self._config = config
        self._answering: AsyncZeroconf | None = None
        self._told = ("", "")
        """The name and the address that are answered, or that somebody else answers."""
        self._said = ""

    async def run(self, stops_within: Callable[[int], Awaitable[bool]]) -> None:
        """`stops_within`: waits for so many milliseconds, and says whether this is the end."""
        pause_s = 0.0
        while not await stops_within(int(pause_s * 1000)):
            pause_s = await self._look()
        await self._stop()

    async def _look(self) -> float:
        """How long until the next look, in seconds."""
        wanted = wanted_name(self._config())
        if wanted is None:
            await self._stop()
            return LOOK_S
        if self._answering is not None and wanted == self._told:
            return LOOK_S
        await self._stop()
        name, address = wanted
        known = await asyncio.to_thread(ask_multicast, name, [address])
        if known:
            self._say(f"{name} is answered by another program" if address in known else "", known)
            return OTHERS_S
        try:
            await self._answer(name, address)
        except (OSError, RuntimeError) as error:
            self._say(f"{name} cannot be answered: {words_of(error)}", [])
            return OTHERS_S
        return LOOK_S

    async def _answer(self, name: str, address: str) -> None:
        from zeroconf import Error, ServiceInfo  # eight megabytes that few need
        from zeroconf.asyncio import AsyncZeroconf

        info = ServiceInfo(
            SERVICE,
            f"{name.removesuffix('.local')}.{SERVICE}",
            port=self._config().local.node_port,
            server=f"{name}.",
            addresses=[socket.inet_aton(address)],
        )
        self._answering = AsyncZeroconf(interfaces=[address])
        try:
            await (await self._answering.async_register_service(info))
        except Error as error:
            raise RuntimeError(one_line(str(error) or type(error).__name__)) from None
        self._told = name, address
        self._said = ""
        _log.info("answers for its name by multicast DNS", name=name, address=address)

    async def _stop(self) -> None:
        if self._answering is not None:
            answering, self._answering, self._told = self._answering, None, ("", "")
            await answering.async_close()

    def _say(self, trouble: str, known: list[str]) -> None:
        """Once, until it is something else."""
        told = trouble or f"its name is another machine's: {', '.join(known)}"
        if told != self._said:
            _log.info("does not answer for its name by multicast DNS", because=told)
        self._said = told


def wanted_name(config: LbConfig) -> tuple[str, str] | None:
    """The name to answer for and its address; None: the list does not have it, or it has none."""
    name = f"{config.local.name}.local".lower()
    listed = {peer.host.lower().rstrip(".") for peer in config.quorum.addresses}
    if name not in listed:
        return None
    address = own_address(config.local.net_interface_private)
    return None if address in (None, LOOPBACK) else (name, address)
