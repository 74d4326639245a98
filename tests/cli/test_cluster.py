"""`gale quorum add|remove`: what is sent to the API, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from services.api.snapshot import ApplicantShape, QuorumShape
from services.cli import cluster
from tests.cli.conftest import Gale
from tests.cli.local_api import QUORUM, LocalApi

PATH = "/v1/quorum/members/lb-3"
OWN = QUORUM.members[0]
GONE = replace(OWN, name="lb-1", address="10.81.0.11:8081", alive=False)
LEFT = replace(QUORUM, leader=None, quorum=False, members=[OWN, GONE])
"""One of two, which hears nobody."""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("add", "lb-3 is a member: its vote counts"),
        ("remove", "lb-3 is no member any more: it may be stopped"),
    ],
)
def test_a_change_is_done_when_it_says_so(
    api: LocalApi, gale: Gale, change: str, said: str
) -> None:
    answer = {"member": "lb-3", "change": change}
    api.paths[f"{PATH}/{change}"] = answer
    assert gale("quorum", change, "lb-3").stdout.strip() == said
    assert json.loads(gale("--json", "quorum", change, "lb-3").stdout) == answer
    assert [path for path, _ in api.sent] == [f"{PATH}/{change}"] * 2


def test_a_refusal_is_told_with_its_reason(api: LocalApi, gale: Gale) -> None:
    api.paths[f"{PATH}/remove"] = lambda handler, _: handler.send_json(
        {"title": "Conflict", "detail": "lb-3 leads"}, 409
    )
    result = gale("quorum", "remove", "lb-3")
    assert result.exit_code == 1
    assert "lb-3 leads" in result.stderr


def test_who_knocks_is_shown_with_what_lets_it_in(api: LocalApi, gale: Gale) -> None:
    knocks = [ApplicantShape("lb-3", "10.81.0.13:8090")]
    api.paths["/v1/quorum"] = asdict(replace(QUORUM, applicants=knocks))
    shown = gale("quorum").stdout
    assert "lb-3 (10.81.0.13:8090) is no member: gale quorum add lb-3" in shown


def test_recover_says_what_it_risks_and_then_that_it_is_done(
    api: LocalApi, gale: Gale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WAIT_S", 0)
    api.paths["/v1/quorum"] = asdict(LEFT)
    api.paths["/v1/quorum/recover"] = {"members": 1}
    done = gale("quorum", "recover", "--yes")
    assert done.exit_code == 0, done.output
    assert "Be sure that all the others are off" in done.stderr
    assert "lb-0 decides alone from now on" in done.stdout
    told = gale("quorum", "recover", "--yes", "--json")
    assert json.loads(told.stdout) == {"members": 1}


def test_recover_does_nothing_unless_it_is_wanted(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/quorum"] = asdict(LEFT)
    result = gale("quorum", "recover")
    assert result.exit_code == 1
    assert "Go on?" in result.stderr
    assert api.sent == []


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (replace(LEFT, leader="lb-1"), "lb-1 is heard: nothing is lost that will not come back"),
        (replace(LEFT, members=[OWN, replace(GONE, alive=True)]), "lb-1 is heard: nothing is lost"),
        (replace(LEFT, members=[OWN], leader="lb-0"), "this LB decides alone already"),
    ],
)
def test_recover_does_not_ask_where_it_would_be_refused(
    api: LocalApi, gale: Gale, state: QuorumShape, reason: str
) -> None:
    api.paths["/v1/quorum"] = asdict(state)
    result = gale("quorum", "recover")
    assert result.exit_code == 1
    assert result.stderr.startswith(reason)
    assert api.sent == []
