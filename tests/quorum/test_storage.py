"""The state file: whole before and after every crash, named when it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bus.states import (
    SnatSlice,
    VipOwner,
)
from bus.words import (
    NodeState,
    NoFlow,
)
from services import statefile as storage_module
from services.quorum.durable import BLANK, HardState
from services.quorum.storage import NewerFormatError, Storage
from services.quorum.table import FloatingVip, Report, TableConfig, bootstrap, merge
from tests.quorum.views import seen, table_config, view

BOOT = "1e30b1d5"


def hard_state(term: int, *, ban_ms: int = 0) -> HardState:
    state = NodeState.BANNED if ban_ms else NodeState.UP
    reports = {"lb-0": Report(view(seen("n", state, ban_ms=ban_ms, fails=2)), True, 0)}
    table = merge(bootstrap(term, 2**64 - 1), reports, table_config(), ["lb-0"], term=term)
    return HardState(term, "lb-0", table)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    assert Storage(directory, BOOT).load(0) == (BLANK, "")
    member = HardState(4, None, None, promise_ms=125, joined=True)
    growing = replace(member, first=hard_state(2).table)
    for state in (HardState(1, "lb-0", None), hard_state(2), hard_state(3), member, growing):
        Storage(directory, BOOT).save(state, 10)
        assert Storage(directory, BOOT).load(20) == (state, "")
    assert (directory / "quorum.state").stat().st_mode & 0o777 == 0o600


def test_a_ban_goes_on_through_a_restart_of_the_process_and_starts_again_with_the_machine(
    tmp_path: Path,
) -> None:
    Storage(tmp_path, BOOT).save(hard_state(1, ban_ms=60_000), 1_000)

    def left(boot: str, now_ms: int) -> int:
        table = Storage(tmp_path, boot).load(now_ms)[0].table
        assert table is not None
        return table.bans[0].remaining_ms

    assert left(BOOT, 11_000) == 50_000
    assert left("another", 11_000) == 60_000


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of the code under test may run on."""


STEPS: tuple[tuple[str, str], ...] = (
    ("open", "os"),
    ("fsync", "os"),
    ("replace", "Path"),
    ("_sync_directory", "module"),
)


@pytest.mark.parametrize(("step", "place"), STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, place: str, when: str
) -> None:
    old, new = hard_state(4), hard_state(5)
    storage = Storage(tmp_path, BOOT)
    storage.save(old, 0)
    owner: Any = {"os": os, "Path": Path, "module": storage_module}[place]
    original: Callable[..., Any] = getattr(owner, step)

    def killed(*arguments: Any, **options: Any) -> Any:
        if when == "after":
            original(*arguments, **options)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, killed)
        with pytest.raises(KilledError):
            storage.save(new, 0)
    renamed = step == "_sync_directory" or (step == "replace" and when == "after")
    assert Storage(tmp_path, BOOT).load(0) == (new if renamed else old, "")
    Storage(tmp_path, BOOT).save(new, 0)
    assert Storage(tmp_path, BOOT).load(0) == (new, "")


def test_the_order_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name} {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    Storage(tmp_path, BOOT).save(hard_state(1), 0)
    assert done == [
        "fsync quorum.state.tmp",
        "rename quorum.state.tmp quorum.state",
        f"fsync {tmp_path.name}",
    ]


def test_a_truncated_file_is_set_aside_by_name_at_every_length(tmp_path: Path) -> None:
    Storage(tmp_path, BOOT).save(hard_state(4), 0)
    path = tmp_path / "quorum.state"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        state, complaint = Storage(tmp_path, BOOT).load(0)
        assert state == BLANK
        assert complaint.startswith(f"{path}: ")
        assert (tmp_path / "quorum.state.damaged").read_bytes() == whole[:length]
        assert not path.exists()


@pytest.mark.parametrize("at", [0, 11, 20, 100, -1])
def test_an_altered_byte_is_seen(tmp_path: Path, at: int) -> None:
    Storage(tmp_path, BOOT).save(hard_state(4), 0)
    path = tmp_path / "quorum.state"
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x40
    path.write_bytes(raw)
    state, complaint = Storage(tmp_path, BOOT).load(0)
    assert state == BLANK
    assert str(path) in complaint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("term", 2**63 - 1),
        ("term", -1),
        ("saved_ms", 2**64),
        ("table.hash_seed", 2**64),
        ("table.hash_seed", -1),
        ("table.epoch", 2**63 - 1),
        ("table.epoch", 2**62),
        ("table.term", 2**63),
        ("table.nodes.0.weight", 2**40),
        ("table.nodes.0.address", "fe80::1"),
        ("table.snat_slices.0.first_port", 70_000),
    ],
)
def test_an_absurd_number_is_set_aside_whatever_the_checksum_says(
    tmp_path: Path, key: str, value: Any
) -> None:
    Storage(tmp_path, BOOT).save(hard_state(4), 0)
    path = tmp_path / "quorum.state"
    body = json.loads(path.read_bytes().partition(b"\n")[2])
    holder = body
    *parents, last = key.split(".")
    for part in parents:
        holder = holder[int(part) if part.isdigit() else part]
    assert last in holder
    holder[last] = value
    raw = json.dumps(body).encode()
    path.write_bytes(f"gale-quorum 1 {hashlib.sha256(raw).hexdigest()}\n".encode() + raw)
    state, complaint = Storage(tmp_path, BOOT).load(0)
    assert state == BLANK
    assert complaint.startswith(f"{path}: ")
    assert (tmp_path / "quorum.state.damaged").exists()


@pytest.mark.parametrize("number", ["9" * 5_000, "²", "१", "-1", ""])
def test_a_format_that_is_no_number_is_damage(tmp_path: Path, number: str) -> None:
    path = tmp_path / "quorum.state"
    path.write_text(f"gale-quorum {number} abc\n{{}}")
    assert Storage(tmp_path, BOOT).load(0)[0] == BLANK
    assert (tmp_path / "quorum.state.damaged").exists()


def test_what_was_never_saved_is_set_aside_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "quorum.state"
    os.mkfifo(path)
    complaint = f"{path}: it is no regular file; set aside as {path}.damaged, starting blank"
    assert Storage(tmp_path, BOOT).load(0) == (BLANK, complaint)
    assert Storage(tmp_path, BOOT).load(0) == (BLANK, "")


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    Storage(tmp_path, BOOT).save(hard_state(4), 0)
    path = tmp_path / "quorum.state"
    newer = path.read_bytes().replace(b"gale-quorum 1 ", b"gale-quorum 2 ")
    path.write_bytes(newer)
    with pytest.raises(NewerFormatError, match=r"quorum\.state: format 2"):
        Storage(tmp_path, BOOT).load(0)
    assert path.read_bytes() == newer


FROM_BEFORE = (
    '{"term":4,"vote":"lb-0","table":{"term":4,"epoch":2,"hash_seed":7,"services":[{"name":'
    '"default","address":"10.80.0.100","port":8080,"protocol":"tcp","mode":"l4","node_port":8080,'
    '"affinity":"flow","encap":"ipip","snat":true}],"nodes":[{"id":"n@10.81.0.20","name":"n",'
    '"address":"10.81.0.20","state":"down","weight":1,"services":[{"name":"default","port":8080}]}'
    '],"bans":[],"vip_owners":[{"address":"10.80.0.100","snat_address":"10.81.0.100","owner":'
    '"lb-0"},{"address":"10.80.0.101","snat_address":null,"owner":null}],"snat_slices":[{"owner":'
    '"lb-0","address":"10.81.0.100","first_port":1536,"ports":7808}]},"saved_ms":0,"machine_boot":'
    '"1e30b1d5"}'
)
"""As it was written when a VIP had but one SNAT address, and no node was silent."""


def test_a_file_from_before_is_read(tmp_path: Path) -> None:
    checksum = hashlib.sha256(FROM_BEFORE.encode()).hexdigest()
    path = tmp_path / "quorum.state"
    path.write_text(f"gale-quorum 1 {checksum}\n{FROM_BEFORE}")
    state, complaint = Storage(tmp_path, BOOT).load(0)
    assert (state.term, state.vote, complaint) == (4, "lb-0", "")
    table = state.table
    assert table is not None
    assert table.vip_owners == (
        VipOwner("10.80.0.100", "10.81.0.100", "lb-0", ("10.81.0.100",)),
        VipOwner("10.80.0.101", None, None, ()),
    )
    assert table.snat_slices == (SnatSlice("lb-0", "10.81.0.100", 1_536, 7_808, 0, 0),)
    assert (table.services[0].on_node_down, table.services[0].no_flow) == (None, NoFlow.RESET)
    assert not table.nodes[0].silent
    vips = tuple(FloatingVip(vip.address, vip.snat_addresses) for vip in table.vip_owners)
    merged = merge(table, {}, TableConfig(table.services, vips), ["lb-0"], term=4)
    assert [(s.first_port, s.low_first_port) for s in merged.snat_slices] == [(1_536, 600)] * 2
    Storage(tmp_path, BOOT).save(HardState(4, "lb-0", merged), 0)
    assert Storage(tmp_path, BOOT).load(0)[0].table == merged


def test_a_full_disk_keeps_the_old_file_and_leaves_no_half_one(tmp_path: Path) -> None:
    storage = Storage(tmp_path, BOOT)
    storage.save(hard_state(4), 0)
    # RLIMIT_FSIZE would kill; /dev/full as the temporary file is a disk without a byte of room.
    (tmp_path / "quorum.state.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        storage.save(hard_state(5), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quorum.state"]
    assert storage.load(0) == (hard_state(4), "")
    storage.save(hard_state(5), 0)
    assert storage.load(0) == (hard_state(5), "")


def test_a_directory_that_vanished_is_an_error_of_the_machine(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state", BOOT)
    storage.load(0)
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(FileNotFoundError):
        storage.save(hard_state(1), 0)
