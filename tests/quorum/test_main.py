"""The quorum process, as a process: what survives its death, what it says, what it obeys."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from bus import topics
from bus.codec import Envelope
from bus.commands import (
    CommandError,
    request,
)
from bus.events import (
    ProcessEvent,
    TableEvent,
)
from bus.socket import (
    Publisher,
    Subscriber,
)
from bus.states import (
    CommittedTable,
    LocalView,
    NodeTable,
    QuorumState,
)
from bus.topics import Topic
from bus.words import (
    NodeState,
    NoFlow,
    OnNodeDown,
    Role,
)
from conf import load_lb
from services.quorum.core import Quorum
from services.quorum.core_config import core_config
from services.quorum.durable import BLANK
from services.quorum.grants import ALONE_CLAIM_MS
from services.quorum.listing import digest as listing_digest
from services.quorum.main import told_again_after_ms
from services.quorum.table import SLOT_REUSE_MS, FloatingVip
from tests.quorum.views import quorum_config, seen, view

TIMEOUT_S = 30.0
UP, DOWN = NodeState.UP, NodeState.DOWN
CONFIG = """\
[local]
name = "lb-test"
net_interface_private = "priv0"
net_interface_public = "pub0"

[node_health]
checks_timeout = "60s"
"""

T = TypeVar("T")


class Rig:
    """One LB's directories, a health process played by the test, and the quorum process."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = directory / "run"
        self.state = directory / "state" / "quorum.state"
        self.config = directory / "lb.toml"
        self.config.write_text(CONFIG)
        self.log = directory / "log"
        self.context: zmq.Context[Any] = zmq.Context()
        self.health: Publisher | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        self.newest: dict[Topic, Envelope] = {}
        self.events: list[Envelope] = []
        self.subscriber: Subscriber | None = None

    def start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "GALE_CONFIG": str(self.config),
            "GALE_RUN_DIR": str(self.run_dir),
            "GALE_STATE_DIR": str(self.state.parent),
        }
        with self.log.open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", "from services.quorum.main import main; main()"],
                    env=environment,
                    stderr=log,
                    stdout=log,
                )
            )
        return self.processes[-1]

    def kill(self) -> None:
        self.processes[-1].kill()
        self.processes[-1].wait()
        self.forget()

    def forget(self) -> None:
        """What comes from now on is of the next process."""
        if self.subscriber is not None:
            self.subscriber.close()
        self.subscriber = None
        self.newest.clear()
        self.events.clear()

    def sees(self, seen_view: LocalView, *, restarted: bool = False) -> None:
        """Health publishes a view; `restarted`: from a new boot."""
        if restarted:
            self.health_ends()
        if self.health is None:
            path = topics.publisher_path(self.run_dir, topics.HEALTH)
            self.health = Publisher(self.context, path, topics.HEALTH, "lb-test")
        self.health.publish(Topic.STATE_VIEW, seen_view)

    def health_ends(self) -> None:
        if self.health is not None:
            self.health.close()
        self.health = None

    def wait(self, wanted: Callable[[], T | None]) -> T:
        """Until `wanted` returns something; meanwhile messages come in, health serves."""
        if self.subscriber is None:
            wants = {topics.QUORUM: topics.PUBLISHES[topics.QUORUM]}
            self.subscriber = Subscriber(self.context, self.run_dir, wants)
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if self.health is not None:
                self.health.serve()
            self.subscriber.socket.poll(10)
            for envelope in self.subscriber.receive():
                if envelope.topic.is_state:
                    self.newest[envelope.topic] = envelope
                else:
                    self.events.append(envelope)
            for head in self.subscriber.repeated:
                self.newest[head.topic] = replace(self.newest[head.topic], head=head)
            if (found := wanted()) is not None and found is not False:
                return found
        raise AssertionError(f"not within {TIMEOUT_S} s; log:\n{self.log.read_text()}")

    def table(self) -> NodeTable | None:
        envelope = self.newest.get(Topic.STATE_TABLE)
        if envelope is None:
            return None
        assert isinstance(envelope.data, CommittedTable)
        return envelope.data.table

    def states(self) -> dict[str, NodeState] | None:
        table = self.table()
        return None if table is None else {node.name: node.state for node in table.nodes}

    def wait_states(self, wanted: dict[str, NodeState]) -> NodeTable:
        return self.wait(lambda: self.table() if self.states() == wanted else None)

    def quorum(self) -> QuorumState | None:
        envelope = self.newest.get(Topic.STATE_QUORUM)
        return None if envelope is None else envelope.data

    def wait_until_it_waits_for(self, what: str) -> None:
        """For exactly that: what it has waited for before may be heard first."""
        self.wait(lambda: (state := self.quorum()) and state.waiting_for == what)

    def started(self) -> ProcessEvent:
        def found() -> ProcessEvent | None:
            return next((e.data for e in self.events if e.topic is Topic.PROCESS_STARTED), None)

        return self.wait(found)

    def reload(self) -> dict[str, Any]:
        path = topics.command_path(self.run_dir, topics.QUORUM)
        return request(self.context, path, "reload", {}, 20_000)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.forget()
        self.health_ends()
        self.context.term()


@pytest.fixture
def rig() -> Iterator[Rig]:
    directory = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    made = Rig(directory)
    yield made
    made.close()
    shutil.rmtree(directory)


def test_it_commits_what_health_sees_and_says_so(rig: Rig) -> None:
    rig.start()
    rig.wait_until_it_waits_for("the first view of the health process")
    assert rig.table() is None
    rig.sees(view(seen("a", UP), seen("b", UP)))
    table = rig.wait_states({"a": UP, "b": UP})
    assert (table.term, table.epoch) == (1, 1)
    assert [service.name for service in table.services] == ["default"]
    rig.sees(view(seen("a", DOWN), seen("b", UP), version=2))
    assert rig.wait_states({"a": DOWN, "b": UP}).epoch == 2
    state = rig.wait(lambda: s if (s := rig.quorum()) and s.epoch == 2 else None)
    assert (state.name, state.leader, state.term, state.quorum) == ("lb-test", "lb-test", 1, True)
    assert state.lease_remaining_ms == ALONE_CLAIM_MS
    rig.wait(lambda: len(rig.events) >= 4)
    topics = [event.topic for event in rig.events]
    assert topics == [
        Topic.PROCESS_STARTED,
        Topic.QUORUM_LEADER,
        Topic.TABLE_COMMITTED,
        Topic.TABLE_COMMITTED,
    ]
    committed = rig.events[-1].data
    assert isinstance(committed, TableEvent)
    assert committed.changes == ("a up -> down",)


def test_a_killed_process_starts_again_with_all_it_published(rig: Rig) -> None:
    rig.start()
    rig.sees(view(seen("a", UP), seen("b", UP)))
    rig.wait_states({"a": UP, "b": UP})
    rig.sees(view(seen("a", UP), seen("b", DOWN), version=2))
    before = rig.wait_states({"a": UP, "b": DOWN})
    assert rig.state.exists()
    rig.health_ends()
    for _ in range(2):
        rig.kill()
        rig.start()
        assert rig.wait(rig.table) == before
        assert rig.started().adopted == "term 1, epoch 2, 2 nodes"
    # The first table of a new process is the stored one, whatever comes after it.
    rig.kill()
    rig.sees(view(seen("a", DOWN), seen("b", DOWN)))
    rig.start()
    assert rig.wait_states({"a": DOWN, "b": DOWN}).epoch == 3


def test_a_restarting_health_process_wipes_no_node(rig: Rig) -> None:
    rig.start()
    rig.sees(view(seen("a", UP), seen("b", UP)))
    rig.wait_states({"a": UP, "b": UP})
    rig.sees(view(), restarted=True)
    rig.sees(view(seen("b", DOWN), version=2))
    assert rig.wait_states({"a": UP, "b": DOWN}).epoch == 2


def test_states_are_repeated_and_the_table_is_not_renumbered(rig: Rig) -> None:
    rig.start()
    rig.sees(view(seen("a", UP)))
    rig.wait_states({"a": UP})
    first = rig.newest[Topic.STATE_TABLE]
    again = rig.wait(
        lambda: e if (e := rig.newest[Topic.STATE_TABLE]).seq >= first.seq + 2 else None
    )
    assert again.data == first.data
    state = rig.newest[Topic.STATE_QUORUM]
    rig.wait(lambda: rig.newest[Topic.STATE_QUORUM].seq >= state.seq + 2)
    assert rig.newest[Topic.STATE_QUORUM].data == state.data


@pytest.mark.parametrize(("left_ms", "after_ms"), [(112, 56), (0, 500), (10_000, 500)])
def test_a_lease_is_told_again_before_it_is_over(left_ms: int, after_ms: int) -> None:
    state = Quorum(quorum_config(), BLANK, 7, 0, boot="b").state(0)
    assert told_again_after_ms(replace(state, lease_remaining_ms=left_ms)) == after_ms


def test_who_decides_alone_tells_of_its_lease_no_more_often_than_of_its_table(rig: Rig) -> None:
    rig.start()
    rig.sees(view(seen("a", UP)))
    rig.wait_states({"a": UP})
    begun = rig.wait(lambda: rig.newest.get(Topic.STATE_QUORUM)).seq
    tables = rig.newest[Topic.STATE_TABLE].seq
    rig.wait(lambda: rig.newest[Topic.STATE_TABLE].seq >= tables + 4)
    assert rig.newest[Topic.STATE_QUORUM].seq <= begun + 8


def test_a_second_copy_waits_and_takes_over_with_the_newest_table(rig: Rig) -> None:
    first = rig.start()
    rig.sees(view(seen("a", UP)))
    rig.wait_states({"a": UP})
    second = rig.start()
    rig.wait(lambda: "another copy" in rig.log.read_text())
    rig.sees(view(seen("a", DOWN), version=2))
    before = rig.wait_states({"a": DOWN})
    rig.health_ends()
    first.kill()
    first.wait()
    rig.forget()
    assert rig.wait(rig.table) == before
    assert second.poll() is None


def add_service(rig: Rig) -> None:
    rig.config.write_text(CONFIG + '\n[[services]]\nname = "echo"\nport = 9000\n')


def service_names(rig: Rig) -> list[str]:
    table = rig.table()
    return [] if table is None else [service.name for service in table.services]


def test_the_file_says_what_services_and_vips_are(tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_text(
        CONFIG
        + """
        [dataplane]
        tcp_established = "8h"
        [[virtual_ips]]
        address = "10.80.0.100"
        snat_addresses = ["10.81.0.100", "10.81.0.101"]
        [[services]]
        name = "plain"
        port = 80
        [[services]]
        name = "special"
        port = 81
        snat_addresses = ["10.81.0.110"]
        on_node_down = "keep"
        no_flow = "drop"
        """
    )
    config = core_config(load_lb(file))
    assert config.table.vips == (FloatingVip("10.80.0.100", ("10.81.0.100", "10.81.0.101")),)
    plain, special = config.table.services
    assert (plain.snat_addresses, plain.on_node_down, plain.no_flow) == ((), None, NoFlow.RESET)
    assert special.snat_addresses == ("10.81.0.110",)
    assert (special.on_node_down, special.no_flow) == (OnNodeDown.KEEP, NoFlow.DROP)
    assert config.slot_reuse_ms == 8 * 3_600_000
    file.write_text(CONFIG)
    assert core_config(load_lb(file)).slot_reuse_ms == SLOT_REUSE_MS


@pytest.mark.parametrize(
    "key", ["tcp_established", "tcp_closing", "tcp_time_wait", "udp", "udp_one_sided"]
)
def test_a_slot_rests_for_the_longest_idle_time_of_the_file(tmp_path: Path, key: str) -> None:
    file = tmp_path / "lb.toml"
    file.write_text(CONFIG + f'[dataplane]\n{key} = "7h"\n')
    assert core_config(load_lb(file)).slot_reuse_ms == 7 * 3_600_000


@pytest.mark.parametrize("how", ["command", "signal"])
def test_reload_applies_a_good_file_and_keeps_its_own_from_a_bad_one(rig: Rig, how: str) -> None:
    process = rig.start()
    rig.sees(view(seen("a", UP)))
    rig.wait_states({"a": UP})

    def reload() -> dict[str, Any] | None:
        if how == "command":
            return rig.reload()
        process.send_signal(signal.SIGHUP)
        return None

    add_service(rig)
    assert reload() in (None, {"applied": True, "problems": [], "restart_needed": []})
    rig.wait(lambda: service_names(rig) == ["echo"] or None)
    table = rig.table()
    assert table is not None
    assert (table.epoch, rig.states()) == (2, {"a": UP})
    rig.config.write_text(CONFIG + "\n[quorum]\n")
    answer = reload()
    rig.wait(lambda: "stays as it was" in rig.log.read_text() or None)
    if answer is not None:
        assert answer["applied"] is False
        assert answer["problems"][0].startswith(f"{rig.config}:")
    rig.sees(view(seen("a", DOWN), version=2))
    rig.wait_states({"a": DOWN})
    assert service_names(rig) == ["echo"]


def test_a_new_name_needs_a_restart(rig: Rig) -> None:
    rig.start()
    rig.wait(rig.quorum)
    rig.config.write_text(CONFIG.replace("lb-test", "lb-renamed"))
    assert rig.reload()["restart_needed"] == ["local.name"]
    rig.sees(view(seen("a", UP)))
    rig.wait_states({"a": UP})
    table = rig.table()
    assert table is not None
    assert {owned.owner for owned in table.snat_slices} == {"lb-test"}
    quorum = rig.quorum()
    assert quorum is not None
    assert (quorum.name, quorum.leader) == ("lb-test", "lb-test")
    rig.kill()
    rig.start()
    state = rig.wait(lambda: s if (s := rig.quorum()) and s.epoch == 2 else None)
    assert (state.name, state.term, state.epoch) == ("lb-renamed", 2, 2)


def test_an_unknown_command_is_refused(rig: Rig) -> None:
    rig.start()
    rig.wait(rig.quorum)
    path = topics.command_path(rig.run_dir, topics.QUORUM)
    with pytest.raises(CommandError, match="unknown command: dance"):
        request(rig.context, path, "dance", {}, 20_000)


def test_term_ends_it_well(rig: Rig) -> None:
    process = rig.start()
    rig.wait(rig.quorum)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 0


def test_a_bad_file_at_the_start_is_named_and_ends_it(rig: Rig) -> None:
    rig.config.write_text(CONFIG.replace("60s", "60 parsecs"))
    assert rig.start().wait(TIMEOUT_S) == 2
    assert f"{rig.config}:7: node_health.checks_timeout: " in rig.log.read_text()


def test_a_damaged_state_file_is_named_and_set_aside(rig: Rig) -> None:
    rig.start()
    rig.sees(view(seen("a", UP)))
    rig.wait_states({"a": UP})
    rig.kill()
    rig.state.write_bytes(rig.state.read_bytes()[:-9])
    rig.start()
    assert str(rig.state) in rig.started().adopted
    rig.wait_states({"a": UP})
    assert rig.state.with_name("quorum.state.damaged").exists()


def test_a_state_file_of_a_newer_gale_is_refused(rig: Rig) -> None:
    rig.state.parent.mkdir()
    rig.state.write_bytes(b"gale-quorum 9 00\n{}")
    assert rig.start().wait(TIMEOUT_S) == 2
    assert f"{rig.state}: format 9" in rig.log.read_text()
    assert rig.state.read_bytes() == b"gale-quorum 9 00\n{}"


def test_a_disk_that_cannot_be_written_stops_the_table_and_nothing_else(rig: Rig) -> None:
    rig.start()
    rig.sees(view(seen("a", UP)))
    before = rig.wait_states({"a": UP})
    shutil.rmtree(rig.state.parent)
    rig.sees(view(seen("a", DOWN), version=2))
    rig.wait_until_it_waits_for(f"{rig.state}: No such file or directory")
    assert rig.table() == before
    rig.state.parent.mkdir()
    assert rig.wait_states({"a": DOWN}).epoch == 2
    rig.wait_until_it_waits_for("")
    assert rig.log.read_text().count("the table stands still") == 1


def test_a_disk_that_does_not_answer_is_said_and_stops_nothing_else(rig: Rig) -> None:
    """What is opened for the next state is a pipe that nobody reads: the write is never done."""
    rig.start()
    rig.sees(view(seen("a", UP)))
    before = rig.wait_states({"a": UP})
    temporary = rig.state.with_name("quorum.state.tmp")
    os.mkfifo(temporary)
    rig.sees(view(seen("a", DOWN), version=2))
    rig.wait_until_it_waits_for(f"{rig.state}: the disk does not answer")
    assert rig.table() == before
    rig.reload()
    # Once somebody reads, the writer learns that it was no file, and tries again.
    temporary.read_bytes()
    assert rig.wait_states({"a": DOWN}).epoch == 2
    rig.wait_until_it_waits_for("")
    assert rig.log.read_text().count("the disk does not answer") == 1


def test_a_full_disk_stops_the_table_until_there_is_room(rig: Rig) -> None:
    rig.start()
    rig.sees(view(seen("a", UP)))
    before = rig.wait_states({"a": UP})
    with tiny_disk(rig.state.parent) as filler:
        rig.sees(view(seen("a", DOWN), version=2))
        rig.wait_until_it_waits_for(f"{rig.state}: No space left on device")
        assert rig.table() == before
        filler.unlink()
        assert rig.wait_states({"a": DOWN}).epoch == 2
        rig.wait_until_it_waits_for("")
        assert rig.state.exists()


@contextmanager
def tiny_disk(place: Path) -> Iterator[Path]:
    """A full one of 64 kB in the place of a directory; the file that fills it."""
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=64k", "tiny", place), check=True)
    filler = place / "filler"
    try:
        filler.write_bytes(bytes(64 << 10))
        yield filler
    finally:
        subprocess.run(("umount", "--lazy", place), check=True)


def test_of_several_addresses_one_must_be_this_machines(rig: Rig) -> None:
    peers = '{ ip = "203.0.113.2", port = 8081 }, { ip = "203.0.113.3", port = 8081 }'
    rig.config.write_text(CONFIG + f"\n[load_balancer_quorum]\naddresses = [ {peers} ]\n")
    rig.start()
    rig.sees(view(seen("a", UP)))
    state = rig.wait(lambda: s if (s := rig.quorum()) and "an address" in s.waiting_for else None)
    assert "load_balancer_quorum.addresses" in state.waiting_for
    assert not state.quorum
    assert rig.table() is None


def test_alone_among_several_it_leads_nobody(rig: Rig) -> None:
    peers = '{ ip = "127.0.0.1", port = 20481 }, { ip = "203.0.113.3", port = 20481 }'
    rig.config.write_text(CONFIG + f"\n[load_balancer_quorum]\naddresses = [ {peers} ]\n")
    rig.start()
    rig.sees(view(seen("a", UP)))
    rig.wait(lambda: (s := rig.quorum()) and s.members[0].address == "127.0.0.1:20481")
    state = rig.wait(lambda: s if (s := rig.quorum()) and s.role is Role.PRE_CANDIDATE else None)
    assert not state.quorum
    assert state.waiting_for == "a leader: no majority of the LBs is heard"
    assert [member.address for member in state.members] == ["127.0.0.1:20481", "203.0.113.3:20481"]
    assert rig.table() is None


def test_recovered_it_decides_alone(rig: Rig) -> None:
    peers = '{ ip = "127.0.0.1", port = 20482 }, { ip = "203.0.113.3", port = 20482 }'
    rig.config.write_text(CONFIG + f"\n[load_balancer_quorum]\naddresses = [ {peers} ]\n")
    rig.start()
    rig.sees(view(seen("a", UP)))
    rig.wait(lambda: (s := rig.quorum()) and s.role is Role.PRE_CANDIDATE)
    path = topics.command_path(rig.run_dir, topics.QUORUM)
    assert request(rig.context, path, "recover", {}, 20_000) == {"members": 1}
    rig.wait_states({"a": UP})
    state = rig.wait(lambda: s if (s := rig.quorum()) and s.role is Role.LEADER else None)
    assert [member.name for member in state.members] == ["lb-test"]
    with pytest.raises(CommandError, match="decides alone already"):
        request(rig.context, path, "recover", {}, 20_000)


def test_a_quorum_of_one_has_nobody_to_hand_over_to(rig: Rig) -> None:
    rig.start()
    rig.wait(rig.quorum)
    path = topics.command_path(rig.run_dir, topics.QUORUM)
    with pytest.raises(CommandError, match="nobody to hand over to"):
        request(rig.context, path, "handover", {}, 20_000)


def test_an_order_is_agreed_answered_told_and_outlives_the_process(rig: Rig) -> None:
    rig.start()
    rig.sees(view(seen("a", UP)))
    rig.wait_states({"a": UP})
    path = topics.command_path(rig.run_dir, topics.QUORUM)
    drain = {"id": "1", "node": seen("a", UP).id, "kind": "drain", "by": "ada", "why": "disks"}
    for _ in range(2):
        assert request(rig.context, path, "order", drain, 20_000) == {"agreed": True}
    rig.wait_states({"a": NodeState.DRAINING})
    told = rig.wait(lambda: [e for e in rig.events if e.topic is Topic.ORDER_GIVEN] or None)
    assert [event.data.why for event in told] == ["disks"]
    for wrong in (drain | {"id": ""}, drain | {"kind": "dance"}, {"id": "2"}):
        with pytest.raises(CommandError, match="not an order"):
            request(rig.context, path, "order", wrong, 20_000)
    with pytest.raises(CommandError, match="no node has the id x"):
        request(rig.context, path, "order", drain | {"id": "3", "node": "x"}, 20_000)
    rig.kill()
    rig.start()
    rig.sees(view(seen("a", UP), version=2))
    table = rig.wait_states({"a": NodeState.DRAINING})
    assert [order.id for order in table.orders] == ["1"]


def test_the_members_are_not_changed_where_there_are_none_or_by_nonsense(rig: Rig) -> None:
    rig.start()
    rig.wait(rig.quorum)
    path = topics.command_path(rig.run_dir, topics.QUORUM)
    add = {"id": "1", "change": "add", "member": "10.0.0.9:8090"}
    for wrong, why in (
        (add, "decides alone; with others: list them in its file and restart gale:quorum"),
        (add | {"member": "lb-9"}, "no load balancer called lb-9"),
        (add | {"change": "dance"}, "dance"),
        (add | {"id": ""}, "it has no id"),
    ):
        with pytest.raises(CommandError, match=why):
            request(rig.context, path, "member", wrong, 20_000)


def test_another_list_is_taken_by_a_reload_unless_it_decides_alone(rig: Rig) -> None:
    def lists(*hosts: str) -> None:
        entries = ", ".join(f'{{ ip = "{each}", port = 20483 }}' for each in hosts)
        rig.config.write_text(CONFIG + f"\n[load_balancer_quorum]\naddresses = [ {entries} ]\n")

    lists("127.0.0.1", "203.0.113.3")
    rig.start()
    rig.wait(lambda: (s := rig.quorum()) and s.role is Role.PRE_CANDIDATE)
    lists("127.0.0.1", "203.0.113.4", "203.0.113.5")
    assert rig.reload() == {"applied": True, "problems": [], "restart_needed": []}
    wanted = ["127.0.0.1:20483", "203.0.113.4:20483", "203.0.113.5:20483"]
    state = rig.wait(
        lambda: s if (s := rig.quorum()) and [m.address for m in s.members] == wanted else None
    )
    assert state.members[0].listed == listing_digest(wanted)
    rig.wait(lambda: (s := rig.quorum()) and s.role is Role.PRE_CANDIDATE)
    lists("127.0.0.1")
    assert rig.reload()["restart_needed"] == ["quorum.addresses"]
    rig.wait(lambda: (s := rig.quorum()) and [m.address for m in s.members] == wanted)


def test_the_core_is_told_whom_the_entries_of_the_file_mean(rig: Rig) -> None:
    entries = ", ".join(f'{{ hostname = "lb-{each}.test", port = 1 }}' for each in "01")
    rig.config.write_text(CONFIG + f"\n[load_balancer_quorum]\naddresses = [ {entries} ]\n")
    config = load_lb(rig.config)
    others = ("lb-1.test:1",)
    made = core_config(config, "10.0.0.1:1", others, {"lb-0.test:1": "10.0.0.1:1"})
    assert made.entries == ("lb-0.test:1", "lb-1.test:1")
    assert made.target == ("10.0.0.1:1", ""), "nobody knows yet who the other is"
