"""Continuous batching: requests join and leave the batch between two steps.

One thread owns the model. At each step it takes in what is waiting, feeds a piece of one new prompt,
and gives every running request its next token in one pass. What a request gets depends on its own
prompt, settings and seed, not on who else is in the batch. With `lookup`, the tokens that followed
the last n-gram's previous occurrence are tried in the same pass (`loom.serve.lookup`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from loom.errors import LoomError
from loom.model.sampling import Sampling
from loom.serve.decoder import PIECE, ROWS, SHORT, Cache, Decoder, Reading
from loom.serve.draw import Logits, draw, log_norm
from loom.serve.lookup import propose
from loom.serve.text import TextStream
from loom.tokens.tokenizer import Tokenizer

Finish = Literal["", "stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it. `top` asks for that many alternatives a token; `seconds` limits it;
    `whole` asks for one event at the end."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    top: int = 0
    lookup: int = 0
    seconds: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class Token:
    """A token, its log-probability under the model itself (nats), and the most likely ones."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What a step brought: text that is final, the tokens decoded, and why it ended, if it did."""

    text: str
    tokens: tuple[Token, ...]
    finish: Finish = ""
    error: str = ""


@dataclass
class Ticket:
    """A request on its way. `deliver` is called in the engine's thread with each event."""

    request: Request
    deliver: Callable[[Event], None]
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    _wake: Callable[[], None] = lambda: None

    @property
    def deadline(self) -> float:
        """When its time is over, by `time.monotonic`."""
        return self.arrived + (float("inf") if self.request.seconds is None else self.request.seconds)

    def tell(self, event: Event) -> None:
        """Deliver an event, if anyone still waits for it."""
        try:
            self.deliver(event)
        except Exception:  # whoever waited is gone
            self.cancelled = True

    def cancel(self) -> None:
        """Stop it at the next step and free its place; no event comes after that."""
        self.cancelled = True
        self._wake()


@dataclass
class _Running:
    ticket: Ticket
    cache: Cache
    text: TextStream
    randomness: torch.Generator
    tokens: list[int]  # the prompt and all that was decoded
    prompt: int
    first: bool = True
    held: list[Event] = field(default_factory=list)
    reading: Reading | None = None  # a piece of the prompt that some layers have seen


@dataclass
class Statistics:
    """Counts since the start, for /metrics and /stats."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    late: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    tried: int = 0
    accepted: int = 0
    first_token_seconds: float = 0.0
    busy_seconds: float = 0.0


class Full(LoomError):
    """The queue is full; try again later."""


class Engine:
    """Answers requests on `model` with at most `places` at once and `queue` waiting. Use as a context."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, places: int = 16, queue: int = 256) -> None:
        self.decoder, self.tokenizer = decoder, tokenizer
        self.places, self.queue = places, queue
        self.statistics = Statistics()
        self._arrivals: deque[Ticket] = deque()
        self._running: list[_Running] = []
        self._changed = threading.Condition()
        self._closing: Literal["", "drain", "now"] = ""
        self._thread = threading.Thread(target=self._run, name="loom-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._arrivals)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request, deliver: Callable[[Event], None]) -> Ticket:
        """Queue a request. Raises `Full`, and `LoomError` for a prompt that is empty or over the context."""
        context = self.decoder.config.context_length
        if not request.prompt:
            raise LoomError("The prompt is empty.")
        if len(request.prompt) >= context:
            raise LoomError(
                f"The prompt has {len(request.prompt):,} tokens; the model's context holds {context:,}, "
                f"answer included."
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.decoder.config.vocab_size:
            raise LoomError(
                f"The prompt has a token outside the model's {self.decoder.config.vocab_size:,} entries."
            )
        ticket = Ticket(request, deliver, _wake=self._notify)
        with self._changed:
            if self._closing:
                raise Full("The server is shutting down.")
            if len(self._arrivals) >= self.queue:
                raise Full(f"{self.queue} requests are waiting already; try again later.")
            self._arrivals.append(ticket)
            self.statistics.requests += 1
            self._changed.notify()
        return ticket

    def close(self, drain: bool = True, seconds: float | None = None) -> None:
        """Stop. With `drain`, answer what was taken in first (for at most `seconds`)."""
        with self._changed:
            self._closing = "drain" if drain else "now"
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            with self._changed:
                self._closing = "now"
                self._changed.notify()
            self._thread.join(30)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        while self._admit():
            begun = time.monotonic()
            self._guarded(self._prefill)
            self._guarded(self._step)
            self.statistics.busy_seconds += time.monotonic() - begun
        for running in self._running:
            self._send(running, Event("", (), "cancelled"))
        while self._arrivals:
            self._arrivals.popleft().tell(Event("", (), "cancelled"))

    def _guarded(self, work: Callable[[], None]) -> None:
        """A failure ends the requests it hit, not the server."""
        try:
            work()
        except Exception as error:
            for running in list(self._running):
                self._fail(running, error)

    def _admit(self) -> bool:
        """Drop what was cancelled or is late, let arrivals in, wait if nothing is to do. False: over."""
        with self._changed:
            while True:
                self._drop()
                if self._closing == "now":
                    return False
                while self._arrivals and len(self._running) < self.places:
                    self._enter(self._arrivals.popleft())
                if self._running:
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _drop(self) -> None:
        now = time.monotonic()
        for running in [r for r in self._running if r.ticket.cancelled or now > r.ticket.deadline]:
            self._running.remove(running)
            if running.ticket.cancelled:
                self.statistics.cancelled += 1
            else:
                self.statistics.late += 1
                self._send(running, Event(running.text.finish(), (), "timeout"))
        kept = deque[Ticket]()
        for ticket in self._arrivals:
            if ticket.cancelled:
                self.statistics.cancelled += 1
            elif now > ticket.deadline:
                self.statistics.late += 1
                ticket.tell(Event("", (), "timeout"))
            else:
                kept.append(ticket)
        self._arrivals = kept

    def _enter(self, ticket: Ticket) -> None:
        request = ticket.request
        self.statistics.prompt_tokens += len(request.prompt)
        if request.sampling.max_new_tokens == 0:
            self.statistics.finished += 1
            ticket.tell(Event("", (), "length"))
            return
        self._running.append(
            _Running(
                ticket,
                self.decoder.cache(),
                TextStream(self.tokenizer, request.stops),
                torch.Generator().manual_seed(request.sampling.seed),
                list(request.prompt),
                len(request.prompt),
            )
        )

    def _prefill(self) -> None:
        """Read short prompts, up to `ROWS` tokens in one pass, and some layers of the oldest long one.

        Others wait no longer for it than for `ROWS` tokens through all layers.
        """
        left, short, long = ROWS, list[_Running](), list[_Running]()
        for running in self._running:
            if running.cache.length >= running.prompt:
                continue
            if running.prompt > SHORT:
                long.append(running)
            elif running.prompt <= left:
                short.append(running)
                left -= running.prompt
        if short:
            logits = self.decoder.step([(r.cache, r.tokens) for r in short], last=True)
            for running, row in zip(short, logits, strict=True):
                self._take_guarded(running, [], row[None])
        for running in long[:1]:
            if running.reading is None:
                piece = running.tokens[running.cache.length : running.prompt][:PIECE]
                running.reading = Reading(self.decoder, running.cache, piece)
            layers = self.decoder.config.n_layers * ROWS // running.reading.count
            row = running.reading.go_on(max(1, layers))
            if row is None:
                continue
            running.reading = None
            if running.cache.length == running.prompt:
                self._take_guarded(running, [], row[None])

    def _step(self) -> None:
        """One pass for every request whose prompt is read."""
        ready = [r for r in self._running if r.cache.length >= r.prompt]
        if not ready:
            return
        tries = [self._lookup(r) for r in ready]
        logits = self.decoder.step(
            [(r.cache, [r.tokens[-1], *tried]) for r, tried in zip(ready, tries, strict=True)]
        )
        self.statistics.steps += 1
        start = 0
        for running, tried in zip(ready, tries, strict=True):
            self._take_guarded(running, tried, logits[start : start + 1 + len(tried)])
            start += 1 + len(tried)

    def _lookup(self, running: _Running) -> list[int]:
        """Tokens to try: what followed the latest earlier occurrence of the last `NGRAM` tokens."""
        request = running.ticket.request
        if not request.lookup:
            return []
        made = len(running.tokens) - running.prompt
        left = min(
            request.lookup,
            request.sampling.max_new_tokens - made - 1,
            self.decoder.config.context_length - len(running.tokens) - 1,
        )
        return propose(running.tokens, left) if left > 0 else []

    def _take_guarded(self, running: _Running, tried: Sequence[int], logits: Logits) -> None:
        """What goes wrong in one request's draw ends that request alone."""
        try:
            self._take(running, tried, logits)
        except Exception as error:
            self._fail(running, error)

    def _fail(self, running: _Running, error: Exception) -> None:
        if running in self._running:
            self._running.remove(running)
        self.statistics.failed += 1
        self._send(running, Event("", (), "error", f"{type(error).__name__}: {error}"))

    def _take(self, running: _Running, tried: Sequence[int], logits: Logits) -> None:
        """Draw from logits [1 + tried, V] as long as each draw is the next tried token; send what came."""
        request = running.ticket.request
        sampling = request.sampling
        taken: list[Token] = []
        text, finish = "", ""
        for row in range(len(tried) + 1):
            token = draw(logits[row], running.tokens, sampling, running.randomness)
            if token in sampling.stop_ids:
                finish = "stop"
                break
            running.tokens.append(token)
            taken.append(self._token(token, logits[row], request.top))
            text += running.text.push(token)
            if running.text.stopped:
                finish = "stop"
                break
            made = len(running.tokens) - running.prompt
            full = len(running.tokens) >= self.decoder.config.context_length
            if made >= sampling.max_new_tokens or full:
                finish = "length"
                break
            if row < len(tried) and tried[row] != token:
                break
        if running.first and taken:
            running.first = False
            self.statistics.first_token_seconds += time.monotonic() - running.ticket.arrived
        self.statistics.tried += len(tried)
        self.statistics.accepted += max(0, len(taken) - 1)
        self.statistics.tokens += len(taken)
        running.cache.cut(len(running.tokens) - 1)
        if finish:
            text += running.text.finish()
            self._running.remove(running)
            self.statistics.finished += 1
        self._send(
            running, Event(text, tuple(taken), "stop" if finish == "stop" else "length" if finish else "")
        )

    def _token(self, token: int, logits: Logits, top: int) -> Token:
        norm = log_norm(logits)
        best: tuple[tuple[int, float], ...] = ()
        if top:
            places = np.argsort(-logits, kind="stable")[:top]
            best = tuple((int(i), float(logits[i]) - norm) for i in places)
        return Token(token, float(logits[token]) - norm, best)

    def _send(self, running: _Running, event: Event) -> None:
        if running.ticket.cancelled:
            return
        if running.ticket.request.whole:
            running.held.append(event)
            if not event.finish:
                return
            text = "".join(held.text for held in running.held)
            event = replace(event, text=text, tokens=tuple(t for held in running.held for t in held.tokens))
        running.ticket.tell(event)
