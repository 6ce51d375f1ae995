"""`loom serve`: a model behind an OpenAI-compatible server on this machine."""

from __future__ import annotations

import ipaddress
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn

from loom.chat.prompts import conversation
from loom.chat.template import chat_template
from loom.console import console
from loom.errors import LoomError
from loom.serve.api import Served, create_app
from loom.serve.complete import open_session
from loom.serve.engine import Engine
from loom.serve.limits import Limits
from loom.serve.patience import patient
from loom.serve.thread import Tracer, tracer
from loom.train.opening import model_folder

KEY = "LOOM_API_KEY"


@dataclass(frozen=True)
class Serve:
    """How to serve. `key` is what clients must bring; needed to bind elsewhere than to loopback."""

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    dtype: str = "float32"
    places: int = 16
    queue: int = 256
    key: str | None = None
    index: Path | None = None
    run: Path | None = None
    limits: Limits = field(default_factory=Limits)


def serve(recipe: Serve) -> None:
    """Serve until stopped; SIGTERM and Ctrl-C answer what was taken in first.

    Raises `LoomError` for a model that is none, an address that needs a key, or a port that is taken.
    """
    loopback = is_loopback(recipe.host)
    key = recipe.key or os.environ.get(KEY)
    if not loopback and not key:
        raise LoomError(
            f"{recipe.host} can be reached from other machines, so clients must bring a key: set {KEY}, or "
            f"leave --host at 127.0.0.1."
        )
    folder = model_folder(recipe.model)
    session = open_session(recipe.model, recipe.dtype)
    chat = conversation(session.tokenizer, chat_template(folder.path))
    trace = open_tracer(recipe.index, recipe.run)
    name = recipe.name or model_name(recipe.model)
    with Engine(session.decoder, session.tokenizer, recipe.places, recipe.queue) as engine:
        limits = replace(recipe.limits, token=key, loopback=loopback)
        app = create_app(Served(name, engine, chat, limits, trace))
        address = f"[{recipe.host}]" if ":" in recipe.host else recipe.host
        console.say(f"{name}: {session.decoder.config.parameters:,} parameters, {recipe.dtype}; {chat.note}")
        console.say(f"chat page  http://{address}:{recipe.port}/")
        console.say(f"API        http://{address}:{recipe.port}/v1")
        config = uvicorn.Config(
            app,
            host=recipe.host,
            port=recipe.port,
            http=patient(recipe.limits.head_seconds, recipe.limits.send_seconds),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=30,
            limit_concurrency=4 * limits.requests,  # connections, idle ones too; the door answers before
        )
        try:
            _Server(config).run()
        except SystemExit:
            raise LoomError(
                f"Cannot listen on {recipe.host}:{recipe.port}: the port is taken or not allowed. "
                f"Give another --port."
            ) from None
        engine.close(drain=True, seconds=30)


class _Server(uvicorn.Server):
    """Ends with success after a signal, which uvicorn itself would raise again at its end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def model_name(path: Path) -> str:
    """A run's name, also when a checkpoint inside it is meant."""
    resolved = path.resolve()
    return resolved.parent.parent.name if resolved.parent.name == "checkpoints" else resolved.name


def open_tracer(index: Path | None, run: Path | None) -> Tracer | None:
    """The trace over an index, if one was given."""
    return None if index is None else tracer(index, run)
