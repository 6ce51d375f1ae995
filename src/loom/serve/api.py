"""The OpenAI-compatible application: models, chat and text completions, health, metrics, the chat page."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import ValidationError

from loom.chat.prompts import Conversation
from loom.errors import LoomError
from loom.serve.conversation import parse_messages, reserved
from loom.serve.engine import Engine, Event, Full, Ticket, Token
from loom.serve.engine import Request as Work
from loom.serve.limits import Door, Limits
from loom.serve.metrics import prometheus
from loom.serve.protocol import (
    ApiError,
    ChatRequest,
    Settings,
    TextRequest,
    bad_request,
    chat_logprobs,
    finish_reason,
    text_logprobs,
    usage,
)
from loom.serve.thread import Tracer

T = TypeVar("T")
TRACED = 20_000  # characters of an answer that can be traced at once


@dataclass
class Served:
    """What one server serves."""

    name: str
    engine: Engine
    chat: Conversation
    limits: Limits = field(default_factory=Limits)
    trace: Tracer | None = None
    digest: str = ""
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass
class _Answer:
    """One choice as it arrives: a queue between the engine's thread and the event loop."""

    ticket: Ticket
    events: asyncio.Queue[Event]
    prompt: int


def create_app(served: Served) -> FastAPI:
    """The application. Its engine is closed by whoever made it."""
    app = FastAPI(title="Loom", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_DoorMiddleware, limits=served.limits)

    @app.exception_handler(ApiError)
    async def _shaped(_: Request, error: ApiError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status == 503 else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def _unknown(request: Request, error: Any) -> JSONResponse:
        status = int(error.status_code)
        what = f"There is nothing at {request.method} {request.url.path}."
        return JSONResponse(ApiError(status, what, "invalid_request_error", "not_found").body(), status)

    @app.exception_handler(Exception)
    async def _failed(_: Request, error: Exception) -> JSONResponse:
        what = f"The server failed: {type(error).__name__}."
        return JSONResponse(ApiError(500, what, "server_error").body(), 500)

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = served.engine.alive
        body = {"status": "ok" if alive else "down", "running": served.engine.running}
        return JSONResponse(body | {"waiting": served.engine.waiting}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(prometheus(served.engine), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(served)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _same_model(served, name)
        return _model(served)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = _parse(await request.body(), ChatRequest)
        _same_model(served, asked.model)
        try:
            messages = parse_messages(asked.messages)
            prompt = await _aside(served, served.chat.prompt, messages)
        except LoomError as error:
            raise bad_request(str(error), param="messages") from None
        top = asked.top_logprobs or 0
        answer = _submit(served, asked, prompt, asked.most, top if asked.logprobs else 0)
        shape = _ChatShape(served, bool(asked.logprobs))
        return await _respond(served, request, asked, [answer], shape)

    @app.post("/v1/completions")
    async def text(request: Request) -> Response:
        asked = _parse(await request.body(), TextRequest)
        _same_model(served, asked.model)
        answers: list[_Answer] = []
        try:
            for ids in await _aside(served, _text_prompts, served, asked):
                most = 16 if asked.max_tokens is None else asked.max_tokens
                answers.append(_submit(served, asked, ids, most, asked.logprobs or 0))
        except ApiError:
            for answer in answers:
                answer.ticket.cancel()
            raise
        return await _respond(served, request, asked, answers, _TextShape(served, asked.logprobs is not None))

    @app.get("/")
    async def page() -> Response:
        return _file("index.html", "text/html; charset=utf-8")

    @app.get("/page/{name}")
    async def part(name: str) -> Response:
        kinds = {"chat.css": "text/css; charset=utf-8", "chat.js": "text/javascript; charset=utf-8"}
        if name not in kinds:
            raise ApiError(404, f"There is no {name}.", "invalid_request_error", "not_found")
        return _file(name, kinds[name])

    @app.get("/loom/info")
    async def info() -> dict[str, Any]:
        config = served.engine.decoder.config
        return {
            "model": served.name,
            "context": config.context_length,
            "parameters": config.parameters,
            "reserve": reserved(config.context_length),
            "format": served.chat.note,
            "trace": served.trace is not None,
        }

    @app.post("/loom/trace")
    async def trace(request: Request) -> JSONResponse:
        if served.trace is None:
            raise ApiError(404, "No index was given: loom serve MODEL --index DIR.", "invalid_request_error")
        body = _json(await request.body())
        body = body if isinstance(body, dict) else {}
        wanted, asked = body.get("text"), body.get("prompt", "")
        if not isinstance(wanted, str) or not wanted.strip() or len(wanted) > TRACED:
            raise bad_request(f"text must be 1 to {TRACED:,} characters.", param="text")
        if not isinstance(asked, str) or len(asked) > TRACED:
            raise bad_request(f"prompt must be text of at most {TRACED:,} characters.", param="prompt")
        try:
            return JSONResponse(await asyncio.to_thread(served.trace, wanted, asked))
        except LoomError as error:
            raise bad_request(str(error)) from None

    return app


class _DoorMiddleware(Door):
    """`Door` under the name and signature Starlette adds middleware by."""


def _file(name: str, kind: str) -> Response:
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    content = files("loom.serve").joinpath("page", name).read_bytes()
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(content, media_type=kind, headers=headers)


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "loom"}


def _same_model(served: Served, name: str | None) -> None:
    if name is not None and name != served.name:
        raise ApiError(
            404,
            f"There is no model {name[:80]!r} here; this server serves {served.name!r}.",
            "invalid_request_error",
            "model_not_found",
            "model",
        )


def _json(body: bytes) -> Any:
    try:
        value = json.loads(body.decode("utf-8"))
        if b"\\u" in body:  # an escape may stand for half a character, which no text holds
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeDecodeError as error:
        raise bad_request(f"The body is not UTF-8 (byte {error.start}).") from None
    except UnicodeEncodeError:
        raise bad_request("The body escapes half of a surrogate pair, which is no character.") from None
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The body is not JSON: {error}.") from None


def _parse(body: bytes, kind: type[Any]) -> Any:
    value = _json(body)
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        name = path.split(".")[0]
        if first["type"] == "extra_forbidden":
            raise bad_request(f"Unknown field {path!r}.", "unknown_field", path) from None
        known = {"frequency_penalty", "presence_penalty", "logit_bias", "n", "best_of", "echo", "suffix"}
        if name in known:
            raise bad_request(f"{name!r} is not supported here; leave it out.", "unsupported", name) from None
        raise bad_request(f"{path}: {first['msg']}.", None, path) from None


async def _aside(served: Served, work: Callable[..., T], *given: Any) -> T:
    """What takes time in a thread of its own, so that other clients are answered meanwhile."""
    try:
        async with asyncio.timeout(served.limits.request_seconds):
            return await asyncio.to_thread(work, *given)
    except TimeoutError:
        raise ApiError(504, "Reading the prompt took too long.", "server_error", "timeout") from None


def _text_prompts(served: Served, asked: TextRequest) -> list[list[int]]:
    """The prompts of a text request as ids; empty text begins a document."""
    tokenizer = served.chat.tokenizer
    given = asked.prompt
    many: Sequence[Any] = (
        given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    )
    if not many:
        raise bad_request("The list of prompts is empty; give at least one.", param="prompt")
    if len(many) > served.limits.text_prompts:
        raise bad_request(f"At most {served.limits.text_prompts} prompts in a request.", param="prompt")
    prompts = [
        tokenizer.encode(one).tolist() if isinstance(one, str) else [int(i) for i in one] for one in many
    ]
    return [ids or [tokenizer.eos_id] for ids in prompts]


def _submit(served: Served, asked: Settings, prompt: list[int], most: int | None, top: int) -> _Answer:
    """Hand a prompt to the engine. Over the context is 400, a full queue 503."""
    context = served.engine.decoder.config.context_length
    if len(prompt) + max(1, asked.reserve or 0) > context:
        kept = f", {asked.reserve:,} of them kept for the answer" if asked.reserve else ""
        raise bad_request(
            f"The prompt has {len(prompt):,} tokens; the model's context holds {context:,}, answer included{kept}.",
            "context_length_exceeded",
        )
    room = min(context - len(prompt), served.limits.new_tokens)
    wanted = room if most is None else min(most, room)
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def deliver(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        work = Work(
            tuple(prompt),
            asked.sampling(wanted, secrets.randbits(62), served.chat.stop_ids),
            asked.stops,
            top,
            asked.lookup or 0,
            served.limits.request_seconds,
            not asked.stream,
        )
        ticket = served.engine.submit(work, deliver)
    except Full as error:
        raise ApiError(503, str(error), "server_error", "overloaded") from None
    except LoomError as error:
        raise bad_request(str(error)) from None
    return _Answer(ticket, events, len(prompt))


class _Shape:
    """How an answer looks, whole and in pieces."""

    object = ""
    prefix = ""

    def __init__(self, served: Served, logprobs: bool) -> None:
        self.served, self.logprobs = served, logprobs
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.offsets: dict[int, int] = {}

    def frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": self.served.digest[:16] or None,
            "choices": choices,
        }

    def first(self, index: int) -> dict[str, Any] | None:
        return None

    def piece(self, index: int, event: Event) -> dict[str, Any]:
        raise NotImplementedError

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        raise NotImplementedError

    def choice(self, index: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        raise NotImplementedError


class _ChatShape(_Shape):
    prefix = "chatcmpl"

    def first(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return self.frame("chat.completion.chunk", [_chunk(index, delta, None, None)])

    def piece(self, index: int, event: Event) -> dict[str, Any]:
        delta = {"content": event.text} if event.text or not event.finish else {}
        logprobs = chat_logprobs(list(event.tokens), self.served.chat.tokenizer) if self.logprobs else None
        return self.frame(
            "chat.completion.chunk", [_chunk(index, delta, logprobs, finish_reason(event.finish))]
        )

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self.frame("chat.completion", choices)

    def choice(self, index: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": chat_logprobs(tokens, self.served.chat.tokenizer) if self.logprobs else None,
            "finish_reason": reason,
        }


def _chunk(index: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class _TextShape(_Shape):
    prefix = "cmpl"

    def piece(self, index: int, event: Event) -> dict[str, Any]:
        return self.frame(
            "text_completion",
            [self.choice(index, event.text, list(event.tokens), finish_reason(event.finish))],
        )

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self.frame("text_completion", choices)

    def choice(self, index: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self.logprobs:
            tokenizer, offset = self.served.chat.tokenizer, self.offsets.get(index, 0)
            logprobs = text_logprobs(tokens, tokenizer, offset)
            self.offsets[index] = offset + len(text)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


async def _respond(
    served: Served, request: Request, asked: Settings, answers: list[_Answer], shape: _Shape
) -> Response:
    if asked.stream:
        include = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(
            _stream(served, answers, shape, include),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
    return JSONResponse(await _unless_gone(request, answers, _collect(served, answers, shape)))


async def _unless_gone(
    request: Request, answers: list[_Answer], work: Awaitable[dict[str, Any]]
) -> dict[str, Any]:
    """Await `work`; if the client leaves first, free its places."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    waiting, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ApiError(499, "The client left.", "disconnected")
        return waiting.result()
    finally:
        for task in (waiting, leaving):
            task.cancel()
        for answer in answers:
            answer.ticket.cancel()


async def _collect(served: Served, answers: list[_Answer], shape: _Shape) -> dict[str, Any]:
    choices, made = [], 0
    for index, answer in enumerate(answers):
        text, tokens = "", list[Token]()
        while True:
            event = await answer.events.get()
            _raise_failure(served, event)
            text += event.text
            tokens += event.tokens
            if event.finish:
                break
        made += len(tokens)
        choices.append(shape.choice(index, text, tokens, finish_reason(event.finish)))
    return shape.whole(choices) | {"usage": usage(sum(a.prompt for a in answers), made)}


def _raise_failure(served: Served, event: Event) -> None:
    match event.finish:
        case "error":
            raise ApiError(500, f"The model failed: {event.error}.", "server_error")
        case "timeout":
            seconds = served.limits.request_seconds
            raise ApiError(504, f"The answer took over {seconds:g} seconds.", "server_error", "timeout")
        case "cancelled":
            raise ApiError(503, "The server is shutting down.", "server_error", "shutdown")


async def _stream(
    served: Served, answers: list[_Answer], shape: _Shape, include_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events: pieces of all choices as they come, usage if asked for, and [DONE]."""
    merged: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def forward(index: int, answer: _Answer) -> None:
        while True:
            event = await answer.events.get()
            merged.put_nowait((index, event))
            if event.finish:
                return

    tasks = [asyncio.ensure_future(forward(i, answer)) for i, answer in enumerate(answers)]
    try:
        for index in range(len(answers)):
            if (opening := shape.first(index)) is not None:
                yield _event(opening, include_usage)
        left, made = len(answers), 0
        while left:
            index, event = await merged.get()
            made += len(event.tokens)
            try:
                _raise_failure(served, event)
            except ApiError as error:
                yield _event(error.body(), False)
                break
            if event.text or event.finish or shape.logprobs:
                yield _event(shape.piece(index, event), include_usage)
            left -= bool(event.finish)
        if include_usage:
            closing = shape.piece(0, Event("", ())) | {"choices": []}
            yield _event(closing | {"usage": usage(sum(a.prompt for a in answers), made)}, False)
        yield b"data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        for answer in answers:
            answer.ticket.cancel()


def _event(body: dict[str, Any], null_usage: bool) -> bytes:
    if null_usage:
        body = body | {"usage": None}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
