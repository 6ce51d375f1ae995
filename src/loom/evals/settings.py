"""What an evaluation is asked for, and what its results are written with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.console import console
from loom.evals.contamination import Seen
from loom.evals.subject import Subject


@dataclass(frozen=True)
class EvalRecipe:
    """What to measure. `tasks` need `data`, the folder with their rows; `text` are folders or files."""

    tasks: tuple[str, ...] = ()
    data: Path | None = None
    text: tuple[Path, ...] = ()
    text_split: str | None = None
    limit: int | None = None
    """Rows of each task (and subject), or documents of each source, from the start; None for all."""
    sample: int | None = None
    """Rows of each task drawn with a fixed seed."""
    split: str | None = None
    """The split to read in place of the protocol's."""
    skip_bad: bool = False
    token_budget: int | None = None
    """Tokens in a batch, by default what suits the device; the results do not depend on it."""
    max_length: int | None = None
    """Context in tokens, at most the model's."""
    seed: int = 0
    pmi: bool = False
    """Score continuations after "Answer:" alone as well, for tasks whose protocol does not."""
    chat: bool = False
    """Written answers: prompts in the chat format, for a tuned model."""
    judges: tuple[str, ...] = ()
    """Who judges written answers, TASK=JUDGE or a JUDGE for all that take its kind: replay:FILE, model:FOLDER,
    endpoint:URL#MODEL, classifier:FOLDER."""
    max_new_tokens: int | None = None
    conversations: Path | None = None
    """A folder of `loom prepare sft --held-out N`: held-out answers, whether answers end, probes."""
    pairs: Path | None = None
    """A folder of `loom prepare dpo --held-out N`: preference accuracy."""
    present: bool = False
    """Leave out tasks whose rows are not there, and written ones without a judge; say which."""
    use_cache: bool = True


def length(subject: Subject, recipe: EvalRecipe) -> int:
    """Tokens of context that an evaluation uses."""
    return min(recipe.max_length or subject.max_length, subject.max_length)


def refused(name: str, seen: Seen) -> dict[str, Any]:
    what = f"{seen.prompts:,} of its prompts are" if seen.prompts else "its own rows are"
    console.warn(f"{name}: no figure, {what} in what the model was trained on ({seen.where}).")
    return {"n": 0, "refused": f"{what} in the training data", "seen_prompts": seen.prompts}


def clean(value: Any) -> Any:
    """NaN, which JSON does not have, as None."""
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
