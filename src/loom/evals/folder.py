"""An evaluation's folder before it is written anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loom import artifact
from loom.errors import LoomError
from loom.evals.written.schemas import ANNOTATIONS

WRITES = (ANNOTATIONS, "alpaca_eval.json", "alpaca_eval.jsonl", "results.json")
"""Files of an evaluation that may have the name of one to be judged by or to be judged."""


def discard(out: Path) -> None:
    """Take an earlier evaluation away, its rows and sums too: beside another model's figures they would pass for
    that model's. Only what its manifest lists goes. Raises `LoomError` where `out` holds something else."""
    artifact.refuse_other(out, "evaluation")
    try:
        listed = [output.path for output in artifact.load(out).outputs]
    except LoomError:  # none there, or one that was changed by hand
        listed = []
    listed.sort(key=lambda name: name != "results.json")  # what makes it an evaluation goes first
    for name in listed:
        try:
            (out / Path(name).name).unlink(missing_ok=True)
        except OSError as error:
            raise artifact.explain_os_error(error, out / name) from error
    artifact.discard(out, "evaluation")


def refuse_emptying(out: Path, inputs: Sequence[Path]) -> None:
    """Raise `LoomError` where what is to be read lies among an earlier evaluation's files, which are replaced."""
    for path in inputs:
        if path.resolve().parent == out.resolve() and (
            path.name in WRITES or (out / artifact.MANIFEST).exists()
        ):
            raise LoomError(f"{path} lies in --out {out}, whose files are replaced: name another folder.")
