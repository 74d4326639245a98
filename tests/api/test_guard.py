"""Who may change something by HTTP, and what a tag is about."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from services.api import snapshot
from services.api.fold import Fold
from services.api.guard import Guard, IfMatch, MayAsk, MayChange, Token, check, etag
from services.api.snapshot import NodeShape
from tests.api.samples import everything

TOKEN = "s3cret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def client(path: Path | None, address: str = "127.0.0.1") -> TestClient:
    app = FastAPI()
    app.state.guard = Guard(Token(lambda: path), lambda: ("lb-0",))

    @app.post("/change")
    async def change(caller: MayChange, if_match: IfMatch = None) -> dict[str, Any]:
        check(if_match, '"now"')
        return {"by": str(caller)}

    @app.post("/ask")
    async def ask(_asked: MayAsk) -> dict[str, Any]:
        return {}

    return TestClient(app, "http://10.81.0.10:5555", client=(address, 40_000))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


def test_without_a_token_this_machine_alone(token: Path) -> None:
    assert client(None).post("/change").json() == {"by": "127.0.0.1"}
    assert client(None, "10.81.0.20").post("/change").status_code == 403
    assert client(None, "10.81.0.20").post("/ask").status_code == 200


def test_with_one_whoever_has_it(token: Path) -> None:
    far = client(token, "10.81.0.20")
    assert far.post("/change", headers=BEARER).json() == {"by": "10.81.0.20 with the token"}
    for wrong in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": f"Basic {TOKEN}"}):
        for asked in (far, client(token)):
            refused = asked.post("/change", headers=wrong)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Bearer")


def test_a_token_is_read_anew_when_it_changes(token: Path) -> None:
    asked = client(token)
    assert asked.post("/change", headers=BEARER).status_code == 200
    token.write_text("another")
    os.utime(token, ns=(1, 1))
    assert asked.post("/change", headers=BEARER).status_code == 401


@pytest.mark.parametrize("kind", ["missing", "empty", "a directory", "a FIFO"])
def test_a_token_that_cannot_be_read_lets_nobody_in(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "token"
    match kind:
        case "empty":
            file.touch()
        case "a directory":
            file.mkdir()
        case "a FIFO":
            os.mkfifo(file)
    for headers in (BEARER, {"Authorization": "Bearer "}, {}):
        assert client(file).post("/change", headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["/change", "/ask"])
def test_no_page_of_another_site(path: str) -> None:
    own = {"Origin": "http://10.81.0.10:5555", "Sec-Fetch-Site": "same-origin"}
    assert client(None).post(path, headers=own).status_code == 200
    for foreign in ("http://evil.example", "http://10.81.0.10", "null", ""):
        assert client(None).post(path, headers={"Origin": foreign}).status_code == 403
    assert client(None).post(path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_if_match_names_what_was_seen() -> None:
    for right in ('"now"', '"then", "now"', "*"):
        assert client(None).post("/change", headers={"If-Match": right}).status_code == 200
    for stale in ('"then"', "now", "", 'W/"now"'):
        assert client(None).post("/change", headers={"If-Match": stale}).status_code == 412
    with pytest.raises(HTTPException, match="by now"):
        check('"then"', '"now"')


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:5555", "10.80.0.10", "[::1]:5555", "localhost", "LB-0:80", "lb-0.local", "lb-0."],
)
def test_a_host_that_is_this_machine(host: str) -> None:
    assert Guard(Token(lambda: None), lambda: ("lb-0",)).knows_host(host)


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "lb-0.evil.example", "127.0.0.1.evil.example", "[::1", "a@b"]
)
def test_a_host_that_is_another(host: str | None) -> None:
    assert not Guard(Token(lambda: None), lambda: ("lb-0",)).knows_host(host)


def a_node() -> NodeShape:
    fold = Fold("api", {})
    for message in everything():
        fold.receive(message, 0)
    shape = snapshot.nodes(fold, 0)
    assert shape is not None
    return shape.nodes[0]


def test_a_tag_is_of_what_is_decided() -> None:
    node = a_node()
    counted = [replace(seat, packets_in=99, flows=7, slow_start_ms=3) for seat in node.services]
    passing = replace(node, observed_ms=77, banned_for_ms=5, load=0.9, services=counted)
    assert etag(passing) == etag(node)
    for changed in (
        replace(node, state="down"),
        replace(node, weight=2),
        replace(node, services=[replace(seat, slots=1) for seat in node.services]),
    ):
        assert etag(changed) != etag(node)
