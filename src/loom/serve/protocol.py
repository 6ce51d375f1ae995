"""What goes over the wire: requests checked, answers in OpenAI's shapes.

A field that nobody knows is refused, and one that is known and not honoured is refused too, so that no
client believes in a setting that did nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from loom.model.sampling import Sampling
from loom.serve.engine import Finish, Token
from loom.tokens.tokenizer import Tokenizer

LARGEST_SEED = 2**63 - 1


class ApiError(Exception):
    """An error as OpenAI shapes it."""

    def __init__(
        self, status: int, message: str, kind: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, code: str | None = None, param: str | None = None) -> ApiError:
    return ApiError(400, message, "invalid_request_error", code, param)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class Settings(BaseModel):
    """Fields that chat and text completions share.

    Extensions: `top_k`, `min_p`, `repetition_penalty`, under the names other servers use; `lookup`, tokens to
    try ahead; `reserve`, tokens that must be left for the answer, else the prompt counts as too long.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=1)
    user: str | None = None
    lookup: int | None = Field(None, ge=0, le=32)
    reserve: int | None = Field(None, ge=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        many = [value] if isinstance(value, str) else value or []
        if len(many) > 16 or any(not stop or len(stop) > 256 for stop in many):
            raise ValueError("give at most 16 stop strings of 1 to 256 characters")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, most: int, seed: int, stop_ids: tuple[int, ...]) -> Sampling:
        """As the engine takes it; `most` new tokens, `seed` where the request names none."""
        return Sampling(
            max_new_tokens=most,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            seed=seed if self.seed is None else self.seed % LARGEST_SEED,
            stop_ids=stop_ids,
        )


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"] = "text"


class ChatRequest(Settings):
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class TextRequest(Settings):
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] | None = None
    best_of: int | None = Field(None, ge=1, le=1)
    suffix: None = None


def finish_reason(finish: Finish) -> str | None:
    return {"stop": "stop", "length": "length"}.get(finish)


def chat_logprobs(tokens: list[Token], tokenizer: Tokenizer) -> dict[str, Any]:
    """`logprobs` of a chat choice."""

    def entry(index: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(index)
        return {"token": data.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(data)}

    return {
        "content": [
            entry(t.id, t.logprob) | {"top_logprobs": [entry(*other) for other in t.top]} for t in tokens
        ],
        "refusal": None,
    }


def text_logprobs(tokens: list[Token], tokenizer: Tokenizer, offset: int) -> dict[str, Any]:
    """`logprobs` of a text choice; `offset` is where the first token's text begins."""

    def shown(index: int) -> str:
        return tokenizer.token_bytes(index).decode("utf-8", errors="replace")

    def best(token: Token) -> dict[str, float]:
        """By text; where several tokens look alike (parts of characters), the most likely one."""
        likely: dict[str, float] = {}
        for index, value in token.top:
            likely.setdefault(shown(index), value)
        return likely

    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(shown(token.id))
    return {
        "tokens": [shown(t.id) for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [best(t) for t in tokens],
        "text_offset": offsets,
    }


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
