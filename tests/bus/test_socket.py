"""The bus between real processes: late, restarted, slow and duplicate ones."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus import socket, topics
from bus.codec import (
    BUS_VERSION,
    Envelope,
    Head,
    encode,
    encode_head,
    from_json,
    to_json,
)
from bus.commands import (
    KEPT_REPLIES,
    Command,
    CommandError,
    CommandServer,
    Later,
    Reply,
    request,
)
from bus.events import ProcessEvent
from bus.socket import (
    HIGH_WATER_MARK,
    KEPT_EVENTS,
    LONGEST_SUBSCRIPTION,
    Publisher,
    PublisherSocket,
    Subscriber,
)
from bus.topics import Topic
from tests.bus.conftest import TIMEOUT_S, Lines, Peer
from tests.bus.peer import SOURCE, committed_table

Start = Callable[[str], Peer]
Context = zmq.Context[zmq.Socket[bytes]]
EVENT = ProcessEvent(process="quorum", pid=1, version="1", adopted="")


def started(source: str, boot: str, seq: int) -> Head:
    return Head(Topic.PROCESS_STARTED, source, "h", boot, seq, 0, 0, 0)


def events(lines: Lines) -> list[int]:
    return [line["seq"] for line in lines if "seq" in line and line["state"] is None]


def states(lines: Lines) -> list[int]:
    return [line["state"] for line in lines if line.get("state") is not None]


def is_event(seq: int) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line.get("seq") == seq and line["state"] is None


def is_state(version: int) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line.get("state") == version


def receive(
    subscriber: Subscriber, publishers: list[Publisher], enough: Callable[[list[Envelope]], bool]
) -> list[Envelope]:
    """What comes until it is enough, with publishers of this process served meanwhile."""
    received: list[Envelope] = []
    deadline = time.monotonic() + TIMEOUT_S
    while not enough(received):
        assert time.monotonic() < deadline, received
        for publisher in publishers:
            publisher.serve()
        subscriber.socket.poll(5)
        received += subscriber.receive()
    return received


def test_late_joiner_gets_states_then_all_events_in_order(start: Start) -> None:
    publisher = start("publisher")
    publisher.ready()
    publisher.order(events=3)
    publisher.order(state=7)
    publisher.order(state=8)
    publisher.order(events=2)
    lines = start("subscriber").expect(is_event(5))
    assert states(lines) == [8]
    assert events(lines) == [1, 2, 3, 4, 5]
    assert lines[1]["state"] == 8


def test_the_log_keeps_the_last_1024_events(start: Start) -> None:
    publisher = start("publisher")
    publisher.ready()
    publisher.order(events=KEPT_EVENTS + 10)
    lines = start("subscriber").expect(is_event(KEPT_EVENTS + 10))
    assert events(lines) == list(range(11, KEPT_EVENTS + 11))


def test_large_events_are_kept_as_far_as_there_is_memory(
    context: Context, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "KEPT_EVENT_BYTES", 50_000)
    publisher = Publisher(context, topics.publisher_path(run_dir, SOURCE), SOURCE, "lb-0")
    large = replace(EVENT, adopted="x" * 20_000)
    for event in (large, large, large, EVENT):
        publisher.publish(Topic.PROCESS_STARTED, event)
    subscriber = Subscriber(context, run_dir, {SOURCE: (Topic.PROCESS_STARTED,)})
    got = receive(subscriber, [publisher], lambda got: len(got) == 3)
    assert [envelope.seq for envelope in got] == [2, 3, 4]


def test_early_subscriber_waits_for_its_publisher(start: Start) -> None:
    subscriber = start("subscriber")
    subscriber.ready()
    publisher = start("publisher")
    publisher.ready()
    publisher.order(events=2)
    assert events(subscriber.expect(is_event(2))) == [1, 2]


def test_killed_publisher_comes_back_with_a_new_boot(start: Start) -> None:
    first = start("publisher")
    first_boot = first.ready()
    first.order(events=5, state=1)
    subscriber = start("subscriber")
    subscriber.expect(is_event(5))
    first.kill()
    second = start("publisher")
    second_boot = second.ready()
    second.order(events=2)
    lines = subscriber.expect(is_event(2))
    assert first_boot != second_boot
    assert {line["boot"] for line in lines if "seq" in line} == {second_boot}
    assert events(lines) == [1, 2]


def test_restarted_subscriber_misses_nothing(start: Start) -> None:
    publisher = start("publisher")
    publisher.ready()
    publisher.order(events=1, state=1)
    first = start("subscriber")
    first.expect(is_event(1))
    first.kill()
    publisher.order(events=9, state=2)
    lines = start("subscriber").expect(is_event(10))
    assert events(lines) == list(range(1, 11))
    assert states(lines) == [2]


def test_a_replay_for_one_is_no_repetition_for_another(start: Start) -> None:
    publisher = start("publisher")
    publisher.ready()
    publisher.order(events=3, state=1)
    settled = start("subscriber")
    settled.expect(is_event(3))
    start("subscriber").expect(is_event(3))
    publisher.order(events=1)
    lines = settled.expect(is_event(4))
    assert events(lines) == [4]
    assert states(lines) == []


def test_paused_subscriber_is_bounded_and_right_again_at_the_next_state(start: Start) -> None:
    publisher = start("publisher")
    publisher.ready()
    subscriber = start("subscriber")
    publisher.order(events=1, state=1)
    subscriber.expect(is_event(1))
    before = publisher.resident_bytes()
    subscriber.signal(signal.SIGSTOP)
    pad, count = 2048, 40_000
    publisher.order(events=count, pad=pad)
    grown = publisher.resident_bytes() - before
    assert grown < 8 * HIGH_WATER_MARK * pad < count * pad / 2
    subscriber.signal(signal.SIGCONT)
    repeat_state_until_it_arrives(publisher, subscriber)
    publisher.order(events=1)
    lines = subscriber.expect(lambda line: line.get("dropped", 0) > 0)
    assert lines[-1]["dropped"] < count


def repeat_state_until_it_arrives(publisher: Peer, subscriber: Peer) -> None:
    """As every process does twice a second: the first after the queue has drained comes through."""
    deadline = time.monotonic() + TIMEOUT_S
    version = 1
    while time.monotonic() < deadline:
        version += 1
        publisher.order(state=version)
        while not subscriber.silent():
            batch = subscriber.expect(lambda line: "dropped" in line)
            if version in states(batch):
                return
    pytest.fail("no state came through")


def test_second_copy_waits_and_takes_over(start: Start) -> None:
    first = start("publisher")
    first.ready()
    subscriber = start("subscriber")
    first.order(events=1)
    subscriber.expect(is_event(1))
    second = start("publisher")
    deadline = time.monotonic() + TIMEOUT_S
    while not any("waiting for its end" in line for line in second.log):
        assert time.monotonic() < deadline, "the second copy never said that it waits"
        time.sleep(0.01)
    first.order(events=1)
    subscriber.expect(is_event(2))
    assert second.silent()
    first.kill()
    second_boot = second.ready()
    second.order(state=5)
    assert subscriber.expect(is_state(5))[-1]["boot"] == second_boot


def test_closed_publisher_leaves_the_path_to_the_next_at_once(
    context: Context, run_dir: Path
) -> None:
    path = topics.publisher_path(run_dir, SOURCE)
    for _ in range(20):
        Publisher(context, path, SOURCE, "lb-0").close()
        assert not path.exists()
    publisher = Publisher(context, path, SOURCE, "lb-0")
    publisher.publish(Topic.PROCESS_STARTED, EVENT)
    subscriber = Subscriber(context, run_dir, {SOURCE: (Topic.PROCESS_STARTED,)})
    assert receive(subscriber, [publisher], lambda got: len(got) == 1)[0].seq == 1


def test_single_topics_are_all_replayed_whatever_the_order_of_subscribing(
    context: Context, run_dir: Path
) -> None:
    publisher = Publisher(context, topics.publisher_path(run_dir, SOURCE), SOURCE, "lb-0")
    for version in range(3):
        publisher.publish(Topic.PROCESS_STARTED, EVENT)
        publisher.publish(Topic.STATE_TABLE, committed_table(version))
    wanted = (Topic.PROCESS_STARTED, Topic.TABLE_COMMITTED)
    subscriber = Subscriber(context, run_dir, {SOURCE: wanted})
    got = receive(subscriber, [publisher], lambda got: len(got) == 3)
    assert [envelope.seq for envelope in got] == [1, 2, 3]
    assert {envelope.topic for envelope in got} == {Topic.PROCESS_STARTED}


def test_retained_state_comes_before_what_happens_after_subscribing(
    context: Context, run_dir: Path
) -> None:
    """A subscription takes effect only with its replay: nothing live gets in between."""
    publisher = Publisher(context, topics.publisher_path(run_dir, SOURCE), SOURCE, "lb-0")
    publisher.publish(Topic.STATE_TABLE, committed_table(1))
    subscriber = Subscriber(context, run_dir, {SOURCE: topics.PUBLISHES[SOURCE]})
    assert publisher.poll_socket.poll(TIMEOUT_S * 1000)
    publisher.publish(Topic.PROCESS_STARTED, EVENT)
    got = receive(subscriber, [publisher], lambda got: len(got) == 2)
    assert [envelope.topic for envelope in got] == [Topic.STATE_TABLE, Topic.PROCESS_STARTED]


def test_unsubscribing_ends_the_stream(context: Context, run_dir: Path) -> None:
    path = run_dir / "bus" / "x.ipc"
    publisher = PublisherSocket(context, path)
    subscriber: zmq.Socket[bytes] = context.socket(zmq.SUB)
    subscriber.connect(f"ipc://{path}")
    subscriber.subscribe(b"a.")
    subscriber.subscribe(b"b.")
    prefixes: list[bytes] = []
    while len(prefixes) < 2:
        assert publisher.socket.poll(TIMEOUT_S * 1000)
        prefixes += publisher.subscriptions()
    assert sorted(prefixes) == [b"a.", b"b."]
    subscriber.unsubscribe(b"a.")
    assert publisher.socket.poll(TIMEOUT_S * 1000)
    assert publisher.subscriptions() == []
    publisher.send([b"a.", b"1"])
    publisher.send([b"b.", b"2"])
    assert subscriber.poll(TIMEOUT_S * 1000)
    assert subscriber.recv_multipart() == [b"b.", b"2"]


def test_malformed_and_foreign_messages_are_counted(context: Context, run_dir: Path) -> None:
    socket = PublisherSocket(context, topics.publisher_path(run_dir, SOURCE))
    subscriber = Subscriber(context, run_dir, {SOURCE: topics.PUBLISHES[SOURCE]})
    assert socket.socket.poll(TIMEOUT_S * 1000)
    socket.subscriptions()
    foreign = Envelope(started("stranger", "b", 1), EVENT)
    newer = encode(foreign)
    newer[1] = newer[1].replace(b'"v":%d' % BUS_VERSION, b'"v":9')
    for frames in ([b"no.topic.", b"{}"], [b"x"], newer, encode(foreign)):
        socket.send(frames)
    right = Envelope(started(SOURCE, "b", 1), EVENT)
    socket.send(encode(right))
    assert receive(subscriber, [], lambda got: len(got) == 1) == [right]
    assert subscriber.rejected == {"malformed": 2, "version": 1, "unexpected_source": 1}


def test_what_was_dropped_is_counted_by_source(context: Context, run_dir: Path) -> None:
    socket = PublisherSocket(context, topics.publisher_path(run_dir, SOURCE))
    subscriber = Subscriber(context, run_dir, {SOURCE: topics.PUBLISHES[SOURCE]})
    assert socket.socket.poll(TIMEOUT_S * 1000)
    socket.subscriptions()
    for seq in (5, 6, 9, 10, 10, 7):  # 7 and 8 are lost; 7 comes back too late, 10 twice
        socket.send(encode(Envelope(started(SOURCE, "b", seq), EVENT)))
    for seq in (1, 3):  # a new boot counts anew
        socket.send(encode(Envelope(started(SOURCE, "c", seq), EVENT)))
    got = receive(subscriber, [], lambda got: len(got) == 6)
    assert [envelope.seq for envelope in got] == [5, 6, 9, 10, 1, 3]
    assert subscriber.dropped == {SOURCE: 3}


def test_a_state_that_only_repeats_is_handed_out_once(context: Context, run_dir: Path) -> None:
    publisher = Publisher(context, topics.publisher_path(run_dir, SOURCE), SOURCE, "lb-0")
    subscriber = Subscriber(context, run_dir, {SOURCE: (Topic.STATE_TABLE,)})
    publisher.publish(Topic.STATE_TABLE, committed_table(1))
    assert len(receive(subscriber, [publisher], lambda got: len(got) == 1)) == 1
    publisher.publish(Topic.STATE_TABLE, committed_table(1))
    publisher.repeat(Topic.STATE_TABLE)
    assert last_repetition(subscriber, 3) == (3, 1)
    publisher.publish(Topic.STATE_TABLE, committed_table(2))
    [second] = receive(subscriber, [publisher], lambda got: len(got) == 1)
    assert second.data == committed_table(2)


def last_repetition(subscriber: Subscriber, seq: int) -> tuple[int, int]:
    """Its number, when that is `seq`, and its version; nothing else must come meanwhile."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        subscriber.socket.poll(5)
        assert subscriber.receive() == []
        for head in subscriber.repeated:
            if head.seq == seq:
                return head.seq, head.version
    raise AssertionError("never repeated")


def test_of_many_states_only_the_newest_is_decoded(context: Context, run_dir: Path) -> None:
    socket = PublisherSocket(context, topics.publisher_path(run_dir, SOURCE))
    subscriber = Subscriber(context, run_dir, {SOURCE: (Topic.STATE_TABLE,)})
    assert socket.socket.poll(TIMEOUT_S * 1000)
    socket.subscriptions()
    for version in range(1, 10):
        head = Head(Topic.STATE_TABLE, SOURCE, "h", "b", version, version, 0, 0)
        socket.send([*encode_head(head), b"no JSON at all"])
    last = Head(Topic.STATE_TABLE, SOURCE, "h", "b", 10, 10, 0, 0)
    socket.send(encode(Envelope(last, committed_table(10))))
    socket.send(encode_head(replace(last, seq=11)))
    time.sleep(0.05)
    assert [envelope.data for envelope in subscriber.receive()] == [committed_table(10)]
    assert not subscriber.rejected


@pytest.mark.parametrize("everything", [True, False])
def test_who_lacks_the_version_that_is_repeated_is_sent_it(
    context: Context, run_dir: Path, everything: bool
) -> None:
    """As after a high-water mark: the state itself was dropped, its repetition came through."""
    publisher = Publisher(context, topics.publisher_path(run_dir, SOURCE), SOURCE, "lb-0")
    wanted = topics.PUBLISHES[SOURCE] if everything else (Topic.STATE_TABLE,)
    subscriber = Subscriber(context, run_dir, {SOURCE: wanted})
    publisher.publish(Topic.STATE_TABLE, committed_table(1))
    receive(subscriber, [publisher], lambda got: len(got) == 1)
    publisher.publish(Topic.STATE_TABLE, committed_table(2))
    assert subscriber.socket.poll(TIMEOUT_S * 1000)
    subscriber.socket.recv_multipart()
    for version in (2, 3):
        publisher.repeat(Topic.STATE_TABLE)
        [found] = receive(subscriber, [publisher], lambda got: len(got) == 1)
        assert found.data == committed_table(version)
        publisher.publish(Topic.STATE_TABLE, committed_table(version + 1))
        assert subscriber.socket.poll(TIMEOUT_S * 1000)
        subscriber.socket.recv_multipart()


def test_command_is_answered(context: Context, run_dir: Path, start: Start) -> None:
    start("server").ready()
    path = topics.command_path(run_dir, SOURCE)
    assert request(context, path, "echo", {"a": [1, "x"]}) == {"a": [1, "x"]}


def test_refused_command_says_why(context: Context, run_dir: Path, start: Start) -> None:
    start("server").ready()
    with pytest.raises(CommandError, match="frobnicate: unknown command"):
        request(context, topics.command_path(run_dir, SOURCE), "frobnicate", {})


def test_command_without_an_owner_times_out(context: Context, run_dir: Path) -> None:
    with pytest.raises(TimeoutError, match=r"no answer from quorum\.cmd\.ipc within 50 ms"):
        request(context, topics.command_path(run_dir, SOURCE), "echo", {}, timeout_ms=50)


def test_repeated_command_is_done_once(context: Context, run_dir: Path, start: Start) -> None:
    start("server").ready()
    path = topics.command_path(run_dir, SOURCE)
    assert request(context, path, "count", {}, command_id="same") == {"counted": 1}
    assert request(context, path, "count", {}, command_id="same") == {"counted": 1}
    assert request(context, path, "count", {}) == {"counted": 2}


def test_command_reaches_an_owner_that_starts_late(
    context: Context, run_dir: Path, start: Start
) -> None:
    server = start("server")
    path = topics.command_path(run_dir, SOURCE)
    answer = request(context, path, "echo", {"late": True}, timeout_ms=TIMEOUT_S * 1000)
    assert answer == {"late": True}
    server.ready()


class Caller:
    """One that has sent a command and waits."""

    def __init__(self, context: Context, path: Path, command_id: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.connect(f"ipc://{path}")
        self.ask(command_id)

    def ask(self, command_id: str) -> None:
        self.socket.send(to_json(Command(command_id, "slow", {"id": command_id})))

    def hears_nothing(self) -> bool:
        return not self.socket.poll(50)

    def reply(self) -> Reply:
        assert self.socket.poll(TIMEOUT_S * 1000)
        return from_json(Reply, self.socket.recv())


def test_only_the_last_replies_are_remembered(context: Context, run_dir: Path) -> None:
    """Whoever repeats a command soon is told what became of it; who comes late begins anew."""
    path = topics.command_path(run_dir, SOURCE)
    server = CommandServer(context, path)
    done: list[str] = []

    def handle(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        done.append(arguments["id"])
        return {}

    caller = Caller(context, path, "0")
    for number in (*range(1, KEPT_REPLIES + 1), KEPT_REPLIES, 1, 0):
        assert server.socket.poll(TIMEOUT_S * 1000)
        server.serve(handle)
        caller.reply()
        caller.ask(str(number))
    assert server.socket.poll(TIMEOUT_S * 1000)
    server.serve(handle)
    assert done == [*map(str, range(KEPT_REPLIES + 1)), "0"]
    server.close()


@pytest.mark.parametrize(("result", "error"), [({"a": 1}, None), ({}, None), (None, "given up")])
def test_an_answer_may_come_later_and_goes_to_all_who_asked(
    context: Context, run_dir: Path, result: dict[str, Any] | None, error: str | None
) -> None:
    path = topics.command_path(run_dir, SOURCE)
    server = CommandServer(context, path)
    asked: list[Later] = []

    def handle(verb: str, arguments: dict[str, Any]) -> Later:
        asked.append(Later())
        return asked[-1]

    def serve_one() -> None:
        assert server.socket.poll(TIMEOUT_S * 1000)
        server.serve(handle)

    callers = [Caller(context, path, "same")]
    serve_one()
    callers.append(Caller(context, path, "same"))
    serve_one()
    other = Caller(context, path, "other")
    serve_one()
    assert len(asked) == 2
    server.serve(handle)
    assert all(caller.hears_nothing() for caller in (*callers, other))
    asked[0].result, asked[0].error = result, error
    server.serve(handle)
    assert [caller.reply() for caller in callers] == [Reply("same", result, error)] * 2
    assert other.hears_nothing()
    # Who asks again after that is given the same; nothing is worked out twice.
    again = Caller(context, path, "same")
    serve_one()
    assert again.reply() == Reply("same", result, error)
    assert len(asked) == 2
    server.close()


def test_malformed_commands_are_counted(context: Context, run_dir: Path, start: Start) -> None:
    server = start("server")
    server.ready()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.connect(f"ipc://{topics.command_path(run_dir, SOURCE)}")
    socket.send(b'{"id": 5}')
    server.expect(lambda line: line.get("rejected") == 1)


def test_the_bus_is_for_its_group_only(context: Context, run_dir: Path) -> None:
    path = topics.publisher_path(run_dir, SOURCE)
    publisher = Publisher(context, path, SOURCE, "lb-0")
    assert path.stat().st_mode & 0o7777 == 0o660
    assert path.parent.stat().st_mode & 0o7777 == 0o1770
    publisher.close()


def test_a_subscription_longer_than_any_topic_is_not_taken(context: Context, run_dir: Path) -> None:
    public = PublisherSocket(context, run_dir / "public.ipc")
    taken: list[bytes] = []
    for prefix in (b"x" * (LONGEST_SUBSCRIPTION + 1), b"node."):
        subscriber = context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.SUBSCRIBE, prefix)
        subscriber.connect(f"ipc://{run_dir / 'public.ipc'}")
        public.socket.poll(500)
        taken += public.subscriptions()
    deadline = time.monotonic() + TIMEOUT_S
    while b"node." not in taken:
        assert time.monotonic() < deadline
        public.socket.poll(50)
        taken += public.subscriptions()
    assert taken == [b"node."]
    public.close()
    assert max(map(len, Topic)) < LONGEST_SUBSCRIPTION
