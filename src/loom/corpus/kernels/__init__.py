"""Compiled loops over text bytes: no policy in here, only counts and positions.

Every kernel takes the UTF-8 buffer and the offsets of a text column, releases the GIL, and is compiled
once a machine (Numba's cache).

Numba starts by importing every package that announces an extension of it (awkward, which comes with
gigatoken) and SciPy for its matrix products: half a second of a command's life for what no kernel uses.
"""

from __future__ import annotations

import sys


def _start_light() -> None:
    """Have Numba look for no extensions and no BLAS in this process, unless it already has."""
    from numba.core import entrypoints

    if hasattr(entrypoints, "_already_initialized"):
        entrypoints._already_initialized = True
    if "scipy.linalg" not in sys.modules and "numba.np.arraymath" not in sys.modules:
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]
        try:
            import numba.np.arraymath  # noqa: F401
        finally:
            del sys.modules["scipy.linalg"]


_start_light()
