"""Documents of unlike lengths into rows of one length, each document whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def best_fit(lengths: npt.ArrayLike, capacity: int) -> tuple[Integers, Integers]:
    """(row [n], offset [n]) of each document, by best-fit decreasing (Johnson 1973; Ding et al. 2024).

    The longest come first, each into the fullest row that still has room, else into a new one; ties keep
    the documents' order, so the result is a function of the lengths alone. Raises `ValueError` for a
    document that is empty or longer than `capacity`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and (sizes.min() < 1 or sizes.max() > capacity):
        raise ValueError(f"document lengths must lie in 1..{capacity}, not {sizes.min()}..{sizes.max()}")
    rows, offsets = np.empty_like(sizes), np.empty_like(sizes)
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room left
    occupied = 0  # bit r: some row has r tokens of room
    count = 0
    for document in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[document])
        if fitting := occupied >> size:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                occupied ^= 1 << room
        else:
            room, row, count = capacity, count, count + 1
        rows[document], offsets[document] = row, capacity - room
        left = room - size
        if left:
            open_rows[left].append(row)
            occupied |= 1 << left
    return rows, offsets
