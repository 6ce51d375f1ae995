"""Training a bag-of-features softmax classifier by stochastic gradient descent, one example at a time."""

from __future__ import annotations

import numpy as np

from loom.native import kernel


@kernel(fastmath={"contract", "nsz"})
def epoch(features, offsets, targets, order, rows, out, start_rate, seen, total):  # type: ignore[no-untyped-def]
    """One pass over the examples in `order`; updates `rows` and `out` in place.

    Example i has the features `features[offsets[i]:offsets[i + 1]]` (rows of `rows`, float32[n, dim]) and
    the label `targets[i]` (a row of `out`, float32[labels, dim]). The rate falls linearly from
    `start_rate` to 0 over `total` features, of which `seen` were before. Returns (summed loss, seen).
    """
    labels, width = out.shape
    hidden = np.empty(width, np.float32)
    grad = np.empty(width, np.float32)
    scores = np.empty(labels, np.float32)
    loss = 0.0
    for position in range(order.size):
        example = order[position]
        low, high = offsets[example], offsets[example + 1]
        count = high - low
        if count == 0:
            continue
        rate = np.float32(start_rate * (1.0 - seen / total))
        hidden[:] = 0
        for at in range(low, high):
            row = features[at]
            for k in range(width):
                hidden[k] += rows[row, k]
        share = np.float32(1.0 / count)
        for k in range(width):
            hidden[k] *= share
            grad[k] = 0
        highest = np.float32(-1e30)
        for label in range(labels):
            score = np.float32(0)
            for k in range(width):
                score += out[label, k] * hidden[k]
            scores[label] = score
            highest = max(highest, score)
        whole = np.float32(0)
        for label in range(labels):
            scores[label] = np.exp(scores[label] - highest)
            whole += scores[label]
        target = targets[example]
        loss -= np.log(max(np.float64(scores[target] / whole), 1e-30))
        for label in range(labels):
            step = rate * ((np.float32(1) if label == target else np.float32(0)) - scores[label] / whole)
            for k in range(width):
                grad[k] += step * out[label, k]
                out[label, k] += step * hidden[k]
        for k in range(width):
            grad[k] *= share
        for at in range(low, high):
            row = features[at]
            for k in range(width):
                rows[row, k] += grad[k]
        seen += count
    return loss, seen
