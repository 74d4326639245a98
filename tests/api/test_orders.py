"""Orders by HTTP: what reaches the quorum process, who is refused, and what is shown of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bus.codec import Envelope, Head
from bus.commands import CommandError
from bus.orders import Asked, Order, OrderKind
from bus.states import Counters, SeatColumns, SeatCounters, TableNode
from bus.topics import Topic
from bus.words import NodeState
from services.api import snapshot
from services.api.fold import Fold
from services.api.guard import Guard, Token
from services.api.routes import application
from services.api.snapshot import NodeShape
from tests.api.samples import dataplane, envelope, node, node_id, seat, table, view

BANNED, DOWN, DRAINING, UP = NodeState.BANNED, NodeState.DOWN, NodeState.DRAINING, NodeState.UP
ID = node_id("node-0")


class Quorum:
    """What the routes ask of the process; the command is written down."""

    def __init__(self, *names: str) -> None:
        self.fold = Fold("b", {})
        self.fold.receive(envelope("health", Topic.STATE_VIEW, view(*map(node, names))), 0)
        self.fold.receive(envelope("quorum", Topic.STATE_TABLE, table(*names)), 0)
        self.asked: list[dict[str, Any]] = []
        self.refusal = ""

    def now_ms(self) -> int:
        return 1_000

    async def command(
        self, service: str, verb: str, arguments: dict[str, Any], timeout_ms: int = 0
    ) -> dict[str, Any]:
        assert (service, verb) == ("quorum", "order")
        self.asked.append(arguments)
        if self.refusal:
            raise CommandError(self.refusal)
        return {"agreed": True}

    def local(self) -> Any: ...
    def scrape(self) -> Any: ...
    def show_present_state(self) -> None: ...
    def next_message(self) -> Any: ...


@pytest.fixture
def quorum() -> Quorum:
    return Quorum("node-0", "node-1")


@pytest.fixture
def client(quorum: Quorum) -> TestClient:
    return client_of(quorum)


def client_of(quorum: Quorum, address: str = "127.0.0.1") -> TestClient:
    guard = Guard(Token(lambda: None), lambda: ("lb-0",))
    app = application(quorum, "1", guard)
    return TestClient(app, "http://127.0.0.1:5555", client=(address, 40_000))


def test_every_kind_reaches_the_quorum(quorum: Quorum, client: TestClient) -> None:
    for kind in OrderKind:
        answer = client.post(f"/v1/nodes/{ID}/{kind}")
        assert answer.status_code == 200, answer.text
        assert (answer.json()["what"], answer.json()["node"]) == (kind, ID)
    assert [asked["kind"] for asked in quorum.asked] == list(OrderKind)
    assert all(asked["by"] == "127.0.0.1" and asked["node"] == ID for asked in quorum.asked)
    assert len({asked["id"] for asked in quorum.asked}) == len(OrderKind)


def test_what_is_said_with_an_order(quorum: Quorum, client: TestClient) -> None:
    said = {"by": "ada@lb-0", "why": "new disks"}
    client.post(f"/v1/nodes/{ID}/drain", json=said | {"within": "5m"})
    client.post(f"/v1/nodes/{ID}/weight", json=said | {"weight": 7})
    drain, weight = quorum.asked
    assert (drain["within_ms"], drain["by"], drain["why"]) == (300_000, "ada@lb-0", "new disks")
    assert (weight["weight"], weight["within_ms"]) == (7, None)
    assert drain["time_ms"] > 1_700_000_000_000


def test_the_same_key_names_the_same_order(quorum: Quorum, client: TestClient) -> None:
    for _ in range(2):
        client.post(f"/v1/nodes/{ID}/ban", headers={"Idempotency-Key": "mine"})
    assert [asked["id"] for asked in quorum.asked] == ["mine", "mine"]


def test_a_name_that_only_one_node_has_will_do(quorum: Quorum, client: TestClient) -> None:
    assert client.post("/v1/nodes/node-1/ban").json()["node"] == node_id("node-1")
    assert quorum.asked[0]["node"] == node_id("node-1")
    twice = Quorum()
    nodes = view(node("n", id="n@10.81.0.1"), node("n", id="n@10.81.0.2"))
    twice.fold.receive(envelope("health", Topic.STATE_VIEW, nodes, seq=2), 0)
    assert client_of(twice).post("/v1/nodes/n/ban").status_code == 409
    assert not twice.asked


def test_who_is_there_is_said_of_a_node_that_is_not(client: TestClient) -> None:
    there = f"no node is named nosuch; there are {ID}, {node_id('node-1')}"
    for answer in (client.post("/v1/nodes/nosuch/ban"), client.get("/v1/nodes/nosuch")):
        assert (answer.status_code, answer.json()["detail"]) == (404, there)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/nodes/nosuch/ban", {}, 404),
        (f"/v1/nodes/{ID}/drain", {"within": "5"}, 400),
        (f"/v1/nodes/{ID}/drain", {"within": "5 minutes"}, 400),
        (f"/v1/nodes/{ID}/ban", {"why": "x" * 201}, 400),
        (f"/v1/nodes/{ID}/weight", {"weight": 1_001}, 400),
        (f"/v1/nodes/{ID}/weight", {"weight": -1}, 400),
    ],
)
def test_what_is_refused(
    quorum: Quorum, client: TestClient, path: str, body: dict[str, Any], status: int
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
    assert not quorum.asked


def test_what_does_not_print_is_left_out(quorum: Quorum, client: TestClient) -> None:
    assert client.post(f"/v1/nodes/{ID}/ban", json={"why": "two\nlines"}).status_code == 200
    assert quorum.asked[0]["why"] == "two lines"


def test_strangers_and_foreign_pages_are_refused(quorum: Quorum, client: TestClient) -> None:
    path = f"/v1/nodes/{ID}/drain"
    assert client_of(quorum, "10.81.0.20").post(path).status_code == 403
    foreign = client.post(path, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert not quorum.asked


def test_a_stale_tag_is_refused_and_the_present_one_is_not(
    quorum: Quorum, client: TestClient
) -> None:
    path = f"/v1/nodes/{ID}"
    tag = client.get(path).headers["ETag"]
    assert client.post(f"{path}/drain", headers={"If-Match": '"stale"'}).status_code == 412
    assert client.post(f"{path}/drain", headers={"If-Match": tag}).status_code == 200
    assert len(quorum.asked) == 1


def test_an_order_that_is_not_agreed_on_may_be_tried_again(
    quorum: Quorum, client: TestClient
) -> None:
    quorum.refusal = "the load balancers have not agreed on it"
    answer = client.post(f"/v1/nodes/{ID}/drain")
    assert answer.status_code == 503
    assert answer.json()["detail"] == quorum.refusal


def test_a_node_that_was_forgotten_may_be_enabled_yet(quorum: Quorum, client: TestClient) -> None:
    committed = table("node-0", epoch=2)
    order = Order("1", Asked("gone@10.81.0.9", OrderKind.DRAIN, "ada"), 2, None)
    with_order = replace(committed, table=replace(committed.table, orders=(order,)))
    quorum.fold.receive(envelope("quorum", Topic.STATE_TABLE, with_order, seq=2), 0)
    assert client.post("/v1/nodes/gone@10.81.0.9/enable").status_code == 200


# --------------------------------------------------------------------------- what is shown


def shown(
    *orders: Order, seen: NodeState = UP, agreed: NodeState = DRAINING, now_ms: int = 0
) -> NodeShape:
    fold = Fold("b", {})
    fold.receive(envelope("health", Topic.STATE_VIEW, view(node(state=seen))), 0)
    committed = table("node-0")
    there: TableNode = replace(committed.table.nodes[0], state=agreed, weight=9)
    under = replace(committed.table, nodes=(there,), orders=orders)
    head = Head(Topic.STATE_TABLE, "quorum", "lb-0", "b", 1, 1, 1, 0)
    fold.receive(Envelope(head, replace(committed, table=under)), 0)
    plane = dataplane(seat("node-0", 1, 2))
    fold.receive(envelope("dataplane", Topic.STATE_DATAPLANE, plane), 0)
    counted = SeatColumns.of([SeatCounters("default", ID, 1, 2, 3, 4, 50, None, 12)])
    counters = Counters(1, counted, {}, 0, 0, 0, 0, 0, 0.0)
    fold.receive(envelope("dataplane", Topic.STATE_COUNTERS, counters), 0)
    found = snapshot.nodes(fold, now_ms)
    assert found is not None
    return found.nodes[0]


def order(kind: OrderKind, remaining_ms: int | None = None, **more: Any) -> Order:
    return Order(kind, Asked(ID, kind, "ada", time_ms=5_000, **more), 1, remaining_ms)


def test_a_drain_shows_who_why_until_when_and_what_is_left() -> None:
    drain = order(OrderKind.DRAIN, 60_000, why="new disks", within_ms=90_000)
    found = shown(drain, now_ms=10_000)
    assert found.state == "draining"
    assert found.reason == "drain by ada: new disks"
    assert found.flows == 12
    assert found.order is not None
    assert (found.order.what, found.order.by, found.order.why) == ("drain", "ada", "new disks")
    assert (found.order.given_ms, found.order.until_ms) == (5_000, 95_000)
    assert found.order.remaining_ms == 50_000
    assert "reset" in found.order.at_deadline


def test_a_weight_stands_beside_a_drain() -> None:
    found = shown(order(OrderKind.WEIGHT, weight=9), order(OrderKind.DRAIN))
    assert found.order is not None
    assert found.order.what == "drain"
    assert [each.what for each in found.orders] == ["drain", "weight"]
    assert found.weight == 9
    assert found.order.remaining_ms is None
    assert found.order.at_deadline == ""


def test_what_is_dead_from_here_is_shown_dead_though_it_is_drained() -> None:
    assert shown(order(OrderKind.DRAIN), seen=DOWN).state == "down"
    assert shown(order(OrderKind.BAN), seen=DOWN, agreed=BANNED).state == "banned"


def test_what_is_kept_for_the_record_is_no_order_that_stands() -> None:
    found = shown(order(OrderKind.ENABLE, 9), order(OrderKind.PARDON, 9), agreed=UP)
    assert (found.state, found.order, found.orders) == ("up", None, [])
