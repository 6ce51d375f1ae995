"""Loom: one framework for a whole language model, from raw documents to an answer and back.

`loom.load(path)` gives a model and its tokenizer; every stage is a function of its room.
"""

from __future__ import annotations

import importlib
from typing import Any

from loom.errors import LoomError
from loom.version import VERSION as __version__

__all__ = ["LoomError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # `load` needs torch, and most of Loom does not: it is imported when it is asked for.
    if name == "load":
        return importlib.import_module("loom.library").load
    raise AttributeError(f"module 'loom' has no attribute {name!r}")
