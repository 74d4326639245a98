"""Who may change something by HTTP, and whether he knows what he is changing.

What a route that changes something asks for, as FastAPI dependencies, so that the OpenAPI document
shows it too:

    @app.post("/v1/nodes/{node_id}/drain", responses=guard.CHANGING)
    async def drain(node_id: str, caller: guard.MayChange, if_match: guard.IfMatch = None): ...
        guard.check(if_match, guard.etag(shape_of_the_node))

* **A foreign page never.** A browser names the page a call comes from (`Origin`, RFC 6454); only
  this API's own may call. A program on the command line sends no such header.
* **The token**, where `security.api_token_file` is configured: `Authorization: Bearer TOKEN`
  (RFC 6750), compared in constant time, else 401. The file is read anew whenever it has changed.
  One that cannot be read lets nobody in.
* **Without a configured token from this machine alone**, else 403. Whoever is on loopback could
  read the file anyway, or is an operator who has logged in.
* **The Host header** (for every call, `Door` in `limits.py` asks): an address, `localhost`, or one
  of this LB's names. A page of another site whose name has been made to lead here (DNS rebinding)
  would have that site's name in it.
* **If-Match** (RFC 9110): the tag of what the caller has seen, as every answer carries it. If it is
  different by now, 412 and nothing is done.

**A tag is about what is decided.** Ages, remainders, loads and counters change with every packet;
were they in it, nobody could ever name the present one. `PASSING` lists them.

`may_ask` is for calls that are POSTs because they carry a file or a packet, and change nothing
(plan, trace): no token, but no foreign page either.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from conf.security import read_token
from services.api.problems import answers, refusal

TAG_BYTES = 12
CHANGING = answers(401, 403, 404, 409, 412, 503, 504)
"""What a route that changes something may answer beside its own."""
ASKING = answers(403, 409, 503, 504)
"""Likewise one that only asks."""

PASSING = frozenset(
    (
        *(
            "age_ms",
            "observed_ms",
            "heard_ms",
            "lease_remaining_ms",
            "banned_for_ms",
            "slow_start_ms",
        ),
        *("load", "checks_passed", "packets_in", "bytes_in", "packets_out", "bytes_out", "flows"),
        "flows_now",
        *("conntrack_established", "conntrack_half_open", "remaining_ms"),
    )
)
"""Fields that change by themselves, or with every packet."""

_bearer = HTTPBearer(auto_error=False, description="The token of security.api_token_file.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking for a change: for the order's `by`."""

    address: str
    has_token: bool

    def __str__(self) -> str:
        return f"{self.address} with the token" if self.has_token else self.address


class Token:
    """What is in the file that the configuration names, now."""

    def __init__(self, path: Callable[[], Path | None]) -> None:
        self._path = path
        self._read: tuple[tuple[Path, int, int], str] | None = None

    def now(self) -> str | None:
        """None: none is configured. Raises OSError if it cannot be read or is empty."""
        path = self._path()
        if path is None:
            return None
        facts = path.stat()
        version = (path, facts.st_mtime_ns, facts.st_ino)
        if self._read is None or self._read[0] != version:
            self._read = version, read_token(path)
        return self._read[1]


@dataclass(frozen=True, slots=True)
class Guard:
    """Stands in `app.state.guard`."""

    token: Token
    names: Callable[[], Iterable[str]]
    """What this LB is called."""

    def knows_host(self, host: str | None) -> bool:
        """Whether a Host header, `name` or `name:port`, means this machine."""
        if host is None:
            return False
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        known = {"localhost", *(each.lower() for each in self.names())}
        return name in known or name.removesuffix(".local") in known or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# --------------------------------------------------------------------------- dependencies


def may_ask(request: Request) -> None:
    """Refuses what another site's page asks for, with 403."""
    origin = request.headers.get("origin")
    same = {f"{scheme}://{request.headers.get('host', '')}" for scheme in ("http", "https")}
    if origin is not None and origin.lower() not in {each.lower() for each in same}:
        raise refusal(HTTPStatus.FORBIDDEN, "Origin: a page of another site may not do this")
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise refusal(HTTPStatus.FORBIDDEN, "Sec-Fetch-Site: another site may not do this")


def may_change(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    _asked: Annotated[None, Depends(may_ask)],
) -> Caller:
    """Who is asking; refuses those who may not, with 401 or 403."""
    guard: Guard = request.app.state.guard
    address = request.client.host if request.client is not None else ""
    try:
        token = guard.token.now()
    except OSError as error:
        why = f"security.api_token_file: {error.strerror}: nobody is let in"
        raise refusal(HTTPStatus.FORBIDDEN, why) from None
    if token is None:
        if not _is_loopback(address):
            why = "without security.api_token_file, changes are taken from this machine only"
            raise refusal(HTTPStatus.FORBIDDEN, why)
        return Caller(address, has_token=False)
    said = given.credentials if given is not None else ""
    if not hmac.compare_digest(said.encode(), token.encode()):
        why = "Authorization: expected Bearer and the token of security.api_token_file"
        challenge = {"WWW-Authenticate": 'Bearer realm="gale"'}
        raise refusal(HTTPStatus.UNAUTHORIZED, why, **challenge)
    return Caller(address, has_token=True)


def _is_loopback(address: str) -> bool:
    return _is_address(address) and ipaddress.ip_address(address).is_loopback


MayAsk = Annotated[None, Depends(may_ask)]
MayChange = Annotated[Caller, Depends(may_change)]
IfMatch = Annotated[
    str | None, Header(description="The ETag of what is to be changed, as last seen.")
]


# --------------------------------------------------------------------------- tags


def etag(shape: Any) -> str:
    """The tag of what is decided in a shape (anything orjson writes), with its quotes."""
    decided = _without_passing(orjson.loads(orjson.dumps(shape)))
    return tag_of(orjson.dumps(decided, option=orjson.OPT_SORT_KEYS))


def tag_of(body: bytes) -> str:
    """The tag of an answer that is what it is to the last byte."""
    return f'"{blake2b(body, digest_size=TAG_BYTES).hexdigest()}"'


def check(if_match: str | None, tag: str) -> None:
    """Refuses with 412 if the caller has seen something else than what has this tag now."""
    if if_match is None or if_match.strip() == "*":
        return
    if tag not in (each.strip() for each in if_match.split(",")):
        why = f"If-Match: this is {tag} by now: look again before you change it"
        raise refusal(HTTPStatus.PRECONDITION_FAILED, why)


def _without_passing(value: Any) -> Any:
    if isinstance(value, dict):
        kept = value.items()
        return {key: _without_passing(each) for key, each in kept if key not in PASSING}
    if isinstance(value, list):
        return [_without_passing(each) for each in value]
    return value
