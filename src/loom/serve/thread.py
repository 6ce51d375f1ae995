"""The thread on the chat page: an answer's spans in the training tokens, from an index, if there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tracer = Callable[[str, str], dict[str, Any]]
"""(answer, prompt) -> what `loom trace --json` prints, the documents' metadata and rules included."""


def tracer(index: Path, run: Path | None) -> Tracer:
    """Open an index once and trace texts in it, one at a time."""
    from loom.trace.corpus import add_corpus
    from loom.trace.query import open_index
    from loom.trace.trace import trace

    opened, turn = open_index(index), threading.Lock()

    def find(text: str, prompt: str) -> dict[str, Any]:
        with turn:
            found = trace(opened, text, prompt=prompt, run=run)
            add_corpus(opened, found)
            return found

    return find
