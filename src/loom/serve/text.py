"""From tokens to text as it arrives: whole characters, and nothing a stop string may still take back."""

from __future__ import annotations

from collections.abc import Sequence

from loom.errors import LoomError
from loom.tokens.tokenizer import Tokenizer


class TextStream:
    """Push tokens, get text that is final.

    Text ends just before the earliest stop string. A tail that could be the beginning of one is held
    back until the next tokens decide.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = tokenizer.stream()
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False
        self.text = ""
        """All that was given out so far."""

    def push(self, token: int) -> str:
        """The text that becomes final with `token`; `stopped` is set when a stop string is complete."""
        return "" if self.stopped else self._take(self._decoder.push(token))

    def finish(self) -> str:
        """What is left when no more tokens come."""
        if self.stopped:
            return ""
        piece = self._take(self._decoder.finish())
        rest, self._held = self._held, ""
        self.text += rest
        return piece + rest

    def _take(self, piece: str) -> str:
        pending = self._held + piece
        found = [at for stop in self._stops if (at := pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            final, self._held = pending[: min(found)], ""
        else:
            keep = held_back(pending, self._stops)
            final, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += final
        return final


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which some stop string begins."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def require_utf8(text: str, what: str) -> str:
    """`text`, unless bytes that are no UTF-8 came as halves of characters, as arguments do: a `LoomError`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LoomError(f"{what} is not UTF-8 (at character {error.start}): convert it first.") from None
    return text
