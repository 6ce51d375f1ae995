"""Loom: one framework for a whole language model, from raw documents to an answer and back."""

from loom.errors import LoomError

__version__ = "0.1.0"
__all__ = ["LoomError", "__version__"]
