"""The health process and an agent as they run: over loopback, with signals and a real server."""

from __future__ import annotations

import signal
import time

import pytest
import zmq

from bus.commands import CommandError
from bus.node_protocol import (
    Heartbeat,
    Hello,
    Refused,
    decode_node,
    encode_node,
)
from bus.topics import Topic
from bus.words import (
    NodeState,
    ServingStatus,
)
from tests.health.processes import TIMEOUT_MS, Site, eventually, site

UP, DOWN, BANNED, DRAINING = (
    NodeState.UP,
    NodeState.DOWN,
    NodeState.BANNED,
    NodeState.DRAINING,
)


def keeps_up(at: Site, duration_s: float) -> None:
    """For so long the node is UP in every view, and no event says otherwise."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        assert at.state() is UP
        time.sleep(0.01)
    assert set(at.topics()) <= {Topic.NODE_JOINED, Topic.NODE_UP}


def test_a_server_comes_dies_and_comes_again() -> None:
    with site() as at:
        at.start_health()
        at.start_agent()
        assert at.wait_for(DOWN).reason.endswith("connection refused")
        at.serve()
        node = at.wait_for(UP)
        assert (node.id, node.address) == ("node-0@127.0.0.1", "127.0.0.1")
        assert [(s.name, s.port) for s in node.services] == [("default", at.server_port)]
        gaps_s = []
        for _ in range(3):  # a machine as busy as this one may be late now and then, not always
            died_s = time.monotonic()
            at.stop_serving()
            at.wait_for(DOWN)
            gaps_s.append(time.monotonic() - died_s)
            at.serve()
            at.wait_for(UP)
        assert min(gaps_s) < 0.6, gaps_s


def test_a_killed_health_process_adopts_and_takes_nobody_down() -> None:
    with site() as at:
        health, _ = at.bring_up()
        for _ in range(3):
            health.kill()
            health.wait()
            health = at.start_health()
            keeps_up(at, 1.5 * TIMEOUT_MS / 1_000)
        eventually(lambda: at.good_checks() > 0, "the agent came back")


def test_a_pause_of_the_health_process_takes_nobody_down() -> None:
    with site() as at:
        health, _ = at.bring_up()
        health.send_signal(signal.SIGSTOP)
        time.sleep(2 * TIMEOUT_MS / 1_000)
        health.send_signal(signal.SIGCONT)
        eventually(lambda: (view := at.look()) and view.late, "it says that it was held up")
        keeps_up(at, 2 * TIMEOUT_MS / 1_000)
        eventually(lambda: (view := at.look()) and not view.late, "it has had time")


def test_who_did_not_listen_does_not_accuse() -> None:
    """Nothing lies queued here: the agent was silent too, for as long as nobody listened."""
    with site() as at:
        health, agent = at.bring_up()
        for process in (agent, health):
            process.send_signal(signal.SIGSTOP)
        time.sleep(2 * TIMEOUT_MS / 1_000)
        health.send_signal(signal.SIGCONT)
        eventually(lambda: "so deadlines are extended" in at.log())
        keeps_up(at, 0.2)
        agent.send_signal(signal.SIGCONT)
        keeps_up(at, TIMEOUT_MS / 1_000)


def test_an_agent_that_dies_is_missed_and_its_return_is_checked() -> None:
    with site() as at:
        _, agent = at.bring_up()
        agent.kill()
        node = at.wait_for(DOWN)
        assert node.fails == 1
        assert node.reason.startswith("no heartbeat for")
        at.start_agent()
        at.wait_for(UP)


def test_an_agent_that_is_killed_and_back_in_time_was_never_away() -> None:
    with site(checks_timeout="15s") as at:
        _, agent = at.bring_up()
        agent.kill()
        agent.wait()
        before = at.good_checks()
        at.start_agent()
        eventually(lambda: at.good_checks() > before, "a beat of the new agent")
        keeps_up(at, 0.1)


def test_sigterm_drains_and_is_no_failure() -> None:
    with site() as at:
        _, agent = at.bring_up()
        agent.terminate()
        assert agent.wait(30) == 0
        assert at.wait_for(DOWN).fails == 0
        assert at.topics() == [
            Topic.NODE_JOINED,
            Topic.NODE_UP,
            Topic.NODE_DRAINING,
            Topic.NODE_DOWN,
        ]


def test_a_ban_survives_the_death_of_the_process() -> None:
    options = 'black_list_after_fails = 1\nblack_list_expiry = "1h"'
    with site(health_options=options) as at:
        health, _ = at.bring_up()
        at.stop_serving()
        banned = at.wait_for(BANNED)
        health.kill()
        health.wait()
        at.serve()
        at.view = None
        at.start_health()
        again = at.wait_for(BANNED)
        assert again.fails == banned.fails == 1
        assert 3_500_000 < again.banned_for_ms < banned.banned_for_ms
        refused = eventually(
            lambda: (
                (status := at.agent_status())
                and status["load_balancers"][0]["phase"] == "refused"
                and status["load_balancers"][0]
            )
        )
        assert refused["reason"] == "banned after 1 failures"


def test_sigterm_ends_the_health_process_well() -> None:
    with site() as at:
        health, _ = at.bring_up()
        health.terminate()
        assert health.wait(30) == 0


def test_a_good_file_is_applied_and_a_bad_one_is_not() -> None:
    with site() as at:
        health, _ = at.bring_up()
        at.lb_file.write_text("nonsense = 1\n")
        answer = at.command("reload")
        assert not answer["applied"]
        assert any("nonsense" in problem for problem in answer["problems"])
        assert at.state() is UP
        at.checks_timeout = "3s"
        at.write_lb_file()
        assert at.command("reload") == {"applied": True, "problems": [], "restart_needed": []}
        eventually(
            lambda: (
                (status := at.agent_status())
                and status["load_balancers"][0]["interval_ms"] == 1_500
            ),
            "the new interval at the agent",
        )
        at.checks_timeout = "2s"
        at.write_lb_file()
        health.send_signal(signal.SIGHUP)
        eventually(
            lambda: (
                (status := at.agent_status())
                and status["load_balancers"][0]["interval_ms"] == 1_000
            ),
            "the interval of before",
        )
        assert at.state() is UP


def test_a_new_name_is_told_nobody_before_the_restart() -> None:
    with site() as at:
        health, _ = at.bring_up()
        at.lb_file.write_text(at.lb_file.read_text().replace('"lb-0"', '"lb-new"'))
        at.lb_file.write_text(at.lb_file.read_text().replace('"2000ms"', '"3s"'))
        assert at.command("reload")["restart_needed"] == ["local.name"]

        def told() -> tuple[str, int]:
            status = at.agent_status()
            assert status is not None
            lb = status["load_balancers"][0]
            return lb["name"], lb["interval_ms"]

        eventually(lambda: told() == ("lb-0", 1_500), "the rest of the file is applied")
        health.terminate()
        health.wait(30)
        at.start_health()
        eventually(lambda: told() == ("lb-new", 1_500), "the name of the file")


def test_an_unknown_command_is_an_error() -> None:
    with site() as at:
        at.start_health()
        with pytest.raises(CommandError, match="health knows: reload"):
            at.command("dance")


def test_another_node_port_is_listened_on_without_a_restart() -> None:
    with site() as at:
        at.bring_up()
        at.node_port = at.api_port + 1_000
        at.write_lb_file()
        assert at.command("reload")["applied"]
        at.write_node_file()
        at.processes[-1].kill()
        at.start_agent()
        at.wait_for(UP)


@pytest.mark.parametrize("module", ["services.health.main", "services.node.main"])
def test_a_bad_file_at_the_start_is_named_and_ends_in_2(module: str) -> None:
    with site() as at:
        at.lb_file.write_text("nonsense = 1\n")
        process = at.start(module, at.lb_file)
        assert process.wait(30) == 2
        assert f"{at.lb_file}:1: nonsense: " in at.log()


def test_a_missing_interface_is_waited_for_and_said() -> None:
    with site(interface="gale-missing") as at:
        health = at.start_health()
        view = eventually(lambda: (view := at.look()) and view.waiting_for and view)
        assert view.waiting_for == "an IPv4 address on gale-missing (local.net_interface_private)"
        at.interface = "lo"
        at.write_lb_file()
        answer = at.command("reload")
        assert answer["restart_needed"] == ["local.net_interface_private"]
        assert at.look() is not None
        health.terminate()
        health.wait(30)
        at.start_health()
        eventually(lambda: (view := at.look()) and not view.waiting_for)


def test_a_taken_port_is_waited_for_and_said() -> None:
    with site() as at, zmq.Context() as context, context.socket(zmq.ROUTER) as squatter:
        squatter.bind(f"tcp://127.0.0.1:{at.node_port}")
        at.start_health()
        view = eventually(lambda: (view := at.look()) and view.waiting_for and view)
        assert "in use" in view.waiting_for
        squatter.unbind(f"tcp://127.0.0.1:{at.node_port}")
        eventually(lambda: (view := at.look()) and not view.waiting_for)


def test_a_state_file_that_is_damaged_is_set_aside_and_named() -> None:
    with site() as at:
        state = at.directory / "state"
        state.mkdir()
        (state / "health.json").write_text('{"v": 1, "nodes": [{}]}')
        at.bring_up()
        assert (state / "health.json.damaged").exists()
        assert "set aside" in at.log()


def test_a_state_directory_that_cannot_be_written_stops_nothing() -> None:
    with site() as at:
        (at.directory / "state").write_text("a file where the directory should be")
        at.bring_up()
        assert at.view is not None
        assert "a disk to write" in at.view.waiting_for


def test_nonsense_is_counted_answered_once_and_cut_off() -> None:
    with site() as at, zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        at.bring_up()
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"tcp://127.0.0.1:{at.node_port}")
        for _ in range(20):
            dealer.send_multipart([b"noise", b"\xff" * 100])
        dealer.send_multipart([b"hello"] * 50)
        dealer.send(b"")
        eventually(lambda: at.rejected().get("cut_off") == 13)
        assert at.rejected()["malformed"] == 9
        refused = decode_node(dealer.recv_multipart())
        assert isinstance(refused, Refused)
        assert "cut off" in refused.reason
        assert not dealer.poll(100)
        assert at.state() is UP


def test_a_routing_id_of_the_peers_own_is_not_listened_to() -> None:
    with site() as at, zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        at.bring_up()
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.ROUTING_ID, b"somebody")
        dealer.connect(f"tcp://127.0.0.1:{at.node_port}")
        dealer.send_multipart(encode_node(Hello(1, "node-1", "boot", 1, ())))
        eventually(lambda: at.rejected() == {"own_routing_id": 1})
        assert at.view is not None
        assert len(at.view.nodes) == 1


def test_nobody_beats_for_somebody_else() -> None:
    with site() as at, zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        at.bring_up()
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"tcp://127.0.0.1:{at.node_port}")
        beat = Heartbeat(10**6, 0, ServingStatus.NOT_SERVING, 0.0, "")
        dealer.send_multipart(encode_node(beat))
        assert decode_node(dealer.recv_multipart()) == Refused("say hello first", 0)
        assert at.state() is UP


def test_a_silent_agent_is_suspect_until_its_server_does_not_answer_either() -> None:
    with site(probe="tcp", min_healthy="50%") as at:
        _, agent = at.bring_up()
        keeps_up(at, 2 * TIMEOUT_MS / 1_000)
        agent.send_signal(signal.SIGSTOP)
        node = at.wait_for(NodeState.SUSPECT)
        assert "too few others serve default" in node.reason
        assert at.server is not None
        at.server.close()
        assert at.wait_for(DOWN).fails == 0
        at.serve()
        agent.send_signal(signal.SIGCONT)
        at.wait_for(UP)
