"""A small prepared folder of real text, its model in transformers and in Loom, with equal weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from loom.chat.format import FORMATS, ChatFormat
from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.model.config import ModelConfig
from loom.model.huggingface import config_to_huggingface, from_huggingface, to_huggingface
from loom.model.transformer import Transformer
from loom.tokens.shards import open_tokens
from loom.trace.reading import document_table
from loom.train.data import PackedRows, Pairs
from tests.small import library_texts, write_lines

LENGTH = 256


@dataclass(frozen=True)
class Prepared:
    folder: Path
    rows: list[dict[str, Any]]

    def conversations(self, label_weight: str = "per_token") -> PackedRows:
        folder = open_tokens(self.folder)
        return PackedRows(folder, document_table(folder), LENGTH, 1, label_weight)

    def pairs(self) -> Pairs:
        folder = open_tokens(self.folder)
        return Pairs(folder, document_table(folder), LENGTH, 1)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def make(folder: Path, tokenizer: Path, objective: Literal["sft", "dpo"], count: int = 12) -> Prepared:
    """Conversations of one to three exchanges, or pairs on prompts of one or three turns."""
    words = " ".join(library_texts()).split()
    rows: list[dict[str, Any]] = []
    for number in range(count):
        said = [
            " ".join(words[number * 60 + at * 7 : number * 60 + at * 7 + 2 + (number * at) % 9])
            for at in range(8)
        ]
        turns = [message(("user", "assistant")[at % 2], said[at]) for at in range(2 * (1 + number % 3))]
        if objective == "sft":
            rows.append({"id": f"c{number}", "messages": turns})
        else:
            chosen, rejected = message("assistant", said[6] + " yes"), message("assistant", said[7] + " no")
            rows.append({"prompt": turns[:-1], "chosen": [chosen], "rejected": [rejected]})
    write_lines(folder / "rows.jsonl", rows)
    prepare(
        Prepare(objective, (Share(str(folder / "rows.jsonl")),), tokenizer, max_length=LENGTH), folder / "out"
    )
    return Prepared(folder / "out", rows)


def shape(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        d_model=32, n_layers=2, n_heads=4, mlp_width=48, vocab_size=vocab_size, context_length=LENGTH
    )


def twins(vocab_size: int, seed: int) -> tuple[Any, Transformer]:
    """One model in transformers and in Loom, random weights, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = shape(vocab_size)
    values = config_to_huggingface(config, 0, 1)
    torch.manual_seed(seed)
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**values), dtype=torch.float32, attn_implementation="eager"
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    mine = Transformer(config)
    mine.load_state_dict(from_huggingface(theirs.state_dict(), config))
    return theirs, mine


def gradients(theirs: Any, mine: Transformer) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, transformers' gradient, Loom's) of every parameter."""
    found = {name: p.grad for name, p in mine.named_parameters() if p.grad is not None}
    mapped = to_huggingface(found, mine.config)
    return [(name, p.grad, mapped[name]) for name, p in theirs.named_parameters()]


def peer_template(form: ChatFormat = FORMATS["olmo-v1"]) -> str:
    """The format's template with TRL's marks around what is trained, and no newline after the last answer."""
    said = "{{ '<|assistant|>\\n' + (message['content'] | trim) + eos_token + '\\n' }}"
    template = form.jinja()
    assert said in template
    marked = (
        "{{ '<|assistant|>\\n' }}{% generation %}{{ (message['content'] | trim) + eos_token }}"
        "{% endgeneration %}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    )
    return template.replace(said, marked)


def peer_tokenizer(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
        chat_template=peer_template(),
    )
