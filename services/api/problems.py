"""What HTTP says when it cannot do what was asked: problem+json (RFC 9457), and nothing else.

Every operation documents the same few ways in which a request can be refused before it is looked
at (`ALWAYS`); what an operation of its own may say besides, it names by `answers`. So the OpenAPI
document lists each answer that can come.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bus.words import one_line

PROBLEM = "application/problem+json"
CLIENT_FAULTS, SERVER_FAULTS = "4", "5"
NAMES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request was not done (RFC 9457)."""

    type: str
    """about:blank: the status says what kind of problem it is."""
    title: str
    status: int
    detail: str
    """For the operator: what was wrong, and with what."""


MEANINGS = {
    400: "The request is not as documented.",
    401: "The token is missing or wrong.",
    403: "Not from here: another site's page, or without a token from another machine.",
    404: "There is no such thing.",
    408: "The request did not come to its end in time.",
    409: "It cannot be done as things stand.",
    412: "What If-Match names is no longer so.",
    413: "The request is too large.",
    421: "The Host header names another machine.",
    503: "Not known yet, or nobody to do it: try again.",
    504: "The process that does this did not answer in time.",
}
ALWAYS = (400, 408, 413, 421)

Answers = dict[int | str, dict[str, Any]]


def answers(*statuses: int) -> Answers:
    """For a route's `responses`: what it may say beside what it is for."""
    return {
        status: {"model": Problem, "description": MEANINGS[status]} for status in sorted(statuses)
    }


def problem(status: int, detail: str, **headers: str) -> Response:
    """The answer."""
    body = Problem("about:blank", HTTPStatus(status).phrase, status, detail)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    return Response(orjson.dumps(body), status, headers=headers, media_type=PROBLEM)


def refusal(status: int, detail: str, **headers: str) -> HTTPException:
    """What a route or a dependency raises to give such an answer."""
    return HTTPException(status, detail, headers or None)


def no_such(kind: str, name: str, there: Collection[str]) -> HTTPException:
    """404 for a name that nobody has; it says who is there."""
    shown = ", ".join(sorted(there)[:NAMES_SHOWN]) or "none"
    more = f" and {len(there) - NAMES_SHOWN} more" if len(there) > NAMES_SHOWN else ""
    detail = f"no {kind} is named {one_line(name)}; there are {shown}{more}"
    return refusal(HTTPStatus.NOT_FOUND, detail)


def documented(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document whose refusals are what is really sent.

    FastAPI describes them as application/json, and a wrong request as 422, which is 400 here.
    """
    for path in document.get("paths", {}).values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status in ALWAYS:
                responses.setdefault(str(status), {"description": MEANINGS[status]})
            for status, response in responses.items():
                if status.startswith((CLIENT_FAULTS, SERVER_FAULTS)):
                    schema = {"$ref": "#/components/schemas/Problem"}
                    response["content"] = {PROBLEM: {"schema": schema}}
            operation["responses"] = dict(sorted(responses.items()))
            if "security" in operation:
                # Where no token is configured, this machine needs none (see guard.py).
                operation["security"] = [{}, *operation["security"]]
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document
