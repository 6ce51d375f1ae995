"""Connections whose request does not come, or whose answer is not read, are not waited for.

uvicorn bounds the pause between two requests and nothing before the first one is whole; a client that sends
a byte a minute would hold its connection for good, and a thousand of them the server. A connection that is
closed while data are still to be sent stays open until they are: for good, where nobody reads them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient(seconds: float, unread: float) -> type[asyncio.Protocol]:
    """An HTTP protocol that ends a connection whose next request has no whole head after `seconds`, and one
    that does not take what is sent for `unread` seconds."""

    class Patient(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None
        _full: asyncio.TimerHandle | None = None
        _look: asyncio.TimerHandle | None = None
        _closed = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()
            self._look = self.loop.call_later(unread, self._look_at)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._full = self.loop.call_later(unread, self._reset)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._full is not None:
                self._full.cancel()

        def _look_at(self) -> None:
            """Twice seen closed, and still there: what is left of it is not read."""
            if self._closed:
                self._reset()
                return
            self._closed = self.transport.is_closing()
            self._look = self.loop.call_later(unread, self._look_at)

        def _reset(self) -> None:
            """End it for both sides now: else the kernel keeps what it holds until the other side reads."""
            held = self.transport.get_extra_info("socket")
            if held is not None:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._answering:
                self._stop()
            elif self._waiting is None:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            for timer in (self._full, self._look):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        @property
        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(seconds, self._late)

        def _stop(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _late(self) -> None:
            self._waiting = None
            if not self._answering:
                self.transport.abort()

    return Patient
