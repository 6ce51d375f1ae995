"""Train, save, resume and generate where nothing but torch, numpy and what torch needs can be imported.

python -m tests.train.bare TOKENS OUT
"""

import importlib
import importlib.abc
import importlib.metadata
import pkgutil
import re
import sys
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(distribution: str) -> set[str]:
    """Top-level modules of a distribution and of all that it needs."""
    open_, seen = {distribution}, set()
    while open_:
        name = open_.pop()
        seen.add(name)
        for line in importlib.metadata.requires(name) or ():
            other = plain(re.match(r"[\w.-]+", line)[0])  # type: ignore[index]
            if "extra ==" not in line and other not in seen:
                try:
                    importlib.metadata.distribution(other)
                except importlib.metadata.PackageNotFoundError:
                    continue
                open_.add(other)
    tops = importlib.metadata.packages_distributions()
    return {top for top, owners in tops.items() if seen & {plain(owner) for owner in owners}}


class Walls(importlib.abc.MetaPathFinder):
    """Every other package is not installed."""

    def __init__(self, allowed: set[str]) -> None:
        self.allowed = allowed
        self.refused: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        top = name.partition(".")[0]
        if top in self.allowed or top in sys.stdlib_module_names or top.startswith("_sysconfigdata"):
            return PathFinder.find_spec(name, path, target)
        self.refused.add(top)
        return None


def main(tokens: Path, out: Path) -> None:
    walls = Walls(needed("torch") | needed("numpy") | {"loom", "tests", "torchgen"})
    for name in list(sys.modules):  # what the interpreter's start brought along
        if name.partition(".")[0] not in walls.allowed | set(sys.stdlib_module_names) | {"__main__"}:
            del sys.modules[name]
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, walls]
    rooms = (
        "loom.model",
        "loom.train",
        "loom.machine",
        "loom.chat.packing",
        "loom.tokens.order",
        "loom.tokens.shards",
    )
    for room in rooms:
        module = importlib.import_module(room)
        for item in pkgutil.iter_modules(getattr(module, "__path__", [])):
            importlib.import_module(f"{room}.{item.name}")
    from loom.model.generate import generate
    from loom.model.presets import ModelRecipe
    from loom.model.sampling import Sampling
    from loom.train.checkpoint import load_model
    from loom.train.config import DataConfig, RunConfig, TrainConfig
    from loom.train.loop import train

    shape = ModelRecipe(d_model=32, n_layers=1, n_heads=2, mlp_width=64, context_length=32, tied=True)
    for steps in (2, 4):
        settings = TrainConfig(
            steps=steps, batch_tokens=128, micro_batch=4, compile=False, log_every=1, threads=1
        )
        last = train(RunConfig(model=shape, data=DataConfig(tokens=str(tokens)), train=settings), out)
    model, _ = load_model(last)
    assert len(generate(model, [[5, 6]], Sampling(max_new_tokens=3))[0].tokens) == 3
    present = {name.partition(".")[0] for name in sys.modules}
    assert not present & walls.refused
    print("refused:", *sorted(walls.refused))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
