"""What a curation refuses once its documents are judged: a rule that never speaks, one that speaks too often."""

from __future__ import annotations

from collections.abc import Sequence

from loom.corpus.rules import Curate
from loom.engine import Finished
from loom.errors import LoomError


def refuse_dead_fields(recipe: Curate, owners: Sequence[str], judged: Sequence[Finished]) -> None:
    """Raise `LoomError` for a field that is to be unique and that no document has: the rule could never speak."""
    for name, rules in recipe.rules.items():
        mine = [
            done.counters
            for owner, done in zip(owners, judged, strict=True)
            if recipe.sources[owner].rules == name
        ]
        if rules.unique and sum(c["documents"] for c in mine) and not sum(c["keyed"] for c in mine):
            raise LoomError(
                f"No document has the field {rules.unique!r} (rules.{name}.unique), so none could ever be a "
                f"duplicate by it. Name a field that is there, such as metadata.url."
            )


def refuse_too_many(recipe: Curate, owners: Sequence[str], judged: Sequence[Finished]) -> None:
    """Raise `LoomError` where a rule speaks for a larger share of a source than `most_removed` allows."""
    for source in recipe.sources:
        mine = [done.counters for owner, done in zip(owners, judged, strict=True) if owner == source]
        every = sum(counters["documents"] for counters in mine)
        for rule, most in recipe.most_removed.items():
            hit = sum(counters["matched"].get(rule, 0) for counters in mine)
            if hit > most * every:
                raise LoomError(
                    f"The rule {rule!r} speaks for {hit:,} of the {every:,} documents of {source!r} ({hit / every:.3%}), "
                    f"more than most_removed.{rule} allows ({most:.3%}). Either what it reads fits these documents too "
                    f"well (evaluation texts that are common property: name fewer), or raise most_removed.{rule}."
                )
