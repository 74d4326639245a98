"""What one who calls may take, and that the others do not notice."""

from __future__ import annotations

import asyncio
import functools
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import orjson
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from services.api import limits
from services.api.limits import BoundedHttp, Connections, Door
from tests.api.conftest import TIMEOUT_S, Gale, wait_for

IDLE_ONES = 1_000
SHORT_S = 0.4


@pytest.fixture(autouse=True)
def room_for_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8_192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connected(port: int, said: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    made.sendall(said)
    return made


def ended(connection: socket.socket) -> bytes:
    """All that comes until the other side ends it."""
    got = b""
    try:
        while part := connection.recv(65_536):
            got += part
    except ConnectionResetError:
        pass
    return got


# --------------------------------------------------------------------------- the process as it runs


def is_well(gale: Gale) -> bool:
    begun = time.monotonic()
    answer = gale.get("/v1/status")
    return answer.status_code == 200 and time.monotonic() - begun < TIMEOUT_S / 4


@pytest.fixture
def alone(gale: Gale) -> Gale:
    gale.start_api()
    return gale


def test_a_thousand_idle_connections_hold_nobody_up(alone: Gale) -> None:
    with httpx.Client(base_url=alone.url, timeout=TIMEOUT_S, trust_env=False) as early:
        early.get("/healthz")
        idle = [connected(alone.port) for _ in range(IDLE_ONES)]
        assert is_well(alone)
        half_said = [connected(alone.port, b"GET / HT") for _ in range(IDLE_ONES)]
        assert is_well(alone)
        for each in idle + half_said:
            each.close()
        assert is_well(alone)


def test_ten_megabytes_are_too_many_and_said_so(alone: Gale) -> None:
    ten = b"x" * 10 * 1024 * 1024
    for path in ("/v1/nodes", "/v1/nothing"):
        answer = httpx.post(alone.url + path, content=ten, timeout=TIMEOUT_S, trust_env=False)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
    chunks = (b"x" * 65_536 for _ in range(160))
    answer = httpx.post(f"{alone.url}/v1/nodes", content=chunks, timeout=TIMEOUT_S, trust_env=False)
    assert answer.status_code == 413
    assert is_well(alone)


def test_a_host_that_is_somebody_else(alone: Gale) -> None:
    for host in ("evil.example", "", "lb-0.evil.example:80"):
        answer = httpx.get(f"{alone.url}/v1/status", headers={"Host": host}, trust_env=False)
        assert answer.status_code == 421
        assert answer.headers["content-type"] == "application/problem+json"
    own = {"Host": f"lb-0:{alone.port}"}
    assert httpx.get(f"{alone.url}/v1/status", headers=own, trust_env=False).status_code == 200
    nobody = connected(alone.port, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert b" 421 " in ended(nobody)


@pytest.mark.parametrize(
    "nonsense", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 100_000]
)
def test_what_is_no_http_is_a_problem_too(alone: Gale, nonsense: bytes) -> None:
    head, _, body = ended(connected(alone.port, nonsense)).partition(b"\r\n\r\n")
    assert b" 400 " in head
    assert b"application/problem+json" in head
    assert orjson.loads(body)["status"] == 400


def test_every_whole_answer_has_a_tag(alone: Gale) -> None:
    for path in ("/healthz", "/metrics", "/openapi.json", "/v1/status"):
        assert alone.get(path).headers["etag"].startswith('"')


# --------------------------------------------------------------------------- one with short limits


class Served:
    """An application behind the limits, in a thread of the test."""

    def __init__(self, most: int) -> None:
        app = FastAPI()

        @app.get("/healthz")
        async def healthz() -> dict[str, str]:
            return {}

        @app.post("/size")
        async def size(request: Request) -> int:
            return len(await request.body())

        @app.get("/endless")
        async def endless() -> StreamingResponse:
            async def parts() -> AsyncIterator[bytes]:
                while True:
                    yield b"x" * 1_000_000

            return StreamingResponse(parts())

        @app.get("/waiting")
        async def waiting() -> StreamingResponse:
            async def parts() -> AsyncIterator[bytes]:
                yield b"x"
                await asyncio.sleep(TIMEOUT_S)

            return StreamingResponse(parts())

        self.book = Connections(most)
        config = uvicorn.Config(
            Door(app, lambda _host: True),
            port=0,
            http=functools.partial(BoundedHttp, book=self.book),  # type: ignore[arg-type]
            log_config=None,
            timeout_graceful_shutdown=0,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started, "the server")
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    def get(self) -> int:
        url = f"http://127.0.0.1:{self.port}/healthz"
        return httpx.get(url, timeout=TIMEOUT_S, trust_env=False).status_code


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("HEAD_S", "BODY_S", "TAKE_IN_S"):
        monkeypatch.setattr(limits, name, SHORT_S)
    made = Served(most=4)
    yield made
    made.server.should_exit = True
    made.thread.join(TIMEOUT_S)
    assert not made.thread.is_alive(), "an answer goes on for somebody who has gone"


HEAD = b"POST /size HTTP/1.1\r\nHost: lb\r\nContent-Length: 10\r\n\r\n"


def test_a_head_has_to_come_to_its_end(served: Served) -> None:
    assert ended(connected(served.port)) == b""
    assert ended(connected(served.port, b"GET /healthz HTTP/1.1\r\nHost:")) == b""
    dripping = connected(served.port)
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        drip(dripping)


def drip(connection: socket.socket) -> None:
    """A byte now and then, of a head without an end."""
    for each in b"GET /healthz HTTP/1.1\r\n" + b"X-More: 1\r\n" * 1_000:
        connection.sendall(bytes([each]))
        time.sleep(SHORT_S / 20)


def test_so_has_the_second_one(served: Served) -> None:
    kept = connected(served.port, b"GET /healthz HTTP/1.1\r\nHost: lb\r\n\r\n")
    assert b"200 OK" in kept.recv(65_536)
    kept.sendall(b"G")
    assert ended(kept) in (b"", b"{}")


def test_a_body_has_to_come_to_its_end(served: Served) -> None:
    assert b" 408 " in ended(connected(served.port, HEAD + b"12345"))
    whole = connected(served.port, HEAD + b"1234567890")
    assert b"200 OK" in whole.recv(65_536)


def test_who_takes_nothing_in_is_hung_up_on(served: Served) -> None:
    deaf = connected(served.port, b"GET /endless HTTP/1.1\r\nHost: lb\r\n\r\n")
    wait_for(lambda: len(served.book) == 1, "the connection")
    wait_for(lambda: len(served.book) == 0, "its end, though it never read")
    deaf.close()


def test_the_longest_idle_one_makes_room(served: Served) -> None:
    first, second = (connected(served.port) for _ in range(2))
    wait_for(lambda: len(served.book) == 2, "both")
    used = b"GET /waiting HTTP/1.1\r\nHost: lb\r\n\r\n"
    streams = [connected(served.port, used) for _ in range(2)]
    for stream in streams:
        assert stream.recv(1)
    assert served.get() == 200
    first.settimeout(TIMEOUT_S)
    assert ended(first) == b""
    second.close()


def test_with_none_idle_the_new_one_goes(served: Served) -> None:
    used = b"GET /waiting HTTP/1.1\r\nHost: lb\r\n\r\n"
    streams = [connected(served.port, used) for _ in range(4)]
    for stream in streams:
        assert stream.recv(1)
    assert ended(connected(served.port, b"GET /healthz HTTP/1.1\r\nHost: lb\r\n\r\n")) == b""
    streams[0].close()
    wait_for(lambda: len(served.book) < 4, "room")
    assert served.get() == 200
