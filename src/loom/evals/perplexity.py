"""Bits per byte of text: documents one at a time, never packed, every token predicted once.

The end-of-text token stands before a document, so that its first token is predicted too. A document
longer than the model's context is cut into windows; they do not overlap, except that the last one is
extended to the left to a full context (Magnusson et al. 2023, Paloma, C.2.3; the harness's rolling
log-likelihood). Bits per byte are -(sum of log p) / (bytes ln 2): a ratio of sums over documents,
comparable between tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from loom.console import Progress
from loom.evals import paloma
from loom.evals.rows import Row, Scored, chain
from loom.evals.scorer import Floats, Model, score_rows

DRAWS = 1000  # of the bootstrap
AT_ONCE = 10_000_000  # counts of drawn documents in memory


@dataclass(frozen=True)
class Document:
    """`tokens` are without the end-of-text tokens around them; `bytes` is the length of the UTF-8 text."""

    id: str
    source: str
    domain: str
    tokens: Sequence[int] | NDArray[np.integer]
    bytes: int


@dataclass(frozen=True)
class DocumentScore:
    """What is kept of a document: any aggregate follows from these sums.

    `nll` is -log p of its tokens in nats, `end` that of the end-of-text token after them: the text
    alone counts for bits per byte, both for the loss a token.
    """

    id: str
    source: str
    domain: str
    nll: float
    end: float
    tokens: int
    bytes: int


def windows(
    tokens: Sequence[int] | NDArray[np.integer],
    eos: int,
    max_length: int,
    key: int = 0,
    end_key: int = -1,
    first: int | None = None,
) -> list[Row]:
    """A document's rows: each reads at most `max_length` tokens, every token is predicted exactly once.

    With `end_key` the end-of-text token after the document is predicted as well, under that key; the
    windows of the text stay what they are. `first` stands before the document in place of end of text (a BOS).
    """
    whole = np.concatenate([[eos if first is None else first], np.asarray(tokens, dtype=np.int64)])
    rows = []
    for start in range(1, len(whole), max_length):
        end = min(start + max_length, len(whole))
        first = max(0, end - max_length - 1)
        rows.append(chain(Scored(whole[first:end], end - start, key)))
    if end_key >= 0:
        if rows and len(rows[-1]) < max_length:
            last = rows.pop()
            text = np.append(last.tokens, last.targets[-1])
            row = chain(Scored(np.append(text, eos), len(last.at) + 1, key))
            rows.append(replace(row, keys=np.append(last.keys, end_key)))
        else:
            rows.append(chain(Scored(np.append(whole[-max_length:], eos), 1, end_key)))
    return rows


def score_documents(
    model: Model,
    documents: Iterable[Document],
    eos: int,
    max_length: int,
    *,
    budget: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[DocumentScore]:
    """Negative log-likelihood of every document; one without tokens has 0 and counts no bytes."""
    documents = list(documents)
    rows = document_rows(documents, eos, max_length)
    if progress is not None:
        progress.total = len(rows)
    logp = score_rows(model, rows, 2 * len(documents), budget=budget, device=device, progress=progress)
    return document_scores(documents, logp)


def document_rows(
    documents: Sequence[Document], eos: int, max_length: int, first: int | None = None
) -> list[Row]:
    """Rows of all documents: document i has the keys 2 i (its text) and 2 i + 1 (the end-of-text token)."""
    return [
        row
        for index, document in enumerate(documents)
        for row in windows(document.tokens, eos, max_length, 2 * index, 2 * index + 1, first)
    ]


def document_scores(documents: Sequence[Document], logp: Floats) -> list[DocumentScore]:
    """Scores from the summed log-probabilities of `document_rows`."""
    return [
        DocumentScore(
            item.id,
            item.source,
            item.domain,
            -float(logp[2 * i]),
            -float(logp[2 * i + 1]),
            len(item.tokens),
            item.bytes,
        )
        for i, item in enumerate(documents)
    ]


def summary(scores: Sequence[DocumentScore], seed: int = 0) -> dict[str, float | int]:
    """Pooled figures of some documents, ratios of sums.

    `bits_per_byte` of the text, with its bootstrap error over documents; `loss` in nats a token, the
    end-of-text tokens counted; `bytes`; `tokens` of the loss; `n` documents.
    """
    nll = np.array([score.nll for score in scores])
    size = np.array([score.bytes for score in scores], dtype=np.float64)
    tokens = sum(score.tokens + 1 for score in scores)
    return {
        "bits_per_byte": float(nll.sum() / (size.sum() * math.log(2))) if size.sum() else math.nan,
        "bits_per_byte_stderr": bootstrap_ratio(nll / math.log(2), size, seed),
        "loss": float(nll.sum() + sum(score.end for score in scores)) / tokens if tokens else math.nan,
        "bytes": int(size.sum()),
        "tokens": tokens,
        "n": len(scores),
    }


def table(
    scores: Sequence[DocumentScore], seed: int = 0, splits: Mapping[str, str] | None = None
) -> dict[str, dict[str, float | int]]:
    """Figures by domain; a source of several domains pooled, with `macro_bits_per_byte` over them; and
    where there are several sources, `all` together. Paloma's eleven sources, where all are there and `splits` (by
    source) gives them one, are combined as in the OLMo paper."""
    result: dict[str, dict[str, float | int]] = {}
    sources = by(scores, "source")
    for name, group in by_domain(scores).items():
        result[name] = summary(group, seed)
    for source, group in sources.items():
        if source not in result:
            result[source] = summary(group, seed) | macro(group)
    combined = [score for score in scores if score.source in paloma.COMBINED]
    if paloma.why_not({source: (splits or {}).get(source, "") for source in sources}) is None:
        result[paloma.NAME] = summary(combined, seed) | macro(combined)
    if len(sources) > 1 and "all" not in result:
        result["all"] = summary(scores, seed) | macro(scores)
    return result


def macro(scores: Sequence[DocumentScore]) -> dict[str, float | int]:
    """The plain mean of the domains' bits per byte, and how many domains there are."""
    groups = [group for own in by(scores, "source").values() for group in by(own, "domain").values()]
    sums = [(sum(one.nll for one in group), sum(one.bytes for one in group)) for group in groups]
    values = [nll / (size * math.log(2)) if size else math.nan for nll, size in sums]
    return {"macro_bits_per_byte": sum(values) / len(values), "domains": len(values)}


def by(scores: Iterable[DocumentScore], key: str) -> dict[str, list[DocumentScore]]:
    """Scores grouped by `domain` or `source`, groups sorted by name."""
    groups: dict[str, list[DocumentScore]] = {}
    for score in scores:
        groups.setdefault(getattr(score, key), []).append(score)
    return dict(sorted(groups.items()))


def by_domain(scores: Iterable[DocumentScore]) -> dict[str, list[DocumentScore]]:
    """Scores of each domain under the name it is shown by: `source/domain` where two sources each have one of a name,
    or where a source is called so whose own row, of other domains, would be lost behind it."""
    scores = list(scores)
    pooled = {
        source for source, group in by(scores, "source").items() if any(one.domain != source for one in group)
    }
    groups: dict[str, list[DocumentScore]] = {}
    for domain, group in by(scores, "domain").items():
        owners = by(group, "source")
        for source, own in owners.items():
            alone = len(owners) == 1 and domain not in pooled
            groups[domain if alone else f"{source}/{domain}"] = own
    return groups


def bootstrap_ratio(above: Floats, below: Floats, seed: int = 0, draws: int = DRAWS) -> float:
    """Standard error of sum(above) / sum(below) under resampling of documents; NaN for fewer than two."""
    if len(above) < 2:
        return math.nan
    random, n = np.random.default_rng(seed), len(above)
    ratios = []
    step = max(1, AT_ONCE // n)
    for start in range(0, draws, step):
        counts = random.multinomial(n, np.full(n, 1 / n), min(step, draws - start))
        bottom = counts @ below
        ratios.append((counts @ above)[bottom > 0] / bottom[bottom > 0])
    return float(np.concatenate(ratios).std(ddof=1))


def reweighted(scores: Sequence[DocumentScore], mix: Mapping[str, float]) -> tuple[float, float | None]:
    """Bits per byte that this model would have on another mixture of domains, and its standard error.

    `mix` gives each domain's share of bytes, by its name in `by_domain`; shares are normalised. Domains are
    independent samples, so the error is sqrt(sum of (share x the domain's bootstrap error)^2); None
    where a domain is one document. Raises `KeyError` for a domain that was not scored.
    """
    groups = by_domain(scores)
    total = sum(mix.values())
    parts = [
        (share / total, summary(groups[name], position))
        for position, (name, share) in enumerate(mix.items())
        if share
    ]
    value = sum(share * float(part["bits_per_byte"]) for share, part in parts)
    error = math.sqrt(sum((share * float(part["bits_per_byte_stderr"])) ** 2 for share, part in parts))
    return value, None if math.isnan(error) else error
