"""The HTTP client of the local API, and what is said when it does not answer.

Every command that asks the running LB goes through `ask`: the port comes from the configuration
(`-c`, `GALE_CONFIG`), the host is always this machine. What went wrong is one line on stderr that
says what to do, and exit code 1: no connection, no answer in time, or the API's own problem
(RFC 9457), whose `detail` is written for the operator. A node's file has no LB behind it; asking it
is wrong use, code 2.

A command that goes on for long (`--watch`, `--follow`) takes the `Client` itself, and `ApiError` as
something that passes: the API may be restarted at any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import typer

from conf import LbConfig, Source, load_either
from conf.security import read_token
from services.cli.invocation import NO, WRONG_USE, Invocation

TIMEOUT_S = 5.0
RETRY_S = 0.5
PASSING = (503, 504)
"""Answers that say: not now."""
STREAM_SILENCE_S = 30.0
"""The API sends something every ten seconds; this long without a byte, the stream is dead."""


class ApiError(Exception):
    """The API did not give what was asked; the message is one line for the operator."""


class WrongQuestionError(ApiError):
    """What was asked can have no answer (400), however things stand: wrong use."""


@dataclass(frozen=True, slots=True)
class ServerSent:
    """One message of the event stream."""

    id: str
    data: str


class Client:
    """The API of the LB on this machine, or of another one by its private address."""

    def __init__(
        self, api_port: int, host: str = "127.0.0.1", token_file: Path | None = None
    ) -> None:
        self._token_file = token_file
        self.url = f"http://{host}:{api_port}"
        # The proxy of the environment is for the world outside, not for this machine.
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)

    def get(self, path: str, **parameters: str | int | None) -> Any:
        """The JSON at `path`; raises `ApiError`."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._answer("GET", path, params=given)

    def post(self, path: str, body: dict[str, Any], timeout_s: float = TIMEOUT_S) -> Any:
        """The JSON that `path` answers to `body` with; raises `ApiError`."""
        return self._answer("POST", path, json=body, timeout=timeout_s)

    def command(self, path: str) -> Any:
        """Have the LB do what `path` names, with the token if there is one; raises `ApiError`."""
        return self._answer("POST", path, json={}, headers=self._credentials())

    def text(self, path: str) -> str:
        """What is at `path`, as it is; raises `ApiError`."""
        try:
            response = self._http.get(path)
        except httpx.HTTPError as error:
            raise ApiError(self._unreachable(error)) from None
        if response.is_error:
            raise self._refusal(path, response)
        return response.text

    def _answer(self, method: str, path: str, **how: Any) -> Any:
        try:
            response = self._http.request(method, path, **how)
        except httpx.HTTPError as error:
            raise ApiError(self._unreachable(error)) from None
        if response.is_error:
            raise self._refusal(path, response)
        try:
            return response.json()
        except ValueError:
            raise ApiError(f"{self.url}{path}: this is not Gale's API, it sends no JSON") from None

    def change(self, path: str, body: Any, *, key: str) -> Any:
        """Change something, with the token if there is one; the JSON of the answer, or `ApiError`.

        `key` names the change, so that it may be sent again without being made twice: an API that
        does not answer may have been restarted a moment ago.
        """
        headers = {"Idempotency-Key": key} | self._credentials()
        for last in (False, False, True):
            try:
                response = self._http.post(path, json=body, headers=headers)
            except httpx.HTTPError as error:
                if last:
                    raise ApiError(self._unreachable(error)) from None
                time.sleep(RETRY_S)
                continue
            if not response.is_error:
                return response.json()
            if last or response.status_code not in PASSING:
                raise self._refusal(path, response)
            time.sleep(RETRY_S)
        raise AssertionError("the last try returns or raises")

    def _credentials(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            token = read_token(self._token_file)
        except OSError as error:
            why = f"security.api_token_file: {self._token_file}: {error.strerror}"
            raise ApiError(why) from None
        return {"Authorization": f"Bearer {token}"}

    def stream(self, path: str, last_event_id: str | None) -> Iterator[ServerSent]:
        """The server-sent events at `path` until the API ends them; raises `ApiError`."""
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_SILENCE_S)
        try:
            with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise self._refusal(path, response)
                yield from _messages(response.iter_lines())
        except httpx.HTTPError as error:
            raise ApiError(self._unreachable(error)) from None

    def _refusal(self, path: str, response: httpx.Response) -> ApiError:
        is_wrong = response.status_code == HTTPStatus.BAD_REQUEST
        error = WrongQuestionError if is_wrong else ApiError
        return error(f"{self.url}{path}: {_detail(response)}")

    def _unreachable(self, error: httpx.HTTPError) -> str:
        if isinstance(error, httpx.TimeoutException):
            return f"{self.url}: no answer in time; see supervisorctl status 'gale:*'"
        return (
            f"{self.url}: the API of this LB does not answer ({error});"
            " is it running? supervisorctl status 'gale:*'"
        )


def _messages(lines: Iterator[str]) -> Iterator[ServerSent]:
    """Parse the event stream; comments and other fields mean nothing here."""
    identity, data = "", []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            identity = value
        elif field == "data":
            data.append(value)
        elif not line and data:
            yield ServerSent(identity, "\n".join(data))
            data = []


def _detail(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"
    return str(detail)


# --------------------------------------------------------------------------- for the commands


def client_of(invocation: Invocation) -> Client:
    """The client for the configuration of this invocation."""
    config = _config_of(invocation)
    token_file = config.security.api_token_file
    path = Path(token_file) if token_file is not None else None
    return Client(config.local.api_port, token_file=path)


def api_port_of(invocation: Invocation) -> int:
    """Where the API of this LB listens."""
    return _config_of(invocation).local.api_port


def _config_of(invocation: Invocation) -> LbConfig:
    """A node's file ends the program with code 2."""
    path = invocation.config_path()
    config = load_either(Source.read(path))
    if not isinstance(config, LbConfig):
        typer.echo(
            f"{path}: this is a node's file; ask on a load balancer, or the agent at"
            f" http://127.0.0.1:{config.local.api_port}/status",
            err=True,
        )
        raise typer.Exit(WRONG_USE)
    return config


def ask(invocation: Invocation, path: str, **parameters: str | int | None) -> Any:
    """The JSON at `path`, or one line on stderr and exit code 1."""
    client = client_of(invocation)
    try:
        return client.get(path, **parameters)
    except ApiError as error:
        raise refused(error) from None


def refused(error: ApiError) -> typer.Exit:
    """Say `error` and be what to raise for it."""
    typer.echo(str(error), err=True)
    return typer.Exit(WRONG_USE if isinstance(error, WrongQuestionError) else NO)
