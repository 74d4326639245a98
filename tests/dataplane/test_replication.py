"""Two real dataplane processes tell each other of their flows: real TCP survives one of them."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest

from bpf.clock import TICK_MS, ticks
from bpf.syscall import get_object, map_shape
from bus.keys import write_key
from bus.states import DataplaneState
from services.cli.keygen import make_cluster
from services.dataplane.flows.record import REQUEST, FlowState
from services.dataplane.replication import COMPARED_AGE_TICKS, STRANGER_LIMITS
from tests.dataplane.flows.made import flow_type
from tests.dataplane.machines import PATIENCE_S, Connection, in_network
from tests.dataplane.maps import maps
from tests.dataplane.two_lbs import (
    NAMES,
    PRIVATE,
    QUORUM_PORT,
    Lb,
    TwoLbs,
    config,
    two_lbs,
)

FLOWS = 30
OLD_S = (COMPARED_AGE_TICKS * TICK_MS + 2_000) / 1_000
"""Flows of that age are compared, on both sides."""


@pytest.fixture
def pair() -> Iterator[TwoLbs]:
    with two_lbs() as made:
        yield made


def until(is_so: Callable[[], bool], what: str, *lbs: Lb) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, f"never {what}: {[lb.log() for lb in lbs]}"
        for lb in lbs:
            lb.look()
        time.sleep(0.02)


def level(state: DataplaneState) -> bool:
    return state.synced and all(
        peer.standing == "level" and peer.follows for peer in state.replicas
    )


def both_up(pair: TwoLbs) -> None:
    for lb in pair.lbs:
        lb.bring_up_replicating()
    for lb in pair.lbs:
        lb.until(level, "level")
    pair.move_to(pair.a)


def opened(pair: TwoLbs, count: int) -> list[Connection]:
    connections = [pair.connect() for _ in range(count)]
    assert all(each.echo() for each in connections)
    return connections


def known(pair: TwoLbs, lb: Lb, flows: int) -> None:
    until(lambda: lb.total() == flows, f"{flows} flows at {lb.name}", *pair.lbs)


def test_connections_go_on_when_the_lb_they_came_through_is_dead(pair: TwoLbs) -> None:
    """One idle since it was opened, one that has been used, one that is moving data."""
    both_up(pair)
    idle, used = pair.connect(), opened(pair, 1)[0]
    busy = pair.connect()
    stopped, moved = threading.Event(), [0]

    def move() -> None:
        while not stopped.is_set():
            assert busy.echo(b"x" * 1000 + b"\n")
            moved[0] += 1

    moving = threading.Thread(target=move)
    moving.start()
    known(pair, pair.b, 3)
    pair.die(pair.a)
    pair.move_to(pair.b)
    reached = moved[0]
    until(lambda: moved[0] > reached + 10, "moving data", pair.b)
    stopped.set()
    moving.join()
    assert all(each.echo() for each in (idle, used, busy))
    # New ones too, with ports of this LB's own.
    assert pair.connect().echo()
    assert pair.b.total() == 4
    for each in (idle, used, busy):
        each.close()
    counted = pair.b.until_counted(lambda told: told.replication.get("entered", 0) >= 3)
    assert not [reason for reason in counted.verdicts if "no_flow_reset" in reason]


def test_one_that_starts_late_gets_all_that_there_are(pair: TwoLbs) -> None:
    pair.a.bring_up_replicating()
    pair.a.until(lambda state: state.synced, "synced alone")
    pair.move_to(pair.a)
    connections = opened(pair, 40)
    pair.b.bring_up_replicating()
    pair.b.until(level, "level")
    assert pair.b.total() == 40
    pair.die(pair.a)
    pair.move_to(pair.b)
    assert all(each.echo() for each in connections)


def test_a_process_that_starts_again_goes_on_where_it_was(pair: TwoLbs) -> None:
    both_up(pair)
    opened(pair, 5)
    known(pair, pair.b, 5)
    in_parts = pair.a.until_counted(lambda told: told.replication.get("told", 0) >= 5)
    for process in pair.b.processes:
        pair.b.kill(process)
    connections = opened(pair, 5)
    pair.b.bring_up_replicating()
    known(pair, pair.b, 10)
    pair.b.until(level, "level")
    now = pair.a.until_counted(lambda told: told.replication.get("told", 0) >= 10)
    assert now.replication.get("told_in_parts", 0) == in_parts.replication.get("told_in_parts", 0)
    assert now.replication_lag_seconds is not None
    # The one that tells starts again: the log is lost, the table is not.
    for process in pair.a.processes:
        pair.a.kill(process)
    pair.a.bring_up_replicating()
    more = opened(pair, 3)
    known(pair, pair.b, 13)
    pair.die(pair.a)
    pair.move_to(pair.b)
    assert all(each.echo() for each in connections + more)


def test_an_end_is_known_there_too(pair: TwoLbs) -> None:
    both_up(pair)
    connections = opened(pair, 4)
    known(pair, pair.b, 4)
    for each in connections:
        each.close()
    closed = {"time_wait", "reset"}
    until(
        lambda: {row["state"] for row in pair.b.ask("flows")["flows"]} <= closed,
        "closed",
        *pair.lbs,
    )
    assert pair.b.total() == 4


def test_a_flow_that_is_lost_there_comes_back_by_comparing(pair: TwoLbs) -> None:
    """Nothing that happens to it would tell of it again for half an hour. Of the other flows none
    is told but those of its part of all keys.
    """
    for lb in pair.lbs:
        lb.compare_ms = 500
    both_up(pair)
    connections = opened(pair, FLOWS)
    known(pair, pair.b, FLOWS)
    time.sleep(OLD_S)
    before = mended(pair)
    forget(pair.b, connections[3])
    assert pair.b.total() == FLOWS - 1
    known(pair, pair.b, FLOWS)
    until(lambda: mended(pair) > before, "mended", *pair.lbs)
    assert mended(pair) - before < FLOWS // 2
    pair.die(pair.a)
    pair.move_to(pair.b)
    assert all(each.echo() for each in connections)


def mended(pair: TwoLbs) -> int:
    """Flows that A has told B of because theirs differ."""
    return pair.a.until_counted(lambda _: True).replication.get("mended", 0)


def forget(lb: Lb, connection: Connection) -> None:
    """Take a client's flow out of an LB's table, as only a mistake of ours could."""
    port = socket.htons(int(connection.address.rpartition(":")[2]))
    with maps() as loaded:
        kind = flow_type(loaded.bpf[b"flows"])
    fd = get_object(lb.bpf_dir / "maps" / "flows")
    _, _, bucket_bytes, buckets, _ = map_shape(fd)
    with closing(mmap.mmap(fd, bucket_bytes * buckets, flags=mmap.MAP_SHARED)) as memory:
        records = np.frombuffer(memory, kind)
        is_its = records["state"] == FlowState.TCP_ESTABLISHED
        is_its &= (records["key"]["direction"] == REQUEST) & (records["key"]["sport"] == port)
        (place,) = np.flatnonzero(is_its)
        for each in (place, records["other"][place]):
            records["deadline"][each] = ticks(time.monotonic_ns())
        del records
    os.close(fd)


def test_another_cluster_is_refused_by_name(pair: TwoLbs) -> None:
    pair.b.write_config(config(NAMES[1], "other"))
    for lb in pair.lbs:
        lb.bring_up_replicating()
    for lb, cluster in zip(pair.lbs, ("other", "gale"), strict=True):
        state = lb.until(
            lambda state: all(peer.standing == "refused" for peer in state.replicas), "refused"
        )
        assert f"this is the cluster '{cluster}'" in state.replicas[0].reason
        lb.until_counted(lambda told: told.replication.get("refused_cluster", 0) >= 1)
    pair.move_to(pair.a)
    opened(pair, 3)
    pair.a.until_counted(lambda told: told.replication.get("told", 0) >= 3)
    assert pair.b.total() == 0


def test_a_stranger_is_not_heard_and_rubbish_ends_nothing(pair: TwoLbs) -> None:
    both_up(pair)
    for machine in (pair.a.node, pair.b.lb):
        with in_network(machine):
            ours = socket.create_connection((PRIVATE["lb-0"], QUORUM_PORT + 1))
        ours.sendall(b"\xff" * 200)
        ours.close()
    opened(pair, 3)
    known(pair, pair.b, 3)
    assert pair.a.processes[-1].poll() is None


def test_a_stranger_s_many_connections_keep_no_lb_out(pair: TwoLbs) -> None:
    both_up(pair)
    with ExitStack() as open_ones:
        with in_network(pair.a.node):
            for _ in range(STRANGER_LIMITS.of_address + 20):
                place = PRIVATE["lb-0"], QUORUM_PORT + 1
                open_ones.enter_context(socket.create_connection(place))
        pair.a.until_counted(lambda told: told.replication.get("too_many_connections", 0) == 20)
        opened(pair, 3)
        known(pair, pair.b, 3)


def test_lbs_with_keys_tell_each_other_and_nobody_whose_key_is_taken_away(pair: TwoLbs) -> None:
    directory = pair.a.directory.parent / "keys"
    make_cluster(directory, NAMES, ())
    for lb in pair.lbs:
        lb.write_config(f'{config(lb.name)}[security]\nkeys = "{directory / lb.name}"\n')
    both_up(pair)
    connections = opened(pair, 3)
    known(pair, pair.b, 3)
    # A does not know B any more: what is opened from now on is told to nobody.
    listed = directory / "lb-0" / "lbs" / "lb-1.public"
    public = listed.read_bytes().strip()
    listed.unlink()
    refused = ("key_not_admitted", "refused_stranger")
    pair.a.until_counted(lambda told: any(told.replication.get(name, 0) for name in refused))
    connections += opened(pair, 3)
    pair.a.until_counted(lambda told: told.replication.get("told", 0) >= 3)
    assert pair.b.total() == 3
    write_key(listed, public)
    known(pair, pair.b, 6)
    assert all(each.echo() for each in connections)
