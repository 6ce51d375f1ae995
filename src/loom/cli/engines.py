"""The flags that say where tasks run, the same for every verb that has workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loom.errors import LoomError

if TYPE_CHECKING:
    from loom.engine import Engine

EngineName = Annotated[str, typer.Option("--engine", help="Where tasks run: local, or ray (a cluster).")]
Address = Annotated[
    str, typer.Option("--address", help="The Ray cluster: auto, HOST:PORT, or local (one of its own).")
]
Workers = Annotated[int | None, typer.Option("--workers", help="Workers; by default every core there is.")]


def choose(engine: str, workers: int | None, address: str = "auto") -> Engine:
    """The engine of that name. Raises `LoomError` for another name, and where no cluster answers."""
    if workers is not None and workers < 1:
        raise LoomError(f"--workers is {workers}; it must be at least 1.")
    match engine:
        case "local":
            from loom.engine import LocalEngine

            return LocalEngine(workers)
        case "ray":
            from loom.cluster import RayEngine

            return RayEngine(address, workers)
        case _:
            raise LoomError(f"There is no engine {engine!r}; the engines are: local, ray.")
