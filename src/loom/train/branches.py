"""Two answers to one prompt as one document: the prompt once, then both answers.

A preference pair's sides share their prompt, which is often the longer part. It is laid out once; each
answer sees the prompt and itself, not the other. Both answers begin at the prompt's last token, because
that is the token that predicts their first: each has a copy of it, at the same position.

    prompt without its last token | last token, chosen answer | last token, rejected answer
    branch 0                      | branch 1                  | branch 2

Every token's visible context and position are those it would have in a document of its own, so
log-probabilities and gradients are the same, and the prompt is paid for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loom.chat.packing import best_fit

Integers = npt.NDArray[np.int64]
ROUND = 8  # rows are made a multiple of so many tokens long


@dataclass(frozen=True)
class Side:
    """One side of a pair: its ids, and weights that are above 0 where the answer counts."""

    ids: Integers
    weights: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Laid:
    """Pairs in a [rows, length] grid. Padding has document -1.

    `documents` number the pairs, `branches` are 0, 1 and 2, `weights` belong to the token itself.
    """

    ids: Integers
    documents: Integers
    branches: Integers
    positions: Integers
    weights: npt.NDArray[np.float32]


def shared_prompt(chosen: Side, rejected: Side) -> int:
    """How many first tokens the two sides share before either's answer begins."""
    limit = min(_answer_start(chosen), _answer_start(rejected))
    unlike = np.flatnonzero(chosen.ids[:limit] != rejected.ids[:limit])
    return int(unlike[0]) if len(unlike) else limit


def _answer_start(side: Side) -> int:
    trained = np.flatnonzero(side.weights[1:])
    return int(trained[0]) + 1 if len(trained) else len(side.ids)


def lay_out(pairs: Sequence[tuple[Side, Side]], pad: int) -> Laid:
    """Pairs packed by best fit into rows as long as the longest of them, each prompt once."""
    fork = [max(shared_prompt(*pair) - 1, 0) for pair in pairs]
    sizes = [
        len(chosen.ids) + len(rejected.ids) - at for (chosen, rejected), at in zip(pairs, fork, strict=True)
    ]
    length = -(-max(sizes) // ROUND) * ROUND
    rows, offsets = best_fit(sizes, length)
    shape = (int(rows.max()) + 1, length)
    laid = Laid(
        np.full(shape, pad, np.int64),
        np.full(shape, -1, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.float32),
    )
    for number, ((chosen, rejected), at) in enumerate(zip(pairs, fork, strict=True)):
        row, first = rows[number], int(offsets[number])
        for branch, side, start in (
            (0, Side(chosen.ids[:at], chosen.weights[:at]), 0),
            (1, chosen, at),
            (2, rejected, at),
        ):
            ids, weights = side.ids[start:], side.weights[start:]
            part = slice(first, first + len(ids))
            laid.ids[row, part] = ids
            laid.documents[row, part] = number
            laid.branches[row, part] = branch
            laid.positions[row, part] = np.arange(start, start + len(ids))
            laid.weights[row, part] = weights
            if branch and len(ids):
                laid.weights[row, first] = 0  # the prompt's last token, or a document's first
            first += len(ids)
    return laid


def branch_mask(document_ids: Tensor, branches: Tensor) -> Tensor:
    """[B, 1, T, T] bool: a token sees what is earlier in its pair's prompt and in its own branch.

    Padding (a negative id) sees only itself, so that no row is empty and no softmax is NaN.
    """
    length = document_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    same = (document_ids[:, :, None] == document_ids[:, None, :]) & (document_ids >= 0)[:, None, :]
    open_ = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    itself = torch.eye(length, dtype=torch.bool, device=document_ids.device)
    return ((same & open_ & causal) | itself)[:, None]
