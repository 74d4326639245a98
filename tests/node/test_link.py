"""The connection to an LB: what ends it, and that another one always follows."""

from __future__ import annotations

import socket
import subprocess
import time

import pytest
import zmq

from bus.node_protocol import (
    Heartbeat,
    Hello,
    decode_node,
    encode_node,
)
from bus.words import NodeState
from services.node.core import Phase
from services.node.link import LARGEST_FRAME, Address, Link, LinkEvent
from tests.health.processes import eventually, free_port
from tests.node.host_state import tool
from tests.node.lb import fake_lb, offers, welcome
from tests.node.wire import LB, Wire, inside, wire

DROP = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; "
HEALED_MS = 500


def test_a_probe_that_ends_when_the_connection_stands_again_ends_no_session() -> None:
    with fake_lb() as lb:
        lb.admit()
        agent, name = lb.agent, next(iter(lb.agent._endpoints))
        agent._suspect(name, Address("127.0.0.1", free_port()), 10**9)
        lb.until(lambda: not agent._suspected, "the end of the probe")
        assert lb.session["phase"] == Phase.ADMITTED
        lb.hear(Heartbeat)


def test_why_an_lb_cannot_be_reached_is_told_while_it_cannot() -> None:
    with fake_lb() as lb:
        lb.router.unbind(lb.endpoint)
        lb.until(lambda: "refuses connections" in str(lb.session["reason"]))
        assert lb.session["phase"] == Phase.ABSENT
        lb.router.bind(lb.endpoint)
        lb.admit()
        assert lb.session["reason"] == ""


def test_a_message_too_large_costs_a_connection_and_no_more() -> None:
    with fake_lb() as lb:
        lb.hear(Hello)
        lb.router.send_multipart([lb.heard[-1][0], b"welcome", b"x" * (LARGEST_FRAME + 1)])
        lb.admit()
        assert lb.session["phase"] == Phase.ADMITTED
        lb.router.send_multipart([lb.heard[-1][0], b"welcome", b"x" * (LARGEST_FRAME + 1)])
        lb.until(lambda: lb.session["phase"] == Phase.ABSENT)
        lb.admit()


def test_what_could_not_be_sent_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[list[bytes]] = []

    def refuse(_: Link, frames: list[bytes]) -> bool:
        refused.append(frames)
        return False

    with fake_lb() as lb:
        first = lb.admit()
        with monkeypatch.context() as patched:
            patched.setattr(Link, "send", refuse)
            lb.until(lambda: refused, "a beat that does not go")
        lost = decode_node(refused[0])
        assert isinstance(lost, Heartbeat)
        assert lost.seq > first.seq
        assert (first.prepared is None, lost.prepared is None) == (False, True)

        def later() -> list[Heartbeat]:
            beats = [each for _, each in lb.heard if isinstance(each, Heartbeat)]
            return [each for each in beats if each.seq > lost.seq]

        lb.until(later, "the next beat")
        assert later()[0].prepared is not None


def test_a_thousand_services_fit_into_a_welcome() -> None:
    with fake_lb() as lb:
        lb.hear(Hello)
        services = offers(1_000, "x" * 58)
        assert len(encode_node(welcome(services))[1]) < LARGEST_FRAME / 4
        lb.answer(welcome(services))
        lb.until(lambda: lb.session["phase"] == Phase.ADMITTED)


def test_the_pause_before_a_new_connection_grows_until_the_lb_has_spoken() -> None:
    with fake_lb() as lb:
        agent, name = lb.agent, next(iter(lb.agent._endpoints))
        pauses = []
        for _ in range(7):
            agent._renew(name, 10_000)
            pauses.append(agent._link_from_ms[name] - 10_000)
        assert pauses == [50, 100, 200, 400, 800, 1_000, 1_000]
        agent._link_from_ms.clear()
        lb.admit()
        agent._renew(name, 10_000)
        assert agent._link_from_ms[name] == 10_050


def test_an_lb_that_is_far_away_is_given_longer_to_answer() -> None:
    with fake_lb() as lb:
        agent, name = lb.agent, next(iter(lb.agent._endpoints))
        lb.router.unbind(lb.endpoint)
        lb.until(lambda: name in agent._links and not agent._links[name].stands)
        with socket.create_server(("127.0.0.1", 0)) as slow:
            place = Address("127.0.0.1", slow.getsockname()[1])
            for known in (set(), {name}):
                assert agent._far == set()
                assert agent._slow == known, "once says nothing"
                agent._suspect(name, place, agent._suspect_from_ms.get(name, 0) + 10**9)
                plan, (whose, _) = agent._suspected.popitem()
                agent._suspected[plan] = whose, -(10**9)  # as if the answer had taken that long
                lb.until(lambda: not agent._suspected)
            assert agent._far == {name}
        lb.router.bind(lb.endpoint)
        lb.admit()
        assert agent._links[name].socket.getsockopt(zmq.CONNECT_TIMEOUT) == 1_000


def test_a_connection_that_comes_back_by_itself_is_not_spent() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        link = Link(context, Address("127.0.0.1", port))
        try:
            eventually(lambda: LinkEvent.READY in link.news())
            assert link.stands
            router.unbind(f"tcp://127.0.0.1:{port}")
            router.setsockopt(zmq.LINGER, 0)
            router.close()
            eventually(lambda: LinkEvent.LOST in link.news())
            assert link.spent
            with context.socket(zmq.ROUTER) as again:
                again.setsockopt(zmq.LINGER, 0)
                again.bind(f"tcp://127.0.0.1:{port}")
                eventually(lambda: LinkEvent.READY in link.news())
                assert not link.spent
        finally:
            link.close()


# ----------------------------------------------------------------- a cut, and its healing


def set_cut(at: Wire, cut: bool) -> None:
    with inside(at.outside):
        rule = f"{DROP}add rule inet cut in tcp dport {at.node_port} drop"
        tool("nft", rule if cut else "delete table inet cut")


def syns_under_way(at: Wire) -> int:
    with inside(at.machine):
        words = ["ss", "-Htn", "state", "syn-sent", "dst", f"{LB}:{at.node_port}"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    return len(done.stdout.splitlines())


def test_a_cut_heals_at_once_whatever_is_under_way_at_that_moment() -> None:
    def phase() -> str:
        status = at.agent_status()
        return str(status["load_balancers"][0]["phase"]) if status else ""

    with wire("l4") as at:
        at.start_health()
        at.start_agent()
        at.wait_for(NodeState.UP)
        healed_ms = []
        for _ in range(3):
            set_cut(at, True)
            eventually(lambda: phase() == "absent", "the loss is noticed")
            eventually(lambda: syns_under_way(at) >= 2, "the port is being asked")
            set_cut(at, False)
            healed_s = time.monotonic()
            at.wait_for(NodeState.UP)
            healed_ms.append((time.monotonic() - healed_s) * 1_000)
        assert min(healed_ms) < HEALED_MS, healed_ms
