"""`gale node …`: what is sent to the API, and what is said of it."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli import client
from tests.cli.conftest import Gale
from tests.cli.files import LB_CONFIG
from tests.cli.local_api import ANSWERS, Handler, LocalApi

ID = "node-1@10.81.0.21"
NODE = ANSWERS["/v1/nodes"]["nodes"][0]


@pytest.fixture
def desk(api: LocalApi, monkeypatch: pytest.MonkeyPatch) -> LocalApi:
    """The API, which agrees to everything."""
    monkeypatch.setattr(client, "RETRY_S", 0.01)
    for what in ("drain", "enable", "ban", "pardon", "weight"):
        api.paths[f"/v1/nodes/{ID}/{what}"] = {"what": what, "node": ID}
    api.paths[f"/v1/nodes/{ID}"] = NODE
    return api


def test_what_is_asked_for(desk: LocalApi, gale: Gale) -> None:
    for arguments, body in (
        (("drain", ID), {"within": None}),
        (("drain", ID, "--within", "5m"), {"within": "5m"}),
        (("enable", ID), {}),
        (("ban", ID), {}),
        (("pardon", ID, "--why", "mended"), {"why": "mended"}),
        (("weight", ID, "7"), {"weight": 7}),
        (("weight", ID, "own"), {"weight": None}),
    ):
        desk.posted.clear()
        result = gale("node", *arguments)
        assert result.exit_code == 0, result.output
        assert f"{arguments[0]} {ID}: agreed" in result.output
        ((path, sent, _),) = desk.posted
        assert path == f"/v1/nodes/{ID}/{arguments[0]}"
        expected = {"by": f"{getpass.getuser()}@{socket.gethostname()}", "why": ""} | body
        assert sent == expected


def test_sudo_does_not_hide_who_it_was(
    desk: LocalApi, gale: Gale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    gale("node", "ban", ID)
    assert desk.posted[0][1]["by"] == f"ada@{socket.gethostname()}"


def test_a_drain_says_what_is_left_and_what_comes(desk: LocalApi, gale: Gale) -> None:
    order = {"what": "drain", "weight": None, "remaining_ms": 299_000, "at_deadline": "TCP is cut"}
    desk.paths[f"/v1/nodes/{ID}"] = NODE | {"flows": 12, "order": order, "orders": [order]}
    said = gale("node", "drain", ID, "--within", "5m").output
    assert "it has 12 flows now; drain, 4 m 59 s left; then TCP is cut" in said


def test_json_is_the_apis_answer(desk: LocalApi, gale: Gale) -> None:
    assert gale("node", "ban", ID, "--json").output.split() == [
        *("{", '"what":', '"ban",', '"node":', f'"{ID}"', "}")
    ]


def test_an_order_is_tried_again_under_one_name(desk: LocalApi, gale: Gale) -> None:
    tries: list[int] = []

    def not_now(handler: Handler, _parameters: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            handler.send_json({"detail": "not agreed"}, 503)
        else:
            handler.send_json({"what": "ban", "node": ID})

    desk.paths[f"/v1/nodes/{ID}/ban"] = not_now
    assert gale("node", "ban", ID).exit_code == 0
    assert len({headers["Idempotency-Key"] for _, _, headers in desk.posted}) == 1
    assert len(desk.posted) == 3


def test_a_refusal_is_said_in_one_line_and_not_repeated(desk: LocalApi, gale: Gale) -> None:
    def refuse(handler: Handler, _parameters: Any) -> None:
        handler.send_json({"detail": "no node has the id x"}, 404)

    desk.paths["/v1/nodes/x/ban"] = refuse
    result = gale("node", "ban", "x")
    assert result.exit_code == 1
    assert "no node has the id x" in result.output
    assert len(desk.posted) == 1


def test_the_token_of_the_configuration_is_sent(
    desk: LocalApi, gale: Gale, config: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    config.write_text(
        f'{LB_CONFIG}api_port = {desk.port}\n[security]\napi_token_file = "{token}"\n'
    )
    missing = gale("node", "ban", ID)
    assert missing.exit_code == 1
    assert str(token) in missing.output
    token.write_text("s3cret\n")
    assert gale("node", "ban", ID).exit_code == 0
    assert desk.posted[-1][2]["Authorization"] == "Bearer s3cret"
    desk.paths["/v1/handover"] = {"leader": "lb-1"}
    assert gale("handover").exit_code == 0
    assert desk.posted[-1][2]["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, Path.touch])
def test_a_token_file_that_holds_none_is_named(
    desk: LocalApi, gale: Gale, config: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    token = tmp_path / "token"
    make(token)
    config.write_text(
        f'{LB_CONFIG}api_port = {desk.port}\n[security]\napi_token_file = "{token}"\n'
    )
    refused = gale("node", "ban", ID)
    assert refused.exit_code == 1
    assert f"security.api_token_file: {token}: it is " in refused.output


@pytest.mark.parametrize("within", ["5", "5 minutes", "-1s", "", "99999h"])
def test_a_time_that_is_none(desk: LocalApi, gale: Gale, within: str) -> None:
    result = gale("node", "drain", ID, f"--within={within}")
    assert result.exit_code == 2
    assert "--within: " in result.stderr
    assert "expected" in result.stderr
    assert not desk.posted


@pytest.mark.parametrize("number", ["x", "-1", "1.5", "", "1001"])
def test_a_weight_that_is_none(desk: LocalApi, gale: Gale, number: str) -> None:
    assert gale("node", "weight", ID, "--", number).exit_code == 2
    assert not desk.posted


def test_nodes_show_the_orders(desk: LocalApi, gale: Gale) -> None:
    drain = {"what": "drain", "weight": None, "remaining_ms": 61_000}
    weight = {"what": "weight", "weight": 7, "remaining_ms": None}
    desk.paths["/v1/nodes"] = {"nodes": [NODE | {"orders": [drain, weight]}]}
    said = " ".join(gale("nodes").output.split())
    assert "drain, 1 m 1 s left, weight 7" in said
