"""Pieces of mapped files in another order: what slicing gives, also where pages were let go in between."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.tokens import pieces
from loom.tokens.pieces import Mapped, write_pieces

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, data=st.data())
def test_pieces_are_slices(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    folder: Path = tmp_path_factory.mktemp("pieces")
    arrays = [np.arange(size, dtype="<u2") + 100 * number for number, size in enumerate(sizes)]
    paths = [folder / f"{number}.ids" for number in range(len(sizes))]
    for path, array in zip(paths, arrays, strict=True):
        path.write_bytes(array.tobytes())
    chosen = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=30))
    ranges = [
        sorted(data.draw(st.tuples(st.integers(0, sizes[o]), st.integers(0, sizes[o])))) for o in chosen
    ]
    mapped, out = Mapped(paths, np.dtype("<u2")), io.BytesIO()
    let_go = 0

    def counted() -> None:
        nonlocal let_go
        let_go += 1
        mapped.let_go()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "WRITTEN", 16)
        patch.setattr(pieces, "LET_GO", 1)
        owner, starts, ends = (
            np.array(values, np.int64)
            for values in (chosen, [low for low, _ in ranges], [high for _, high in ranges])
        )
        write_pieces(out, mapped.arrays, owner, starts, ends, counted)
    expected = b"".join(arrays[o][a:b].tobytes() for o, (a, b) in zip(chosen, ranges, strict=True))
    assert out.getvalue() == expected
    assert bool(let_go) == bool(expected)
