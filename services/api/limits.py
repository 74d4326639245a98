"""How much of this process one who calls may take: of connections, of time, of size.

| what | limit | then |
| --- | --- | --- |
| connections, of both listeners | `MOST_CONNECTIONS` | the longest idle is closed, or the new one |
| a request's head | `HEAD_S` from its first byte, or from the connection's | closed |
| a request's body | `LARGEST_BODY` bytes, `BODY_S` | 413; 408 |
| taking an answer in | `TAKE_IN_S` without taking any of it | closed |
| streams open at once | `MOST_STREAMS` | 503 |

So whoever opens a thousand connections, or sends a byte now and then, holds what he has only until
somebody else needs it: a connection that asks for something is never refused for idle ones. And
there are fewer streams than connections, so however many are open, requests come through.

What is too large is read to its end all the same, up to `LARGEST_DISCARDED`, and not kept: a client
that is cut off in the middle of sending never sees why.

`Door` also turns away who calls this machine by another's name (see `guard.py`), before anything is
looked at, and gives every whole answer a tag. A head that is no HTTP is answered in problem+json
like everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.api.guard import tag_of
from services.api.problems import PROBLEM, problem

MOST_CONNECTIONS = 512
MOST_STREAMS = 256
HEAD_S = 10.0
BODY_S = 10.0
TAKE_IN_S = 20.0
LARGEST_BODY = 1024 * 1024
LARGEST_DISCARDED = 32 * 1024 * 1024

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]


class Connections:
    """The open ones of all listeners; those that did something last come last."""

    def __init__(self, most: int = MOST_CONNECTIONS) -> None:
        self._most = most
        self._open: dict[BoundedHttp, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, new: BoundedHttp) -> None:
        """Make room for one more, at the cost of an idle one, or else of the new one."""
        self._open[new] = None
        if len(self._open) > self._most:
            given_up = next((each for each in self._open if each.is_idle), new)
            self.forget(given_up)
            given_up.transport.abort()

    def used(self, one: BoundedHttp) -> None:
        if one in self._open:
            del self._open[one]
            self._open[one] = None

    def forget(self, one: BoundedHttp) -> None:
        self._open.pop(one, None)


class BoundedHttp(H11Protocol):
    """uvicorn's HTTP, whose requests and readers have to come to an end."""

    def __init__(self, *args: Any, book: Connections, **named: Any) -> None:
        super().__init__(*args, **named)
        self._book = book
        self._head_due: asyncio.TimerHandle | None = None
        self._take_in_due: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """No request is being answered, whether or not one has begun to come."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()
        self._book.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._book.forget(self)
        self._head_has_come()
        self._has_taken_in()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._book.used(self)
        if not self.is_idle:
            self._head_has_come()
        elif self._head_due is None:
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._take_in_due = self.loop.call_later(TAKE_IN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._has_taken_in()

    def send_400_response(self, msg: str) -> None:
        """A head that is no HTTP, or too long."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        answer = problem(HTTPStatus.BAD_REQUEST, msg)
        headers = [("Content-Type", PROBLEM), ("Connection", "close")]
        head = h11.Response(
            status_code=answer.status_code,
            headers=[*headers, ("Content-Length", str(len(answer.body)))],
            reason=HTTPStatus.BAD_REQUEST.phrase.encode(),
        )
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_due = self.loop.call_later(HEAD_S, self._late)

    def _late(self) -> None:
        self._head_due = None
        if self.is_idle:
            self.transport.abort()

    def _head_has_come(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _has_taken_in(self) -> None:
        if self._take_in_due is not None:
            self._take_in_due.cancel()
            self._take_in_due = None


class Door:
    """ASGI around the application: the host's name, the body's size and time, the answer's tag."""

    def __init__(self, app: Asgi, knows_host: Callable[[str | None], bool]) -> None:
        self._app = app
        self._knows_host = knows_host

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        tagged = _Tagged(send)
        answer: Response | None = None
        if not self._knows_host(_host_of(scope)):
            detail = "Host: this is not me; call me by my address, localhost or local.name"
            answer = problem(HTTPStatus.MISDIRECTED_REQUEST, detail)
        else:
            try:
                async with asyncio.timeout(BODY_S):
                    body = await _whole_body(receive)
            except TimeoutError:
                detail = f"the request did not come to its end within {BODY_S:.0f} s"
                answer = problem(HTTPStatus.REQUEST_TIMEOUT, detail, Connection="close")
            else:
                if body is None:
                    detail = f"a request may have {LARGEST_BODY} bytes at most"
                    answer = problem(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, Connection="close"
                    )
        if answer is not None:
            await answer(scope, receive, tagged)
        else:
            await self._app(scope, _once(body or b"", receive), tagged)


def _host_of(scope: Message) -> str | None:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return hosts[0].decode("latin-1") if len(hosts) == 1 else None


async def _whole_body(receive: Receive) -> bytes | None:
    """None: there is more of it than may be."""
    kept, size, more = [], 0, True
    while more and size <= LARGEST_DISCARDED:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        part: bytes = message.get("body", b"")
        size += len(part)
        more = message.get("more_body", False)
        if size <= LARGEST_BODY:
            kept.append(part)
    return b"".join(kept) if size <= LARGEST_BODY else None


def _once(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the whole body at once, then what else there is."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


class _Tagged:
    """Sends on, with an ETag for a whole answer that has none.

    After each part the others have their turn. uvicorn takes in what is sent to somebody who has
    gone without ever waiting, so an answer that has no end and never waits either would hold the
    whole process, and not even be told that nobody is there any more.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            if message["status"] == HTTPStatus.OK and b"etag" not in names:
                self._head = message
                return
        elif self._head is not None:
            head, self._head = self._head, None
            if not message.get("more_body", False):
                tag = tag_of(message.get("body", b"")).encode()
                head["headers"] = [*head["headers"], (b"etag", tag)]
            await self._send(head)
        await self._send(message)
        await asyncio.sleep(0)
