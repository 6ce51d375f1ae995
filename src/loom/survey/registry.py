"""The analyses there are, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loom.errors import LoomError
from loom.recipe import nearest
from loom.survey.analysis import Analysis
from loom.survey.contamination import Contamination
from loom.survey.counts import Lengths, Summary
from loom.survey.duplicates import Duplicates
from loom.survey.grams import Grams
from loom.survey.people import Demographics, Language, Pii, Toxicity
from loom.survey.search import Search
from loom.survey.web import Dates, Urls

NAMES = (
    "counts", "domains", "schemes", "suffixes", "extensions", "dates", "language", "geography", "ngrams",
    "duplicates", "lengths", "contamination", "pii", "toxicity", "demographics", "overlap", "search",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What some analyses can be told."""

    ngrams: tuple[int, ...] = (1, 2, 3, 5, 10)
    top: int = 25
    table: int = 1 << 20
    """N-grams counted exactly at most, for each n."""
    eval: tuple[str, ...] = ()
    toxic_model: str | None = None
    search: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ngrams or min(self.ngrams) < 1 or max(self.ngrams) > 100:
            raise ValueError(f"ngrams is {list(self.ngrams)}; name lengths from 1 to 100")
        if self.table < 1 << 13:
            raise ValueError(f"table is {self.table}; it must be at least {1 << 13}")


def choose(only: Sequence[str]) -> tuple[str, ...]:
    """The analyses to run. Raises `LoomError` for a name there is none of, naming the nearest."""
    for name in only:
        if name not in NAMES:
            near = nearest(name, NAMES)
            hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(NAMES)}."
            raise LoomError(f"There is no analysis {name!r}. {hint}")
    return tuple(name for name in NAMES if not only or name in only)


def build(names: Sequence[str], options: Options) -> list[Analysis]:
    """The analyses of these names; overlap is told from what duplicates keep."""
    made: Mapping[str, Any] = {
        "counts": Summary,
        "domains": lambda: Urls("domains", "Internet domains"),
        "schemes": lambda: Urls("schemes", "URL schemes"),
        "suffixes": lambda: Urls("suffixes", "Domain suffixes"),
        "extensions": lambda: Urls("extensions", "File extensions in URLs"),
        "dates": Dates,
        "language": Language,
        "geography": lambda: Urls("geography", "Countries, by country-code domains"),
        "ngrams": lambda: Grams(options.ngrams, options.top, options.table),
        "duplicates": Duplicates,
        "lengths": Lengths,
        "contamination": lambda: Contamination(options.eval),
        "pii": Pii,
        "toxicity": lambda: Toxicity(options.toxic_model),
        "demographics": Demographics,
        "search": lambda: Search(options.search, options.regex),
    }
    wanted = ["duplicates" if name == "overlap" else name for name in names]
    return [made[name]() for name in dict.fromkeys(wanted)]
