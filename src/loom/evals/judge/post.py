"""One request to a server that may do anything: answer never, drip, redirect, or send without end."""

from __future__ import annotations

import http.client
import queue
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

LARGEST = 1 << 20  # bytes of an answer; a verdict is a letter
CHUNK = 1 << 14


class TooLarge(Exception):
    """An answer of more than `LARGEST` bytes."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirection is an error of its own number: followed, the key in the headers would go where it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_Stay)


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> bytes:
    """The whole answer. Raises `TimeoutError` where it is not there after `seconds`, `TooLarge`, and what
    `urllib.request` raises."""
    request = urllib.request.Request(url, body, headers=dict(headers))
    return within(seconds, lambda: _read(request, time.monotonic() + seconds))


def _read(request: urllib.request.Request, end: float) -> bytes:
    parts, size = [], 0
    with OPENER.open(request, timeout=max(0.01, end - time.monotonic())) as response:
        stated = response.headers.get("Content-Length", "")
        whole = int(stated) if stated.isdigit() else None
        while size != whole and (part := response.read1(CHUNK)):
            parts.append(part)
            size += len(part)
            if size > LARGEST:
                raise TooLarge(f"longer than {LARGEST:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError
    if whole is not None and size < whole:
        raise http.client.IncompleteRead(b"", whole - size)
    return b"".join(parts)


def within(seconds: float, work: Callable[[], bytes]) -> bytes:
    """`work()`, or `TimeoutError`: a socket's own timeout begins anew with every byte, those of the headers too, so the
    work is done in a thread that is not waited for any longer."""
    box: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            box.put(work())
        except Exception as error:
            box.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = box.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise found
    return found
