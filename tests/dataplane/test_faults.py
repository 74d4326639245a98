"""Whose fault it is: the machine's is waited for, ours ends the process; neither leaks anything."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from bpf.attach import ForeignProgram
from conf import Paths, load_lb
from services.dataplane import forwarding
from services.dataplane import main as dataplane
from services.dataplane.main import DataplaneProcess
from services.dataplane.programs import Programs
from tests.bpf.harness import IMAGES, private_bpffs, private_network
from tests.dataplane.machines import CONFIG
from tests.node.host_state import tool


@pytest.fixture
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataplaneProcess]:
    """The process as it is before its first turn, on a machine that is ready."""
    with private_bpffs() as bpf_dir, private_network():
        for name, address in (("pub0", "10.60.0.1/24"), ("priv0", "10.61.0.1/24")):
            tool("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
            for end in (name, f"{name}-far"):
                tool("ip", "link", "set", end, "up")
            tool("ip", "address", "add", address, "dev", name)
        directory = Path(tmp_path_factory.mktemp("p", numbered=True))
        (directory / "lb.toml").write_text(CONFIG)
        (directory / "state").mkdir()
        IMAGES.mkdir(parents=True, exist_ok=True)
        (directory / "state" / dataplane.PROGRAM_CACHE).symlink_to(IMAGES)
        run_dir = Path(f"/tmp/gale-faults-{os.getpid()}")
        paths = Paths(
            lb_config=directory / "lb.toml",
            run_dir=run_dir,
            state_dir=directory / "state",
            bpf_dir=bpf_dir,
        )
        made = DataplaneProcess(paths, load_lb(paths.lb_config))
        try:
            yield made
        finally:
            made.close()
            tool("rm", "-r", str(run_dir))


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def fail(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOENT, "no such entry")


@pytest.mark.parametrize("what", ["Kernel", "possible_cpus"])
def test_a_fault_of_ours_is_not_waited_for(
    process: DataplaneProcess, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(forwarding, what, fail)
    before = descriptors()
    for now_ms in range(0, 3_000, 1_000):
        with pytest.raises(OSError, match="no such entry"):
            process._start(now_ms)
    assert process._waiting_for == ""
    assert descriptors() == before


def test_what_attaching_says_is_the_machines_or_ours_by_its_number(
    process: DataplaneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Programs, "attach", attach)
    before = descriptors()
    for number in (errno.EPERM, errno.ENOMEM, errno.ENOSPC, errno.EMFILE):
        process._start(0)
        assert os.strerror(number) in process._waiting_for
    for number in (errno.EINVAL, errno.EBADF, errno.EFAULT, errno.E2BIG):
        with pytest.raises(OSError, match=os.strerror(number)):
            process._start(0)
    assert descriptors() == before


def test_waiting_costs_no_descriptor(process: DataplaneProcess) -> None:
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname="priv0")[0]
        process._start(0)
        assert process._forwarding is not None
        process._forwarding.close()
        process._forwarding = None
        before = descriptors()
        netlink.link("set", index=index, state="down")
        for now_ms in range(0, 5_000, 1_000):
            process._start(now_ms)
            assert "priv0: it is down" in process._waiting_for
        assert descriptors() == before


def test_a_refusal_of_a_hook_costs_no_descriptor(
    process: DataplaneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ForeignProgram("a stranger")

    monkeypatch.setattr(Programs, "attach", refuse)
    before = descriptors()
    for now_ms in range(0, 5_000, 1_000):
        process._start(now_ms)
        assert process._waiting_for == "a stranger"
    assert descriptors() == before
