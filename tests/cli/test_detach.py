"""`gale detach` on real interfaces: what is Gale's goes, everything else stays."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from tests.cli.network import Namespace, call


def pins(namespace: Namespace) -> list[str]:
    root = namespace.mount
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and "." not in path.name
    )


def make_map(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = "type array key 4 value 4 entries 1 name est"
    call("bpftool", "map", "create", str(path), *words.split())


@contextmanager
def running_dataplane(namespace: Namespace) -> Iterator[None]:
    """The lock that its publisher holds."""
    path = namespace.run_dir / "bus" / "dataplane.ipc.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_all_of_ours_goes_and_the_rest_stays(namespace: Namespace) -> None:
    namespace.attach_ours()
    namespace.attach_tc("pub0", "neighbour", priority=5)
    make_map(namespace.bpf_dir / "maps" / "est")
    result = namespace.gale("detach")
    assert result.returncode == 0, result.stderr
    assert namespace.xdp("pub0") == ""
    assert "gale_" not in namespace.ingress("pub0") + namespace.ingress("priv0")
    assert "neighbour" in namespace.ingress("pub0")
    assert "clsact" not in namespace.run("tc", "qdisc", "show", "dev", "priv0")
    assert pins(namespace) == ["foreign/neighbour"]
    assert not namespace.bpf_dir.exists()
    removed = [line for line in result.stdout.splitlines() if line.startswith("removed")]
    assert [line.split()[1:3] for line in removed[:3]] == [
        ["priv0:", "gale_tc_private"],
        ["pub0:", "gale_xdp_public"],
        ["pub0:", "gale_tc_public"],
    ]
    assert "left     pub0: neighbour" in result.stdout
    again = namespace.gale("detach")
    assert again.returncode == 0
    assert "removed" not in again.stdout


def test_nothing_there_is_said(namespace: Namespace) -> None:
    result = namespace.gale("detach")
    assert result.returncode == 0
    assert result.stdout == "nothing of Gale's was attached or pinned\n"


def test_maps_are_kept_on_request(namespace: Namespace) -> None:
    namespace.attach_ours()
    make_map(namespace.bpf_dir / "maps" / "est")
    result = namespace.gale("detach", "--keep-maps")
    assert result.returncode == 0
    assert pins(namespace) == ["gale/v1/maps/est"]
    assert "1 pinned maps, as asked" in result.stdout
    assert namespace.gale("detach").returncode == 0
    assert pins(namespace) == []


def test_a_foreign_xdp_program_stays(namespace: Namespace) -> None:
    pin = namespace.attach_xdp("pub0", "firewall")
    result = namespace.gale("detach", "--json")
    assert result.returncode == 0
    answer = orjson.loads(result.stdout)
    assert answer["removed"] == answer["failed"] == []
    (left,) = answer["left"]
    assert left.startswith("pub0: firewall (native XDP, id ")
    assert namespace.xdp("pub0")
    assert pin.exists()


@pytest.mark.parametrize("flavour", ["xdpdrv", "xdpgeneric"])
def test_a_program_whose_pin_is_lost_is_known_by_its_name(
    namespace: Namespace, flavour: str
) -> None:
    namespace.attach_xdp("pub0", "gale_xdp_public", flavour).unlink()
    assert namespace.gale("detach").returncode == 0
    assert namespace.xdp("pub0") == ""


def test_a_program_of_another_name_is_known_by_its_pin(namespace: Namespace) -> None:
    pin = namespace.attach_xdp("pub0", "renamed")
    (namespace.bpf_dir / "prog").mkdir(parents=True)
    pin.rename(namespace.bpf_dir / "prog" / "xdp_public~next")
    assert namespace.gale("detach").returncode == 0
    assert namespace.xdp("pub0") == ""
    assert pins(namespace) == []


def test_a_running_dataplane_is_in_the_way_unless_forced(namespace: Namespace) -> None:
    namespace.attach_ours()
    before = pins(namespace)
    with running_dataplane(namespace):
        result = namespace.gale("detach")
        assert result.returncode == 1
        assert result.stderr.startswith("the dataplane process runs")
        assert namespace.xdp("pub0")
        assert pins(namespace) == before
        assert namespace.gale("detach", "--force").returncode == 0
    assert namespace.xdp("pub0") == ""
    assert pins(namespace) == []


def test_a_lock_file_that_nobody_holds_is_no_dataplane(namespace: Namespace) -> None:
    with running_dataplane(namespace):
        pass
    assert namespace.gale("detach").returncode == 0


def test_an_interface_that_is_gone_keeps_no_pin(namespace: Namespace) -> None:
    namespace.attach_ours()
    namespace.run("ip", "link", "del", "pub0")
    result = namespace.gale("detach")
    assert result.returncode == 0
    assert "left     pub0: no such interface" in result.stdout
    assert "gale_" not in namespace.ingress("priv0")
    assert pins(namespace) == []


def test_what_an_earlier_configuration_put_on_other_interfaces_goes_too(
    namespace: Namespace,
) -> None:
    namespace.attach_ours()
    namespace.attach_xdp("priv0", "gale_xdp_reply").rename(namespace.bpf_dir / "prog" / "former_1")
    text = namespace.config.read_text().replace("priv0", "pub0").replace("8080", "8081")
    namespace.config.write_text(text)
    assert namespace.gale("detach").returncode == 0
    assert namespace.xdp("pub0") + namespace.xdp("priv0") == ""
    assert "gale_tc_private" not in namespace.ingress("priv0")
    assert pins(namespace) == []


def test_strangers_on_other_interfaces_are_none_of_its_business(namespace: Namespace) -> None:
    namespace.attach_tc("pub0-far", "neighbour", priority=1)
    namespace.attach_xdp("priv0-far", "firewall")
    result = namespace.gale("detach")
    assert result.stdout == "nothing of Gale's was attached or pinned\n"
    assert "neighbour" in namespace.ingress("pub0-far")
    assert namespace.xdp("priv0-far")


def test_what_is_the_node_agents_stays_pins_and_all(namespace: Namespace) -> None:
    namespace.attach_ours()
    namespace.attach_tc("priv0-far", "gale_unwrap", priority=1)
    pin = namespace.attach_xdp("pub0-far", "renamed")
    pin.rename(namespace.bpf_dir / "prog" / "unwrap_xdp_pub0-far")
    result = namespace.gale("detach")
    assert result.returncode == 0, result.stderr
    assert "left     priv0-far: gale_unwrap" in result.stdout
    assert "gale_unwrap" in namespace.ingress("priv0-far")
    assert namespace.xdp("pub0-far")
    assert namespace.xdp("pub0") == ""
    assert pins(namespace) == ["foreign/gale_unwrap", "gale/v1/prog/unwrap_xdp_pub0-far"]


def test_only_a_bpf_file_system_is_cleared(namespace: Namespace) -> None:
    directory = namespace.directory / "plain" / "prog"
    directory.mkdir(parents=True)
    (directory / "precious").touch()
    result = namespace.gale("detach", GALE_BPF_DIR=str(directory.parent))
    assert "not in a BPF file system" in result.stdout
    assert (directory / "precious").exists()
