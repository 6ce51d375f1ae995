"""A number for every document, by which some can be drawn."""

from __future__ import annotations

import numpy as np

from loom.corpus.attributes import whole
from loom.corpus.sampling import fraction
from loom.corpus.taggers import Tagger, tagger

SEED = 0x72616E646F6D  # of no other draw, so that this one is independent of them


@tagger("random_number_v1", spans="document", source="Dolma 1.2")
def random_number_v1() -> Tagger:
    """`random`: uniform in [0, 1), by a keyed hash of the id (Dolma's, by the process, is another each time)."""
    return lambda texts: {
        "random": whole(
            texts.lengths, np.array([fraction(name, SEED) for name in texts.batch.ids], np.float64)
        )
    }
