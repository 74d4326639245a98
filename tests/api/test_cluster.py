"""Changes of the members by HTTP: what reaches the quorum process, and what it refuses."""

from __future__ import annotations

from typing import Any

from bus.commands import CommandError
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
    quorum = Members("node-0")
    client = client_of(quorum)
    for change, who in (("add", "lb-3"), ("remove", "10.81.0.13:8090")):
        answer = client.post(f"/v1/quorum/members/{who}/{change}")
        assert answer.json() == {"member": who, "change": change}
    assert [(each["change"], each["member"]) for each in quorum.asked] == [
        ("add", "lb-3"),
        ("remove", "10.81.0.13:8090"),
    ]
    assert len({each["id"] for each in quorum.asked}) == 2


def test_a_refusal_is_told_and_a_stranger_may_ask_for_nothing() -> None:
    quorum = Members("node-0")
    quorum.refusal = "lb-3 leads"
    refused = client_of(quorum).post("/v1/quorum/members/lb-3/remove")
    assert (refused.status_code, refused.json()["detail"]) == (409, "lb-3 leads")
    assert client_of(quorum, "10.9.9.9").post("/v1/quorum/members/x/add").status_code == 403
