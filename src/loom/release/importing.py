"""`loom import`: a Hugging Face folder -> a checkpoint at step 0, a model by itself."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from loom.artifact import Artifact, finished, load
from loom.console import console
from loom.errors import LoomError
from loom.model.transformer import Transformer
from loom.release.source import Source, as_input, open_source, type_name
from loom.tokens.shards import SpecialToken
from loom.tokens.tokenizer import Tokenizer
from loom.train.checkpoint import ModelCard, save_model


def import_model(folder: Path, out: Path, tokenizer: Path | None = None) -> Artifact:
    """Write the Hugging Face model in `folder` to `out` as a checkpoint; weights keep their type.

    `tokenizer` is a tokenizer.json for a folder that has none. Raises `LoomError` for another
    architecture, for tensors that are missing or left over, by name, and where the folder's end of text
    is not the tokenizer's.
    """
    source = open_source(folder)
    if source.folder.kind != "huggingface":
        raise LoomError(f"{folder} is a checkpoint of Loom's already; name a Hugging Face folder.")
    given = as_input(source.folder, out)
    recipe = {"import": "huggingface"}
    if (done := finished(out, "checkpoint", recipe, [given])) is not None:
        console.say(f"{out} is imported already from {folder}; nothing to do.")
        return done
    file = tokenizer or source.tokenizer
    bound = Tokenizer.load(file)
    _agree(source, bound)
    if out.exists() and any(out.iterdir()) and not (out / "model.json").exists():
        raise LoomError(f"{out} holds other things than a checkpoint; name another folder.")
    card = ModelCard(
        source.config,
        SpecialToken(bound.eos_id, bound.eos_token),
        SpecialToken(bound.pad_id, bound.pad_token),
        bound.vocab_size,
    )
    with torch.device("meta"):
        model = Transformer(source.config)
    model.load_state_dict(source.read_all(source.entries), assign=True)
    inputs = [{"path": str(folder), "digest": given.digest}]
    save_model(out, model, card, Path(bound.name), inputs, recipe)
    made = load(out, "checkpoint")
    console.table(
        f"Imported {out}",
        ["what", "value"],
        [
            ["parameters", source.config.parameters],
            ["weights", ", ".join(sorted({type_name(e.dtype) for e in source.entries.values()}))],
            ["context", source.config.context_length],
            ["end of text", f"{bound.eos_token} = {bound.eos_id}"],
        ],
    )
    return made


def _agree(source: Source, tokenizer: Tokenizer) -> None:
    """The folder's own binding of end of text and padding must be the tokenizer's."""
    path = source.folder.path / "config.json"
    stated = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    ids = stated if isinstance(stated, list) else [stated]
    if stated is not None and tokenizer.eos_id not in ids:
        shown = ", ".join(f"{i} ({tokenizer.decode([i])!r})" for i in ids)
        raise LoomError(
            f"{path} ends text with id {shown}, but in {tokenizer.name} {tokenizer.eos_token!r} is "
            f"{tokenizer.eos_id}. One of the two files is another model's; OLMo v1's data were made with the "
            f"tokenizer in which 50279 is '<|endoftext|>'."
        )
    if tokenizer.vocab_size > source.config.vocab_size:
        raise LoomError(
            f"{tokenizer.name} has {tokenizer.vocab_size:,} entries but the model only "
            f"{source.config.vocab_size:,} rows: it is another model's tokenizer."
        )
