"""One answer at a time: continue text, or answer a conversation with the model's template."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from loom.chat.format import Message
from loom.chat.prompts import conversation
from loom.chat.template import Template
from loom.errors import LoomError
from loom.library import load
from loom.model.sampling import Sampling
from loom.model.transformer import Transformer
from loom.serve.decoder import Decoder
from loom.serve.draw import draw, log_norm
from loom.serve.lookup import propose
from loom.serve.text import TextStream
from loom.tokens.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16}


@dataclass
class Completion:
    """What came of one prompt. `tokens` are the new ones, a stop token not among them.

    `logprobs` are the tokens' under the model itself (nats). Where a stop string ended it, `text` ends
    before that string while `tokens` hold what was decoded.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"
    passes: int = 0  # of the model, reading the prompt counted as one
    prompt_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0


@dataclass(frozen=True)
class Session:
    """A model ready to answer: its decoder and tokenizer."""

    decoder: Decoder
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        return self.decoder.config.context_length

    def room(self, prompt: Sequence[int], wanted: int) -> int:
        """How many tokens may follow `prompt`: at most `wanted`, and what the context leaves.

        Raises `LoomError` if the prompt fills the context.
        """
        left = self.context - len(prompt)
        if left < 1:
            raise LoomError(
                f"The prompt has {len(prompt):,} tokens and the model's context holds {self.context:,}, "
                f"answer included. Shorten it."
            )
        return min(wanted, left)


def open_session(path: Path, dtype: str = "float32") -> Session:
    """MODEL, opened for generation. Raises `LoomError` for what is no model and for an unknown type."""
    if dtype not in DTYPES:
        raise LoomError(f"--dtype {dtype!r} is not known; use float32 or bf16.")
    model, tokenizer = load(path, DTYPES[dtype])
    return Session(Decoder(model), tokenizer)


def session(model: Transformer, tokenizer: Tokenizer) -> Session:
    """A model in memory, ready to answer."""
    return Session(Decoder(model), tokenizer)


def stream(
    on: Session,
    prompt: Sequence[int],
    sampling: Sampling,
    stops: Sequence[str] = (),
    *,
    lookup: int = 0,
) -> Iterator[tuple[str, Completion]]:
    """Continue `prompt`; yields (text that became final, the completion so far), last when it is done.

    The tokenizer's end-of-text token always ends an answer. `lookup` tokens are tried in each pass
    (`loom.serve.lookup`); what comes out is the same.
    """
    begun = time.monotonic()
    ends = {*sampling.stop_ids, on.tokenizer.eos_id}
    text, randomness = TextStream(on.tokenizer, stops), torch.Generator().manual_seed(sampling.seed)
    tokens, done = list(prompt), Completion(prompt_tokens=len(prompt))
    most = on.room(prompt, sampling.max_new_tokens)
    cache, tried, finished = on.decoder.cache(), list[int](), most == 0
    logits = None if finished else on.decoder.read(cache, tokens)[None]
    while logits is not None:
        piece = ""
        done.passes += 1
        for row in range(1 + len(tried)):
            token = draw(logits[row], tokens, sampling, randomness)
            if token in ends:
                done.finish, finished = "stop", True
                break
            tokens.append(token)
            done.tokens.append(token)
            done.logprobs.append(float(logits[row, token]) - log_norm(logits[row]))
            piece += text.push(token)
            if text.stopped:
                done.finish, finished = "stop", True
                break
            if len(done.tokens) >= most:
                finished = True
                break
            if row < len(tried) and tried[row] != token:
                break
        cache.cut(len(tokens) - 1)
        done.seconds = time.monotonic() - begun
        done.first_token_seconds = done.first_token_seconds or done.seconds
        done.text = text.text
        if finished:
            piece += text.finish()
            done.text = text.text
            yield piece, done
            return
        if piece:
            yield piece, done
        ahead = min(lookup, most - len(done.tokens) - 1)
        tried = propose(tokens, ahead) if ahead > 0 else []
        logits = on.decoder.step([(cache, [tokens[-1], *tried])])
    yield "", done


def complete(
    on: Session, prompt: Sequence[int], sampling: Sampling, stops: Sequence[str] = (), *, lookup: int = 0
) -> Completion:
    """Continue `prompt` to the end."""
    done = Completion()
    for _, done in stream(on, prompt, sampling, stops, lookup=lookup):  # noqa: B007
        pass
    return done


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Raw text as a prompt, no template. Empty text begins a document: the end-of-text token."""
    return [int(i) for i in tokenizer.encode(text)] or [tokenizer.eos_id]


def answer(
    on: Session,
    messages: str | Sequence[Message],
    sampling: Sampling | None = None,
    template: Template | None = None,
) -> Completion:
    """Answer a question, or the last turn of a conversation, in the chat format the model was tuned on.

    `template` is the model's (`loom.chat.template.chat_template`), None for one without. Greedy and at most
    128 tokens unless `sampling` says otherwise.
    """
    turns = [Message("user", messages)] if isinstance(messages, str) else list(messages)
    chat = conversation(on.tokenizer, template)
    sampling = sampling or Sampling(128, temperature=0.0)
    stops = {*sampling.stop_ids, *chat.stop_ids}
    return complete(on, chat.prompt(turns), replace(sampling, stop_ids=tuple(sorted(stops))))
