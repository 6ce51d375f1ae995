"""The door: who may come in, and how much they may bring. Plain ASGI, before anything is parsed."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from loom.serve.protocol import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "testserver"})
OPEN = frozenset({"/health", "/", "/page/chat.css", "/page/chat.js"})  # hold nothing of the model


@dataclass(frozen=True)
class Limits:
    """`token`: what clients must bring; None accepts any (loopback only). Bytes and seconds."""

    token: str | None = None
    loopback: bool = True
    body: int = 4_000_000
    head_seconds: float = 30.0
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    request_seconds: float = 600.0
    new_tokens: int = 4096
    text_prompts: int = 16
    requests: int = 1024


class Door:
    """Checks host, key, type and size of a request, and that a client neither sends nor reads too slowly.

    On loopback the Host header must name this machine (a web page elsewhere could otherwise have its own
    name resolve to it), and a POST must say that it is JSON, which no page may send across origins
    without asking first.
    """

    def __init__(self, app: App, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            self._admit(scope, headers)
            if self.inside >= self.limits.requests:
                what = f"{self.inside} requests are being answered or waiting; try again later."
                raise ApiError(503, what, "server_error", "overloaded")
        except ApiError as error:
            await _answer(send, error)
            return
        self.inside += 1
        try:
            body = await self._body(receive, headers) if scope["method"] == "POST" else b""
            await self.app(scope, _replay(body, receive), self._timed(send))
        except ApiError as error:
            await _answer(send, error)
        finally:
            self.inside -= 1

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        host = headers.get("host", "").rsplit(":", 1)[0] if "]" not in headers.get("host", "") else ""
        host = host or headers.get("host", "").split("]")[0] + "]"
        if self.limits.loopback and host not in LOOPBACK:
            raise ApiError(403, f"This server answers on this machine only, not as {host!r}.", "forbidden")
        if self.limits.token is not None and scope["path"] not in OPEN:
            given = headers.get("authorization", "")
            expected = f"Bearer {self.limits.token}"
            if not hmac.compare_digest(given.encode(), expected.encode()):
                raise ApiError(
                    401,
                    "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
                    "invalid_request_error",
                    "invalid_api_key",
                )
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").split(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(
                    415, f"Send JSON as application/json, not {kind or 'nothing'!r}.", "invalid_request_error"
                )

    async def _body(self, receive: Receive, headers: dict[str, str]) -> bytes:
        most = self.limits.body
        stated = headers.get("content-length", "0")
        too_long = ApiError(413, f"The body is over {most:,} bytes.", "invalid_request_error", "too_large")
        if stated.isdigit() and int(stated) > most:
            raise too_long
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "The client left before its request was whole.", "disconnected")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_long
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408,
                f"The request was not whole after {self.limits.body_seconds:g} seconds.",
                "invalid_request_error",
            ) from None

    def _timed(self, send: Send) -> Send:
        """A client that does not read what it is sent is dropped."""

        async def timed(message: Message) -> None:
            try:
                async with asyncio.timeout(self.limits.send_seconds):
                    await send(message)
            except TimeoutError:
                raise OSError("the client does not read") from None

        return timed


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body again, then whatever comes next: that the client left."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def _answer(send: Send, error: ApiError) -> None:
    body = json.dumps(error.body()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
