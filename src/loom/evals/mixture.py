"""Another mixture's bits per byte, from the sums that an evaluation of text stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from loom.errors import LoomError
from loom.evals import paloma
from loom.evals.beside.paired import text_groups
from loom.evals.beside.stored import RESULTS, TEXT, few, has_text, read_results, read_scores
from loom.evals.perplexity import reweighted


@dataclass(frozen=True)
class Mixture:
    """A mixture's bits per byte; `shares` of its bytes by name add up to 1."""

    bits_per_byte: float
    stderr: float | None
    """None where `alone` is one document, of which there is no error."""
    alone: str | None
    shares: Mapping[str, float]


def parse_mix(mix: str) -> dict[str, float]:
    """`a=0.7,b=0.3` as shares by name, not yet normalised. Raises `LoomError` for what is no mixture."""
    shares: dict[str, float] = {}
    for part in mix.split(","):
        name, _, written = part.rpartition("=")
        name = name.strip()
        try:
            share = float(written)
        except ValueError:
            share = math.nan
        if not name or not math.isfinite(share) or share < 0:
            raise _no_mixture(mix, f"{part.strip()!r} is no name with a share")
        if name in shares:
            raise _no_mixture(mix, f"{name} is named twice")
        shares[name] = share
    total = sum(shares.values())
    if not total or not math.isfinite(total):
        raise _no_mixture(mix, f"its shares add up to {total:g}")
    return shares


def _no_mixture(mix: str, why: str) -> LoomError:
    return LoomError(
        f"--reweight {mix} is no mixture ({why}): write domain=share,domain=share, as in web=0.7,wiki=0.3."
    )


def reweigh(folder: Path, mix: str) -> Mixture:
    """The mixture `mix` of what `folder` measured: domains, or whole sources by their names.

    Raises `LoomError` for a name that was not measured, one without text, and two that share documents.
    """
    shares = parse_mix(mix)
    if (folder / RESULTS).is_file() and not has_text(read_results(folder), folder):
        raise LoomError(f"{folder} is an evaluation without text: name the --out of `loom eval --text`.")
    groups = text_groups(read_scores(folder / TEXT))
    groups.pop(paloma.NAME, None)  # whether it is one split's is not in the rows
    if unknown := [name for name in shares if name not in groups]:
        near = get_close_matches(unknown[0], groups)
        others = [name for name in groups if name not in near]
        raise LoomError(f"{folder} has no domain {unknown[0]!r}; it has {few([*near, *others])}.")
    owner: dict[int, str] = {}
    for name in shares:
        for score in groups[name]:
            if (first := owner.setdefault(id(score), name)) != name:
                raise LoomError(
                    f"--reweight {mix}: {first} and {name} share documents ({score.source}/{score.domain}), which would "
                    f"count twice. Name the one or the other."
                )
        if shares[name] and not sum(score.bytes for score in groups[name]):
            raise LoomError(f"--reweight {mix}: the documents of {name} in {folder} are empty, of 0 bytes.")
    named = [replace(score, source=name, domain=name) for name in shares for score in groups[name]]
    value, error = reweighted(named, shares)
    total = sum(shares.values())
    alone = next((name for name, share in shares.items() if share and len(groups[name]) < 2), None)
    return Mixture(value, error, alone, {name: share / total for name, share in shares.items()})
