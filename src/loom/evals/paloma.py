"""Paloma's sources (Magnusson et al. 2023), by their names on the Hub.

The version that can be had has 546 domains from 16 sources. The first version's other two, The Pile (22
domains) and ICE (17), cannot be hosted again. OLMo reports eleven sources, on the test split: the rest
is code, or fringe text kept for measuring harm.
"""

from __future__ import annotations

from collections.abc import Mapping

COMBINED = (
    "c4_en",
    "mc4",
    "wikitext_103",
    "ptb",
    "redpajama",
    "falcon-refinedweb",
    "dolma-v1_5",
    "m2d2_s2orc_unsplit",
    "m2d2_wikipedia_unsplit",
    "c4_100_domains",
    "dolma_100_subreddits",
)
"""The eleven that the OLMo paper combines (section 4.2)."""

NAME = "paloma-11"
"""What the eleven together are called in results."""


def why_not(splits: Mapping[str, str]) -> str | None:
    """Why sources that were read of these splits are not combined, None where they are: all eleven have to be there,
    of one split. Empty where only some are there, for then nobody asked for it."""
    own = {source: splits[source] for source in COMBINED if source in splits}
    if len(own) < len(COMBINED):
        return ""
    found = {split: [source for source in own if own[source] == split] for split in own.values()}
    if len(found) == 1 and "" not in found:
        return None
    said = (f"{split or 'no split'} of {', '.join(sources)}" for split, sources in found.items())
    return f"its eleven sources were not read from one split: {'; '.join(said)}"
