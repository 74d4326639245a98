"""`trace` and `plan`, asked of the dataplane process as it runs."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from bus.commands import CommandError
from services.dataplane.ring import SLOTS
from tests.dataplane.machines import (
    CLIENT,
    NODES,
    PORT,
    PUBLIC,
    Site,
    compile_for,
    in_network,
    site,
)

CLIENT_PORT = 45_678
# The first test may have to wait for a compiler.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def lb() -> Iterator[Site]:
    compile_for(besides="GALE_TRACE")
    with site() as made:
        yield made


def test_a_running_dataplane_tells_what_the_packet_then_does(lb: Site) -> None:
    lb.bring_up()
    with in_network(lb.client):
        ours = socket.socket()
        ours.bind((CLIENT, CLIENT_PORT))
    source = f"{CLIENT}:{CLIENT_PORT}"
    vip = f"{PUBLIC}:{PORT}"
    question = {"protocol": "tcp", "source": source, "destination": vip}

    told = lb.ask("trace", **question)
    assert (told["verdict"], told["reason"]) == ("forward", "l4_new_flow")
    assert (told["packet"], told["state"], told["state_after"]) == (
        f"tcp {source} -> {vip} SYN",
        None,
        "opening",
    )
    with ours:
        ours.connect((PUBLIC, PORT))
        node = ours.recv(100).decode().strip()
        assert told["node"] == f"node-{NODES.index(node)}@{node}"
        (flow,) = lb.ask("flows")["flows"]
        leaving = next(step for step in told["steps"] if step.startswith("It leaves"))
        assert f"tcp {flow['snat']} -> {flow['node']}" in leaving

        told = lb.ask("trace", **question)
        assert (told["packet"], told["reason"]) == (
            f"tcp {source} -> {vip} ACK",
            "l4_established",
        )
        assert (told["node"], told["state"]) == (flow["node_id"], "established")
        told = lb.ask("trace", **question, flags=["rst"])
        assert (told["state"], told["state_after"]) == ("established", "reset")
        back = {"protocol": "tcp", "source": flow["node"], "destination": flow["snat"]}
        told = lb.ask("trace", **back, reply=True)
        assert (told["reason"], told["hook"]) == ("l4_reply", "tc_private")
        assert f"tcp {vip} -> {source}" in told["steps"][-1]
        # Asking about its end has not ended it.
        ours.sendall(b"still here\n")
        assert ours.recv(100) == b"still here\n"
    (flow,) = lb.ask("flows")["flows"]

    other = lb.ask("trace", protocol="udp", source=source, destination=f"{PUBLIC}:9")
    assert (other["verdict"], other["service"], other["node"]) == ("pass", None, None)
    assert [re.sub(r" on \w+", "", step) for step in other["steps"][1:3]] == [
        "xdp_public: no service at that address, port and protocol (pass_not_for_service)",
        "tc_public: no service at that address, port and protocol (pass_not_for_service)",
    ]


def test_a_wrong_question_is_refused_by_name(lb: Site) -> None:
    lb.bring_up()
    with pytest.raises(CommandError, match="protocol: 'sctp'"):
        lb.ask("trace", protocol="sctp", source="10.0.0.1:1", destination="10.0.0.2:2")


def test_a_plan_counts_the_flows_that_would_be_hit_and_carries_nothing_out(lb: Site) -> None:
    lb.bring_up()
    opened = [lb.connect() for _ in range(12)]
    going = NODES[0]
    hit = sum(each.node == going for each in opened)
    told = lb.ask("plan", without=[f"node-0@{going}"])
    (service,) = told["services"]
    assert (service["flows"], service["flows_reset"]) == (12, hit)
    assert service["slots_moved"] == pytest.approx(SLOTS / 2, rel=0.05)
    assert all(each.echo() for each in opened)
    assert lb.ask("plan", weights={f"node-1@{NODES[1]}": 100})["changes_nothing"]
    with pytest.raises(CommandError, match="no node is named nobody"):
        lb.ask("plan", without=["nobody"])
