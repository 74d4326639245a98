"""Changes of the members by HTTP: what reaches the quorum process, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from bus.commands import CommandError
from bus.topics import Topic
from tests.api.samples import envelope, quorum
from tests.api.test_orders import Quorum, client_of


class Members(Quorum):
    async def command(
        self, service: str, verb: str, arguments: dict[str, Any], timeout_ms: int = 0
    ) -> dict[str, Any]:
        assert (service, verb) == ("quorum", "member")
        self.asked.append(arguments)
        if self.refusal:
            raise CommandError(self.refusal)
        return {"agreed": True}


def test_a_change_reaches_the_quorum_with_an_id_of_its_own() -> None:
    members = Members("node-0")
    client = client_of(members)
    for change, who in (("add", "lb-3"), ("remove", "10.81.0.13:8090")):
        answer = client.post(f"/v1/quorum/members/{who}/{change}")
        assert answer.json() == {"member": who, "change": change}
    assert [(each["change"], each["member"]) for each in members.asked] == [
        ("add", "lb-3"),
        ("remove", "10.81.0.13:8090"),
    ]
    assert len({each["id"] for each in members.asked}) == 2


def test_a_refusal_is_told_and_a_stranger_may_ask_for_nothing() -> None:
    members = Members("node-0")
    members.refusal = "lb-3 leads"
    refused = client_of(members).post("/v1/quorum/members/lb-3/remove")
    assert (refused.status_code, refused.json()["detail"]) == (409, "lb-3 leads")
    assert client_of(members, "10.9.9.9").post("/v1/quorum/members/x/add").status_code == 403


class Willing(Members):
    async def command(
        self, service: str, verb: str, arguments: dict[str, Any], timeout_ms: int = 0
    ) -> dict[str, Any]:
        self.asked.append({"verb": verb})
        return {"leader": "lb-1", "members": 1, "agreed": "0123"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/handover",
        *(f"/v1/quorum/{what}" for what in ("recover", "commit")),
        *(f"/v1/quorum/members/lb-3/{what}" for what in ("add", "remove")),
    ],
)
def test_who_has_seen_another_quorum_changes_nothing(path: str) -> None:
    willing = Willing("node-0")
    client = client_of(willing)

    def said(**changed: Any) -> str:
        state = envelope("quorum", Topic.STATE_QUORUM, quorum(**changed))
        willing.fold.receive(state, 0)
        return str(client.get("/v1/quorum").headers["ETag"])

    stale = said()
    tag = said(version=2, leader="lb-1")
    assert client.post(path, headers={"If-Match": stale}).status_code == 412
    assert not willing.asked
    assert client.post(path, headers={"If-Match": tag}).status_code == 200
    assert client.post(path).status_code == 200
    assert len(willing.asked) == 2
