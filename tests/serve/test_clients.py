"""Clients that leave, that are slow, that never read, and too many of them: others are served all the while."""

from __future__ import annotations

import asyncio
import json
import queue
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loom.chat.format import Message
from loom.chat.prompts import Conversation, conversation
from loom.model.sampling import Sampling
from loom.serve.api import Served, create_app
from loom.serve.complete import Session, open_session
from loom.serve.engine import Engine, Event, Request
from loom.serve.limits import Door, Limits
from tests.serve.running import Running, served

QUESTION = [{"role": "user", "content": "What does `textwrap.dedent` do?"}]


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Running]:
    with served(checkpoint) as running:
        yield running


def head(length: int) -> bytes:
    """The head of a request for a text completion with a body of `length` bytes."""
    lines = (
        "POST /v1/completions HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {length}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _wait_until_idle(server: Running) -> None:
    for _ in range(300):
        if server.call("GET", "/health")[1]["running"] == 0:
            return
        time.sleep(0.1)
    raise AssertionError("a place was not freed")


@pytest.fixture(scope="module")
def rambling(endless: Path) -> Iterator[Running]:
    """A server whose answers do not end by themselves for as long as these tests take; two at a time."""
    options = ["--places", "2", "--token-limit", "16000", "--patience", "1.5", "--time-limit", "120"]
    with served(endless, options) as running:
        yield running


LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "temperature": 0,
    "max_tokens": 16_000,
}


def open_chat(server: Running, asked: dict[str, Any]) -> socket.socket:
    """A connection that has sent a request."""
    body = json.dumps(asked).encode()
    held = socket.create_connection(("127.0.0.1", server.port))
    held.sendall(head(len(body)).replace(b"/v1/completions", b"/v1/chat/completions") + body)
    return held


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(rambling: Running, stream: bool) -> None:
    """Three leave, one of them from the queue: none of their answers is finished."""
    names = ("loom_cancelled_total", "loom_finished_total", "loom_late_total")
    before = [rambling.metric(name) for name in names]
    held = [open_chat(rambling, LONG | {"stream": stream}) for _ in range(3)]
    for _ in range(600):
        health = rambling.call("GET", "/health")[1]
        if (health["running"], health["waiting"]) == (2, 1):
            break
        time.sleep(0.02)
    assert (health["running"], health["waiting"]) == (2, 1)
    for connection in held:
        connection.close()
    _wait_until_idle(rambling)
    assert [rambling.metric(name) for name in names] == [before[0] + 3, before[1], before[2]]


def test_one_whose_time_ends_in_the_queue_is_told_then(endless: Path) -> None:
    """Not when a place is free, which may be long after."""
    on = open_session(endless)
    form = conversation(on.tokenizer, None)
    prompt = tuple(form.prompt([Message("user", "x")]))
    told: queue.Queue[Event] = queue.Queue()
    with Engine(on.decoder, on.tokenizer, places=1) as engine:
        first = engine.submit(Request(prompt, Sampling(16_000, temperature=0.0)), lambda event: None)
        second = Request(prompt, Sampling(8, temperature=0.0), seconds=0.05)
        engine.submit(second, told.put)
        assert told.get(timeout=60).finish == "timeout"
        assert engine.running == 1, "the first goes on"
        assert (engine.waiting, engine.statistics.late, engine.statistics.finished) == (0, 1, 0)
        first.cancel()


def test_a_client_that_never_reads_is_cut_off(rambling: Running) -> None:
    """It asks for more than the buffers hold and takes nothing: its connection ends, others are served.

    All that it asks is sent at once: what the server has read to the end ends by no reset of the kernel's own.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    held.connect(("127.0.0.1", rambling.port))
    held.settimeout(60)
    ask = b"GET /page/chat.js HTTP/1.1\r\nhost: localhost\r\n\r\n"
    ended = select.poll()
    ended.register(held, 0)  # hang-ups and errors only
    held.sendall(ask * 1000)
    assert ended.poll(60_000), "the connection is still there"
    assert rambling.call("GET", "/health")[0] == 200
    held.close()


def test_too_many_at_once_are_told_in_the_usual_shape() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def both() -> None:
        scope = {"type": "http", "method": "GET", "path": "/health", "headers": [(b"host", b"localhost")]}
        door = Door(app, Limits(requests=1))
        first = asyncio.ensure_future(door(scope, receive, send))
        await asyncio.sleep(0)
        await door(scope, receive, send)
        first.cancel()

    asyncio.run(both())
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["code"] == "overloaded"


def test_others_are_answered_while_a_prompt_is_rendered(
    opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that computes for long holds up its own request and nobody else's."""
    from httpx import ASGITransport, AsyncClient

    begun, go_on = threading.Event(), threading.Event()

    def slow(self: Conversation, messages: Any) -> list[int]:
        begun.set()
        assert go_on.wait(60)
        return [5]

    monkeypatch.setattr(Conversation, "prompt", slow)

    async def ask(app: Any) -> tuple[int, int]:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://localhost") as client:
            asked = asyncio.ensure_future(
                client.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 2}, timeout=60)
            )
            while not begun.is_set():
                await asyncio.sleep(0.01)
            health = (await client.get("/health")).status_code
            go_on.set()
            return health, (await asked).status_code

    with Engine(opened.decoder, opened.tokenizer, places=1) as engine:
        app = create_app(Served("small", engine, conversation(opened.tokenizer, None), Limits()))
        assert asyncio.run(asyncio.wait_for(ask(app), 60)) == (200, 200)


def test_a_client_that_sends_slowly_holds_up_nobody(server: Running) -> None:
    held = socket.create_connection(("127.0.0.1", server.port))
    held.sendall(head(900) + b"{")
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})[0] == 200
    held.close()


SLOW = {
    "nothing": b"",
    "half a head": b"POST /v1/completions HTTP/1.1\r\nhost: loc",
    "half a body": head(900) + b"{",
}


def test_slow_clients_are_dropped(checkpoint: Path) -> None:
    """However slowly a request comes, a byte at a time included, its connection ends and others are served."""
    with served(checkpoint, ["--patience", "1.5"]) as running:
        held = {what: socket.create_connection(("127.0.0.1", running.port)) for what in SLOW}
        held["after an answer"] = socket.create_connection(("127.0.0.1", running.port))
        held["after an answer"].sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200 OK" in held["after an answer"].recv(4096)
        for what, sent in SLOW.items():
            held[what].sendall(sent)
        open_still = dict(held)
        until = time.monotonic() + 60
        while open_still and time.monotonic() < until:
            for what, connection in list(open_still.items()):
                try:  # a byte now and then, so that nothing looks idle
                    connection.sendall(b"a")
                    connection.settimeout(0.3)
                    if not _alive(connection):
                        del open_still[what]
                except OSError:
                    del open_still[what]
        assert not open_still
        assert running.post("/v1/completions", {"prompt": "x", "max_tokens": 2})[0] == 200


def _alive(connection: socket.socket) -> bool:
    """Whether the other side has not closed; what it said before is read."""
    try:
        while data := connection.recv(4096):
            assert data.startswith(b"HTTP/1.1 4") or b"408" in data or b"{" in data
        return False
    except TimeoutError:
        return True


def test_a_client_that_does_not_read_is_dropped() -> None:
    """The door waits for a client to take a message as long as it may, then gives the connection up."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [(b"host", b"localhost")]}
    door = Door(app, Limits(send_seconds=0.05))
    with pytest.raises(OSError, match="does not read"):
        asyncio.run(door(scope, receive, never))
