"""Judges: who says which of two answers is better, behind one interface.

A judge gives, for each comparison, 1 where the baseline's answer is better, 2 where the model's is, 1.5
for a draw and None where it did not answer. Its name is part of the metric's name (`alpaca_win[replay]`):
a number that a stand-in made never carries the published metric's name.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loom.artifact import digest_file
from loom.errors import LoomError
from loom.tasks.data import read_rows

Preference = float | None


@dataclass(frozen=True)
class Comparison:
    """An instruction with the baseline's and the model's answer."""

    instruction: str
    baseline: str
    answer: str


class Judge(Protocol):
    @property
    def name(self) -> str:
        """What stands in the brackets of the metric's name."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a reader must know to repeat the judgement; written into the results."""
        ...

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]: ...


@dataclass(frozen=True)
class WinRate:
    """`win_rate` is 100 mean(preference - 1) over the `n` that were judged, `discrete` counts wins and half
    draws, `stderr` is 100 sd / sqrt(n); `unjudged` got no answer and count in neither."""

    win_rate: float
    discrete: float
    stderr: float
    n: int
    unjudged: int


def win_rate(preferences: Sequence[Preference]) -> WinRate:
    """AlpacaEval v1's figures (Li et al. 2023; `alpaca_eval.metrics`). 0 means a draw there, too."""
    kept = np.array([1.5 if value == 0 else value for value in preferences if value is not None])
    if len(kept) == 0:
        return WinRate(math.nan, math.nan, math.nan, 0, len(preferences))
    if not ((kept >= 1) & (kept <= 2)).all():
        raise ValueError("a preference lies between 1 (baseline) and 2 (model), or is 0 for a draw")
    discrete = np.where(kept > 1.5, 1.0, np.where(kept == 1.5, 0.5, 0.0))
    error = 100 * kept.std(ddof=1) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan
    return WinRate(
        float(100 * (kept - 1).mean()),
        float(100 * discrete.mean()),
        float(error),
        len(kept),
        len(preferences) - len(kept),
    )


class Replay:
    """Stored annotations in AlpacaEval's schema, looked up by instruction and answer.

    An answer that was never annotated is not judged: the annotations are of one model's answers.
    """

    name = "replay"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = list(read_rows(path))
        self.stored: dict[tuple[str, str], Preference] = {}
        for number, row in enumerate(self.rows, 1):
            try:
                key = (row["instruction"], row["output_2"])
                value = row["preference"]
            except KeyError as error:
                raise LoomError(
                    f"{path}:{number} has no {error}; each row of annotations needs it."
                ) from None
            try:
                preference = None if value is None else float(value)
            except (TypeError, ValueError):
                preference = math.nan
            if preference is not None and not (preference == 0 or 1 <= preference <= 2):
                raise LoomError(
                    f"{path}:{number}: the preference is {value!r}; it lies between 1 (baseline) and 2 (model), is 0 "
                    f"for a draw, or null."
                )
            self.stored[key] = preference

    def describe(self) -> dict[str, Any]:
        annotators = sorted({str(row.get("annotator")) for row in self.rows})
        return {
            "judge": "replay",
            "file": self.path.name,
            "digest": digest_file(self.path),
            "annotators": annotators,
        }

    def comparisons(self) -> list[Comparison]:
        """What was annotated."""
        return [Comparison(row["instruction"], row["output_1"], row["output_2"]) for row in self.rows]

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        return [self.stored.get((item.instruction, item.answer)) for item in comparisons]


QUESTION = (
    "Which of two answers to an instruction is better?\n\nInstruction:\n{instruction}\n\nAnswer A:\n{first}"
    "\n\nAnswer B:\n{second}\n\nThe better answer is Answer"
)


class LocalModel:
    """A causal language model as judge: p(" A") against p(" B"), both orders averaged so that position
    cancels. A comparison that is longer than its context, so that it would judge what it could not read, is
    counted in `failures` and judged None. `subject` is a `loom.evals.subject.Subject`."""

    name = "local-model"

    def __init__(self, subject: Any) -> None:
        self.subject = subject
        self.failures: dict[str, int] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "judge": "local-model",
            "digest": self.subject.digest,
            "prompt": QUESTION,
            "failures": dict(self.failures),
        }

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        from loom.evals import cache
        from loom.tasks.item import choose

        items = []
        for index, item in enumerate(comparisons):
            for first, second in ((item.baseline, item.answer), (item.answer, item.baseline)):
                text = QUESTION.format(instruction=item.instruction, first=first, second=second)
                items.append(choose(index, text, ("A", "B"), 0))
        scores, _ = cache.items(self.subject, items, self.subject.max_length)
        short = {index // 2 for index in (*scores.cut, *scores.lost)}
        if short:
            self.failures["longer than the judge's context"] = len(short)
        result: list[Preference] = []
        for index in range(len(comparisons)):
            if index in short:
                result.append(None)
                continue
            ours = []
            for place, logp in ((1, scores.logp[2 * index]), (0, scores.logp[2 * index + 1])):
                weights = np.exp(logp - logp.max())
                ours.append(float(weights[place] / weights.sum()))
            result.append(1 + sum(ours) / 2)
        return result


class Endpoint:
    """An OpenAI-compatible chat endpoint that answers A or B, greedy; both orders, averaged.

    Nothing is sent anywhere but to `url`. A request that fails or times out is tried `tries` times; an
    answer that is neither A nor B is nonsense. Both are counted in `failures` and judged None. The key
    comes from the environment variable `LOOM_JUDGE_KEY`, never from an argument.
    """

    name = "endpoint"

    def __init__(self, url: str, model: str, timeout: float = 60.0, tries: int = 2) -> None:
        self.url, self.model, self.timeout, self.tries = url.rstrip("/"), model, timeout, tries
        self.cached = False
        self.failures: dict[str, int] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "judge": "endpoint",
            "url": self.url,
            "model": self.model,
            "prompt": QUESTION,
            "failures": dict(self.failures),
        }

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """What was answered before is not asked again; what failed is."""
        from loom.evals import cache

        result: list[Preference] = []
        for item in comparisons:
            key = cache.key("endpoint", self.url, self.model, QUESTION, list(vars(item).values()))
            known = cache.read(key, self.cached)
            if known is None and (known := self._judge(item)) is not None:
                cache.write(key, known, self.cached)
            result.append(known)
        return result

    def _judge(self, item: Comparison) -> Preference:
        first = self._ask(
            QUESTION.format(instruction=item.instruction, first=item.baseline, second=item.answer)
        )
        second = self._ask(
            QUESTION.format(instruction=item.instruction, first=item.answer, second=item.baseline)
        )
        if first is None or second is None:
            return None
        return ((2.0 if first == "B" else 1.0) + (2.0 if second == "A" else 1.0)) / 2

    def _ask(self, text: str) -> str | None:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": f"{text} (reply with A or B only):"}],
            "temperature": 0,
            "max_tokens": 8,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("LOOM_JUDGE_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        why = ""
        for _ in range(self.tries):
            request = urllib.request.Request(
                f"{self.url}/chat/completions", json.dumps(body).encode(), headers=headers
            )
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    reply: Mapping[str, Any] = json.loads(response.read())
                return self._letter(reply["choices"][0]["message"]["content"])
            except TimeoutError:
                why = "timeout"
            except urllib.error.HTTPError as error:  # 400: the answers do not fit the judge's context
                why = f"HTTP {error.code}"
                if error.code < 500 and error.code != 429:
                    break  # the same question would be refused again
            except urllib.error.URLError as error:
                why = "timeout" if isinstance(error.reason, TimeoutError) else "unreachable"
            except (OSError, http.client.HTTPException):  # the connection ended in mid-answer
                why = "unreachable"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                why = "not a chat completion"
        self.failures[why] = self.failures.get(why, 0) + 1
        return None

    def _letter(self, text: str) -> str | None:
        found = re.fullmatch(
            r"(?:the better answer is )?(?:answer )?\W*([AB])\W*", text.strip(), re.IGNORECASE
        )
        if found is None:
            self.failures["nonsense"] = self.failures.get("nonsense", 0) + 1
            return None
        return found[1].upper()


def find_judge(spec: str, cached: bool = False) -> Judge:
    """A judge by its spelling: `replay:FILE`, `model:FOLDER`, `endpoint:URL#MODEL`; `cached` ones do not
    judge the same comparison twice."""
    kind, _, rest = spec.partition(":")
    match kind:
        case "replay" if rest:
            if not Path(rest).is_file():
                raise LoomError(f"There is no file of annotations {rest} for --judge {spec}.")
            return Replay(Path(rest))
        case "model" if rest:
            from loom.evals.subject import load_subject

            return LocalModel(replace(load_subject(Path(rest)), cached=cached))
        case "endpoint" if "#" in rest and rest.startswith(("http://", "https://")):
            url, _, model = rest.rpartition("#")
            judge = Endpoint(url, model)
            judge.cached = cached
            return judge
        case _:
            raise LoomError(
                f"There is no judge {spec!r}; write replay:FILE (stored annotations), model:FOLDER (a causal "
                f"language model), or endpoint:URL#MODEL (OpenAI-compatible, key in LOOM_JUDGE_KEY)."
            )
