"""An OpenAI-compatible endpoint as judge of two answers, and all the ways in which it may fail."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from loom.errors import LoomError
from loom.evals import cache
from loom.evals.judge.judges import QUESTION, Comparison, Preference, both_orders
from loom.evals.judge.post import TooLarge, post

GIVE_UP = 10  # failures in a row; each may have taken `tries` times `timeout`
OF_THE_QUESTION = (400, 413, 422)  # such an answer says nothing of the next question
BUSY = (429, 503)  # it may say when to come again
_WORD = r"(?:the|my|final|better|best|correct|preferred|answer|option|response|choice|verdict|one|is)"
VERDICT = re.compile(
    rf"[\W_]*(?:{_WORD}[\W_]+)*([AB])(?:[\W_]+is(?:[\W_]+{_WORD})*)?[\W_]*", re.IGNORECASE | re.ASCII
)
LONGEST_VERDICT = 100  # characters; it was asked for one


class Endpoint:
    """An OpenAI-compatible chat endpoint that answers A or B, greedy; both orders, averaged.

    Nothing is sent anywhere but to `url`: a redirection is a failure. A request that fails, or is not answered whole
    in `timeout` seconds, is tried `tries` times; an answer that is neither A nor B is nonsense. Both are counted in
    `failures` and judged None; `GIVE_UP` failures in a row raise `LoomError`. The key comes from the environment
    variable `LOOM_JUDGE_KEY`, never from an argument.
    """

    name = "endpoint"

    def __init__(self, url: str, model: str, timeout: float = 60.0, tries: int = 2) -> None:
        self.url, self.model, self.timeout, self.tries = url.rstrip("/"), model, timeout, tries
        self.cached = False
        self.failures: dict[str, int] = {}
        self.disagree = 0
        self.in_a_row = self.refused = 0
        self.answered = False

    def describe(self) -> dict[str, Any]:
        return {
            "judge": "endpoint",
            "url": self.url,
            "model": self.model,
            "prompt": QUESTION,
            "failures": dict(self.failures),
        }

    def annotator(self, item: Comparison) -> str:
        return self.model

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """What was answered before is not asked again; what failed is."""
        result: list[Preference] = []
        for item in comparisons:
            texts = [item.instruction, item.baseline, item.answer]
            key = cache.key("endpoint", self.url, self.model, QUESTION, texts)
            known = cache.read(key, self.cached)
            if known is None and (known := self._judge(item)) is not None:
                cache.write(key, known, self.cached)
            self.disagree += known == 1.5  # it prefers the same place in both orders
            result.append(known)
        return result

    def _judge(self, item: Comparison) -> Preference:
        first, second = map(self._ask, both_orders(item))
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
        why = ""
        for attempt in range(self.tries):
            try:
                reply: dict[str, Any] = json.loads(self._post(body))
                letter = verdict(reply["choices"][0]["message"]["content"])
            except TimeoutError:
                why = "timeout"
            except urllib.error.HTTPError as error:  # 400: the answers do not fit the judge's context
                error.close()
                why = f"HTTP {error.code}"
                if error.code in OF_THE_QUESTION:
                    self._count(why)
                    self.refused += 1
                    if self.refused >= GIVE_UP and not self.answered:
                        raise LoomError(
                            f"{self.url} refused all of the first {self.refused} requests ({why}): see that it serves "
                            f"{self.model!r} and takes temperature and max_tokens."
                        ) from None
                    return None
                if error.code in BUSY and attempt + 1 < self.tries:
                    time.sleep(_pause(error, self.timeout))
                if error.code < 500 and error.code != 429:
                    break  # the same request would be refused again
            except urllib.error.URLError as error:
                why = "timeout" if isinstance(error.reason, TimeoutError) else "unreachable"
            except (OSError, http.client.HTTPException):  # the connection ended in mid-answer
                why = "unreachable"
            except TooLarge as error:
                why = str(error)
                break
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                why = "not a chat completion"
            else:
                self.in_a_row = 0
                self.answered = True
                if letter is None:
                    self._count("nonsense")
                return letter
        self._count(why)
        self.in_a_row += 1
        if self.in_a_row >= GIVE_UP:
            raise LoomError(
                f"{self.url} failed {self.in_a_row} requests in a row, the last with {why!r}: see that it is there, "
                f"serves {self.model!r} and takes the key in LOOM_JUDGE_KEY, if it wants one."
            )
        return None

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("LOOM_JUDGE_KEY", "").strip():
            headers["Authorization"] = f"Bearer {key}"
        return post(f"{self.url}/chat/completions", json.dumps(body).encode(), headers, self.timeout)

    def _count(self, why: str) -> None:
        self.failures[why] = self.failures.get(why, 0) + 1


def _pause(error: urllib.error.HTTPError, longest: float) -> float:
    """Seconds until a busy server is asked again: what it says, at most `longest`; else a second."""
    stated = error.headers.get("Retry-After", "")
    return min(float(stated), longest) if stated.isdigit() else min(1.0, longest)


def verdict(text: str) -> str | None:
    """A or B, alone or in words and marks that say no more ("**Answer A**", "B is better."); None for anything else,
    also for what names both."""
    found = VERDICT.fullmatch(text.strip()) if len(text) <= LONGEST_VERDICT else None
    return found[1].upper() if found is not None else None


def parse_endpoint(spec: str) -> Endpoint:
    """`endpoint:URL#MODEL`. Raises `LoomError` for what is no address, names no model, or holds a password."""
    url, _, model = spec.removeprefix("endpoint:").rpartition("#")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        wrong = "" if host and port != 0 else "it names no server"
    except ValueError as error:
        raise LoomError(f"--judge {spec}: {url} is no address ({error}). {_WRITE}") from None
    if parts.scheme not in ("http", "https"):
        wrong = "it begins with neither http:// nor https://"
    elif not url.isascii() or not url.isprintable() or " " in url:
        wrong = "it holds characters that an address cannot have"
    elif parts.query:
        wrong = "it has a question mark, and paths are written behind it"
    elif parts.username is not None:
        wrong = "a key stands in LOOM_JUDGE_KEY, never in an address, which is written into the results"
    if wrong:
        raise LoomError(f"--judge {spec}: {url or 'nothing'} is no address ({wrong}). {_WRITE}")
    if not model.strip():
        raise LoomError(f"--judge {spec} names no model. {_WRITE}")
    return Endpoint(url, model)


_WRITE = "Write endpoint:URL#MODEL, as in endpoint:http://localhost:8000/v1#gpt-4."
