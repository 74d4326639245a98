"""An agent and an LB's health process that know each other by their keys, over real sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus import keys
from bus.topics import Topic
from bus.words import NodeState
from services.cli.keygen import make_cluster
from tests.health.processes import Site, eventually, site


@dataclass
class Keyed:
    """A site whose LB and node have keys; each test spoils some of them."""

    at: Site
    lb: Path
    node: Path

    @property
    def listed(self) -> Path:
        """What the LB knows of the node."""
        return self.lb / keys.NODES / "node-0.public"

    @property
    def expected(self) -> Path:
        """What the node knows of the LB."""
        return self.node / keys.LBS / "lb-0.public"

    def session(self) -> dict[str, Any]:
        status = eventually(self.at.agent_status, "the agent's status")
        found: dict[str, Any] = status["load_balancers"][0]
        return found

    def start(self) -> None:
        self.at.serve()
        self.at.start_health()
        self.at.start_agent()

    def wait_for_reason(self, text: str) -> None:
        eventually(lambda: text in self.session()["reason"], f"{text}: {self.session()}")


@contextlib.contextmanager
def keyed(node_name: str = "node-0") -> Iterator[Keyed]:
    with site() as at:
        directory = at.directory / "keys"
        make_cluster(directory, ("lb-0",), ("node-0", "node-1"))
        made = Keyed(at, directory / "lb-0", directory / "node-0")
        at.write_lb_file(f'[security]\nkeys = "{made.lb}"\n')
        at.write_node_file(
            host='ip = "127.0.0.1", name = "lb-0"',
            services=f'[security]\nkeys = "{made.node}"\n',
        )
        text = at.node_file.read_text().replace('name = "node-0"', f'name = "{node_name}"')
        at.node_file.write_text(text)
        yield made


def _new_key() -> tuple[bytes, bytes]:
    public, secret = zmq.curve_keypair()
    return bytes(public), bytes(secret)


def test_a_node_is_known_by_its_key() -> None:
    with keyed() as each:
        each.start()
        assert each.at.wait_for(NodeState.UP).id == "node-0"
        assert each.session()["node_id"] == "node-0"
        assert "no keys" not in each.at.log()


def test_a_key_that_is_not_on_the_list_is_refused_and_let_in_once_it_is() -> None:
    with keyed() as each:
        public = each.listed.read_bytes().strip()
        each.listed.unlink()
        each.start()
        each.wait_for_reason("does not admit this node's key")
        eventually(lambda: each.at.rejected().get("key_not_admitted"), "the count")
        assert each.at.node() is None
        eventually(lambda: public.decode() in each.at.log(), "the key in the log")
        keys.write_key(each.listed, public)
        each.at.wait_for(NodeState.UP)


def test_nobody_has_anothers_name() -> None:
    with keyed("node-1") as each:
        each.start()
        each.wait_for_reason("this is the key of node-0, not node-1")
        assert each.at.node() is None
        eventually(lambda: each.at.rejected().get("name_of_another_key"), "the count")


def test_a_key_that_is_taken_off_the_list_is_cut_off() -> None:
    with keyed() as each:
        each.start()
        each.at.wait_for(NodeState.UP)
        public = each.listed.read_bytes().strip()
        each.listed.unlink()
        node = each.at.wait_for(NodeState.DOWN)
        assert "its key is not admitted any more" in node.reason
        assert node.fails == 0
        each.wait_for_reason("its key is not admitted any more")
        good = each.at.good_checks()
        eventually(lambda: each.at.rejected().get("key_not_admitted"), "hellos are refused")
        assert each.at.good_checks() == good
        keys.write_key(each.listed, public)
        each.at.wait_for(NodeState.UP)


def test_a_key_is_exchanged_without_a_gap() -> None:
    with keyed() as each:
        each.start()
        each.at.wait_for(NodeState.UP)
        old = each.listed.read_bytes().strip()
        public, secret = _new_key()
        keys.write_key(each.listed, old, public)
        eventually(lambda: each.at.log().count("keys read") == 1, "the LB reads the list")
        keys.write_key(each.node / keys.SECRET, secret)
        eventually(lambda: each.at.log().count("keys read") == 2, "the agent takes the new key")
        eventually(lambda: each.session()["state"] == "up", "the new session")
        keys.write_key(each.listed, public)
        eventually(lambda: each.at.log().count("keys read") == 3, "the old key is gone")
        good = each.at.good_checks()
        eventually(lambda: each.at.good_checks() > good + 2, "beats with the new key")
        assert each.at.state() is NodeState.UP
        assert Topic.NODE_DOWN not in each.at.topics()


def test_an_lb_with_another_key_is_not_spoken_to() -> None:
    with keyed() as each:
        wrong, _ = _new_key()
        right = each.expected.read_bytes().strip()
        keys.write_key(each.expected, wrong)
        each.start()
        each.wait_for_reason(f"not with the key {wrong.decode()}")
        assert each.at.node() is None
        # The LB's own key was exchanged: the one that it has now stands beside the former.
        keys.write_key(each.expected, wrong, right)
        each.at.wait_for(NodeState.UP)


@pytest.mark.parametrize("lacks", ["lb", "node"])
def test_who_has_no_key_waits_for_it(lacks: str) -> None:
    with keyed() as each:
        path = (each.lb if lacks == "lb" else each.node) / keys.SECRET
        secret = path.read_bytes().strip()
        path.unlink()
        each.start()
        if lacks == "lb":
            eventually(
                lambda: (view := each.at.look()) and "this load balancer's key" in view.waiting_for
            )
        else:
            each.wait_for_reason("this node's own key")
        keys.write_key(path, secret)
        each.at.wait_for(NodeState.UP)


def test_an_agent_without_keys_is_told_where_to_look() -> None:
    with keyed() as each:
        each.at.write_node_file()
        each.start()
        each.wait_for_reason("or not without keys (security.keys)")
        assert each.at.node() is None


def test_without_keys_the_log_says_so() -> None:
    with site() as at:
        at.bring_up()
        assert "no keys: whoever reaches the private interface may be a node" in at.log()
