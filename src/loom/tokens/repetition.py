"""Instances that repeat a short period many times (OLMo 2's instance filter)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def repeats(ids: npt.NDArray[np.int64], longest_period: int = 13, times: int = 32) -> npt.NDArray[np.bool_]:
    """[n] True where a row of ids [n, T] holds a sequence of at most `longest_period` tokens `times` in a row."""
    found = np.zeros(len(ids), dtype=bool)
    for period in range(1, longest_period + 1):
        needed = period * (times - 1)
        if ids.shape[1] < needed + period:
            break
        same = ids[:, period:] == ids[:, :-period]
        # A run of `needed` matches at distance `period` is `times` repetitions.
        total = np.concatenate((np.zeros((len(ids), 1), np.int64), np.cumsum(same, axis=1)), axis=1)
        found |= (total[:, needed:] - total[:, :-needed] == needed).any(axis=1)
    return found
