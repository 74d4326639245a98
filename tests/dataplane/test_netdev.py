"""What a real kernel says of real devices, and that changes of it are heard."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from services.dataplane import netdev
from services.dataplane.netdev import DeviceMonitor
from services.dataplane.outputs import NDO_XMIT, NDO_XMIT_SG
from tests.bpf.harness import private_network

PATIENCE_S = 30
TAKES = NDO_XMIT | NDO_XMIT_SG


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


@pytest.fixture
def monitor() -> Iterator[DeviceMonitor]:
    """In a network with a veth pair (2 and 3), a bridge (4), and a macvlan (5) on the pair."""
    with private_network():
        run("ip link add name far0 index 2 type veth peer name own0 index 3")
        run("ip link set far0 up")
        run("ip link set own0 up")
        run("ip link add name br0 index 4 type bridge")
        run("ip link add name mac0 index 5 link own0 type macvlan mode bridge")
        monitor = DeviceMonitor()
        yield monitor
        monitor.close()


def takes(monitor: DeviceMonitor) -> dict[int, bool]:
    features = monitor.serve()
    assert features is not None
    return {ifindex: said & TAKES == TAKES for ifindex, said in features.items() if ifindex != 1}


def until(monitor: DeviceMonitor, wanted: dict[int, bool]) -> None:
    """By its descriptor alone: nobody asks anew."""
    deadline = time.monotonic() + PATIENCE_S
    while takes(monitor) != wanted:
        assert time.monotonic() < deadline, takes(monitor)
        select.select([monitor], [], [], 1)


NOBODY = {2: False, 3: False, 4: False, 5: False}


def test_what_is_there_at_the_start(monitor: DeviceMonitor) -> None:
    assert takes(monitor) == NOBODY


def test_a_veth_takes_frames_while_its_other_end_polls(monitor: DeviceMonitor) -> None:
    run("ethtool -K far0 gro on")
    until(monitor, NOBODY | {3: True})
    run("ethtool -K far0 gro off")
    until(monitor, NOBODY)


def test_devices_come_and_go(monitor: DeviceMonitor) -> None:
    run("ip link add name br1 index 9 type bridge")
    until(monitor, NOBODY | {9: False})
    run("ip link del own0")
    until(monitor, {4: False, 9: False})


def test_lost_news_is_asked_for(monitor: DeviceMonitor) -> None:
    """More changes than the socket has room for, which is the least that the kernel gives."""
    with socket.socket(fileno=os.dup(monitor.fileno())) as notifications:
        notifications.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    lines = "".join(f"link add name v{n} type bridge\nlink del v{n}\n" for n in range(50))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True, capture_output=True)
    run("ethtool -K far0 gro on")
    until(monitor, NOBODY | {3: True})


def test_a_kernel_without_the_family_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netdev, "FAMILY", b"nosuch\0")
    with private_network():
        monitor = DeviceMonitor()
        assert monitor.serve() is None
        assert select.select([monitor], [], [], 0)[0] == []
        monitor.close()
