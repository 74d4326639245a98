"""Commands: a request to the process that owns what it changes, and its reply.

`{v, id, verb, arguments}` → `{id, result | error}`, from a DEALER to the owner's ROUTER. They are
idempotent: the server keeps the replies of the last ids, so that a caller may repeat an id after a
timeout and nothing happens twice. A command nobody answers ends in `TimeoutError` on the caller's
side, by default after two seconds.

A malformed command, or one of another version of this protocol, is counted in `rejected` and not
answered.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from bus.codec import MalformedMessage, UnknownVersion, from_json, to_json
from bus.socket import LocalEndpoint, bounded
from bus.words import Whole

COMMAND_VERSION = 1
COMMAND_TIMEOUT_MS = 2000
KEPT_REPLIES = 256


@dataclass(frozen=True, slots=True)
class Command:
    """A request to the ROUTER of the process that owns the thing. Idempotent, two seconds."""

    id: str
    verb: str
    arguments: dict[str, Any]
    v: Whole = COMMAND_VERSION


@dataclass(frozen=True, slots=True)
class Reply:
    """Exactly one of `result` and `error` is not None."""

    id: str
    result: dict[str, Any] | None
    error: str | None


class CommandError(Exception):
    """The owner understood the command and refuses it; the message is for the operator."""


class Later:
    """The answer to a command that is still being worked out."""

    def __init__(self) -> None:
        self.result: dict[str, Any] | None = None
        """Set by the owner when it is there; the next `serve` sends it."""
        self.error: str | None = None
        """Or this: why there will be none."""


Handler = Callable[[str, dict[str, Any]], dict[str, Any] | Later]


class CommandServer:
    """The ROUTER of the process that owns what the commands change."""

    def __init__(self, context: zmq.Context[Any], path: Path) -> None:
        self.rejected: Counter[str] = Counter()
        self._replies: OrderedDict[str, bytes] = OrderedDict()
        self._working: dict[str, tuple[Later, list[bytes]]] = {}
        """By the command's id: its answer to be, and who wait for it."""
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        bounded(self.socket)
        self._endpoint = LocalEndpoint(self.socket, path)

    def serve(self, handler: Handler) -> None:
        """Answer all waiting requests by `handler(verb, arguments)`, and those whose answers have
        come since.

        `CommandError` becomes the error of the reply; any other exception is a fault of ours and
        goes up.
        """
        self._send_finished()
        while True:
            try:
                identity, *body = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                command = read_command(b"".join(body))
            except MalformedMessage as error:
                self.rejected[error.reason] += 1
                continue
            self._serve_one(identity, command, handler)

    def _serve_one(self, identity: bytes, command: Command, handler: Handler) -> None:
        if command.id in self._working:
            self._working[command.id][1].append(identity)
            return
        reply = self._replies.get(command.id)
        if reply is None:
            answer = _answer(command, handler)
            if isinstance(answer, Later):
                self._working[command.id] = answer, [identity]
                return
            reply = self._remember(command.id, answer)
        self.socket.send_multipart([identity, reply], zmq.NOBLOCK)

    def _send_finished(self) -> None:
        finished = [
            number
            for number, (later, _) in self._working.items()
            if later.result is not None or later.error is not None
        ]
        for number in finished:
            later, identities = self._working.pop(number)
            reply = self._remember(number, Reply(number, later.result, later.error))
            for identity in identities:
                self.socket.send_multipart([identity, reply], zmq.NOBLOCK)

    def close(self) -> None:
        self._endpoint.close()

    def _remember(self, command_id: str, reply: Reply) -> bytes:
        raw = to_json(reply)
        self._replies[command_id] = raw
        if len(self._replies) > KEPT_REPLIES:
            self._replies.popitem(last=False)
        return raw


def read_command(raw: bytes) -> Command:
    """Raises `MalformedMessage`, or `UnknownVersion`."""
    command = from_json(Command, raw)
    if command.v != COMMAND_VERSION:
        raise UnknownVersion(f"version {command.v} of commands, expected {COMMAND_VERSION}")
    return command


def _answer(command: Command, handler: Handler) -> Reply | Later:
    try:
        answer = handler(command.verb, command.arguments)
    except CommandError as error:
        return Reply(command.id, None, str(error))
    return answer if isinstance(answer, Later) else Reply(command.id, answer, None)


def request(
    context: zmq.Context[Any],
    path: Path,
    verb: str,
    arguments: dict[str, Any],
    timeout_ms: int = COMMAND_TIMEOUT_MS,
    *,
    command_id: str | None = None,
) -> dict[str, Any]:
    """Have the owner of `path` execute a command; blocks until the reply or the timeout.

    Raises `CommandError` with the owner's words, or `TimeoutError` if nothing came. To repeat a
    command after a timeout without its being done twice, give both tries the same `command_id`.
    """
    command = Command(command_id or uuid.uuid4().hex, verb, arguments)
    deadline = time.monotonic() + timeout_ms / 1000
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    bounded(socket)
    try:
        socket.connect(f"ipc://{path}")
        socket.send(to_json(command))
        while (left_ms := int((deadline - time.monotonic()) * 1000)) > 0:
            if not socket.poll(left_ms):
                continue
            reply = from_json(Reply, socket.recv())
            if reply.id != command.id:
                continue
            if reply.error is not None:
                raise CommandError(reply.error)
            return reply.result or {}
    finally:
        socket.close(linger=0)
    raise TimeoutError(f"{verb}: no answer from {path.name} within {timeout_ms} ms")
