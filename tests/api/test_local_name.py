"""Who answers for an LB's name by multicast DNS: on a network of the test's own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from conf import LbConfig, load_lb
from services import resolve
from services.api.local_name import LocalName, wanted_name
from services.machine import network_addresses
from tests.node.host_state import tool
from tests.node.wire import inside

FILE = """\
[local]
name = "LB-7"
net_interface_private = "priv0"
net_interface_public = "priv0"
[load_balancer_quorum]
addresses = [{ hostname = "%s", port = 8081 }, { ip = "10.9.9.2", port = 8081 }]
"""
FIRST, SECOND = "10.9.9.1", "10.9.9.3"
PATIENCE_S = 30.0


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One interface with an address, and this thread there."""
    monkeypatch.setattr(resolve, "MDNS_TIMEOUT_MS", 300)
    name = f"gale-name-{os.getpid()}"
    tool("ip", "netns", "add", name)
    try:
        tool("ip", "-n", name, "link", "add", "priv0", "type", "veth", "peer", "name", "other0")
        for each in ("lo", "priv0", "other0"):
            tool("ip", "-n", name, "link", "set", each, "up")
        tool("ip", "-n", name, "address", "add", f"{FIRST}/24", "dev", "priv0")
        with inside(name):
            yield name
    finally:
        tool("ip", "netns", "del", name)


def config(directory: Path, listed: str) -> LbConfig:
    file = directory / "lb.toml"
    file.write_text(FILE % listed)
    return load_lb(file)


async def answered(address: str) -> None:
    """Until the network says that the name is at this address, and at no other."""
    async with asyncio.timeout(PATIENCE_S):
        while await asyncio.to_thread(ask) != [address]:
            await asyncio.sleep(0.01)


def ask() -> list[str]:
    return resolve.ask_multicast("lb-7.local", None)


async def while_it_runs(naming: LocalName, during: Callable[[], Awaitable[None]]) -> None:
    ending = asyncio.Event()

    async def stops_within(wait_ms: int) -> bool:
        # Looks are for people: here they need not be seconds apart.
        await asyncio.sleep(min(wait_ms, 20) / 1000)
        return ending.is_set()

    running = asyncio.create_task(naming.run(stops_within))
    await during()
    ending.set()
    await running


def test_a_name_of_the_list_is_answered_and_its_new_address_too(
    network: str, tmp_path: Path
) -> None:
    naming = LocalName(lambda: config(tmp_path, "lb-7.local"))

    async def moves() -> None:
        await answered(FIRST)
        tool("ip", "-n", network, "address", "del", f"{FIRST}/24", "dev", "priv0")
        tool("ip", "-n", network, "address", "add", f"{SECOND}/24", "dev", "priv0")
        await answered(SECOND)

    asyncio.run(while_it_runs(naming, moves))
    assert ask() == [], "nobody answers any more"


def test_what_somebody_else_answers_is_left_to_him(network: str, tmp_path: Path) -> None:
    first, second = (LocalName(lambda: config(tmp_path, "lb-7.local")) for _ in range(2))

    async def looks() -> None:
        await answered(FIRST)
        await second._look()
        assert second._answering is None

    asyncio.run(while_it_runs(first, looks))


def test_a_name_that_the_list_does_not_have_is_nobodys(network: str, tmp_path: Path) -> None:
    assert network_addresses() == [FIRST]
    assert wanted_name(config(tmp_path, "LB-7.local")) == ("lb-7.local", FIRST)
    assert wanted_name(config(tmp_path, "lb-8.local")) is None
