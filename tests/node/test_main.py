"""The agent as it runs, beside a real health process: what its users see and do."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest

from bus.topics import Topic
from bus.words import NodeState
from tests.health.processes import Site, eventually, free_port, site
from tests.node.lb import fake_lb


def session(at: Site) -> dict[str, Any]:
    status = at.agent_status()
    found: dict[str, Any] = status["load_balancers"][0] if status else {}
    return found


def test_stop_drains_and_start_brings_back() -> None:
    with site() as at:
        at.bring_up()
        status = at.agent_status("POST", "/stop?drain_ms=300")
        assert status is not None
        assert status["activity"] == "draining"
        node = at.wait_for(NodeState.DOWN)
        assert (node.fails, node.reason) == (0, "not serving: stopped by the operator")
        assert Topic.NODE_DRAINING in at.topics()
        at.agent_status("POST", "/start")
        at.wait_for(NodeState.UP)


def test_a_port_that_refuses_is_told_with_the_one_it_should_be() -> None:
    with site() as at:
        closed = free_port()
        at.write_node_file(lb_port=closed)
        at.start_agent()
        reason = eventually(lambda: "refuses" in session(at).get("reason", "") and session(at))
        assert reason["reason"] == (
            f"tcp://127.0.0.1:{closed} refuses connections: port must be the load balancer's"
            " local.node_port, which is 7070 by default"
        )
        assert reason["reason"] in at.log()


def test_a_port_of_something_else_is_told_too() -> None:
    with site() as at, socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        at.write_node_file(lb_port=foreign.getsockname()[1])
        at.start_agent()
        foreign.settimeout(30)
        seen: dict[str, Any] = {}
        while "does not speak" not in seen.get("reason", ""):
            connection, _ = foreign.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()
            seen = session(at)
        assert "7070 by default" in seen["reason"]


def test_an_lb_given_by_name_is_connected_to_by_address() -> None:
    with site() as at:
        at.write_node_file(host='hostname = "localhost"')
        at.bring_up()
        assert session(at)["address"] == f"localhost:{at.node_port}"


def test_a_name_that_nobody_knows_is_told_and_holds_nothing_up() -> None:
    with site() as at:
        at.write_node_file(host='hostname = "nobody.invalid"')
        at.start_agent()
        eventually(lambda: "cannot be resolved" in session(at).get("reason", ""))


def test_a_hung_server_shows_to_an_http_check() -> None:
    services = (
        "[[services]]\nname = 'default'\nport = {port}\n"
        "check = {{ type = 'http', interval = '50ms', timeout = '50ms' }}"
    )
    with site() as at:
        at.write_node_file(services=services.format(port=at.server_port))
        at.serve()
        at.start_health()
        at.start_agent()
        node = at.wait_for(NodeState.DOWN)
        assert node.reason.endswith("no answer to GET / within 50 ms")


def test_hup_reads_the_file_again_and_a_bad_one_changes_nothing() -> None:
    with site() as at:
        _, agent = at.bring_up()
        at.node_file.write_text("nonsense = 1\n")
        agent.send_signal(signal.SIGHUP)
        eventually(lambda: "the configuration stays as it was" in at.log())
        assert at.state() is NodeState.UP
        at.write_node_file()
        at.node_file.write_text(
            at.node_file.read_text().replace('"node-0"', '"node-0"\nweight = 7\nbackup = true')
        )
        agent.send_signal(signal.SIGHUP)
        eventually(lambda: (node := at.node()) and node.weight == 7 and node.backup)
        assert Topic.NODE_DOWN not in at.topics()


class DeadThread:
    alive = False


def test_a_thread_that_has_died_ends_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_lb() as lb:
        lb.turn()
        with monkeypatch.context() as patch:
            patch.setattr(lb.agent, "_keeper", DeadThread())
            with pytest.raises(RuntimeError, match="the keeper has died"):
                lb.turn()


def test_a_server_of_the_api_that_has_died_ends_the_agent() -> None:
    with fake_lb() as lb:
        lb.until(lambda: lb.agent._api._servers)
        server = next(iter(lb.agent._api._servers.values()))
        server.shutdown()
        server.thread.join(30)
        with pytest.raises(RuntimeError, match=f"the HTTP API has died at .*:{lb.at.api_port}"):
            lb.turn()


def test_who_serves_nobody_leaves_at_once() -> None:
    with site() as at:
        agent = at.start_agent()
        eventually(at.agent_status)
        agent.terminate()
        assert agent.wait(30) == 0
