"""`loom import`: a Hugging Face folder or OLMo's own checkpoint -> a checkpoint at step 0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from loom.artifact import MANIFEST, Artifact, Input, finished, load, relative
from loom.chat.template import chat_template
from loom.console import console
from loom.errors import LoomError
from loom.model.transformer import Transformer
from loom.release.olmo import is_raw, open_raw
from loom.release.source import Source, as_input, open_source, type_name
from loom.tokens.shards import SpecialToken
from loom.tokens.tokenizer import Tokenizer
from loom.train.checkpoint import ModelCard, save_model


def import_model(folder: Path, out: Path, tokenizer: Path | None = None) -> Artifact:
    """Write the Hugging Face or raw OLMo model in `folder` to `out` as a checkpoint; weights keep their type.

    `tokenizer` is a tokenizer.json for a folder that has none. A chat template comes along. It is written beside
    `out` and takes its place when it is whole; only an earlier import is replaced. Raises `LoomError` for another
    architecture, for tensors that are missing or left over, by name, where the folder's end of text is not the
    tokenizer's, and where `out` holds anything else.
    """
    raw = open_raw(folder, out) if is_raw(folder) else None
    source = raw.source if raw else open_source(folder)
    if source.folder.kind == "checkpoint":
        raise LoomError(f"{folder} is a checkpoint of Loom's already; name a Hugging Face folder.")
    file = tokenizer or source.tokenizer
    if raw and not file.is_file():
        raise LoomError(
            f"{folder} holds no tokenizer.json, as OLMo's checkpoints do: give --tokenizer. OLMo v1's data were "
            f"made with allenai_gpt-neox-olmo-dolma-v1_5.json, in which 50279 is '<|endoftext|>'."
        )
    bound = Tokenizer.load(file)
    final = out.resolve()
    made = final.with_name(f".{final.name}.import")
    read = raw.digest if raw else as_input(source.folder, out)
    given = [Input(relative(source.folder.path, made), read.digest)]
    if raw or tokenizer:
        given.append(Input(relative(Path(bound.name), made), bound.digest))
    recipe = {"import": source.folder.kind}
    if (done := finished(out, "checkpoint", recipe, given)) is not None:
        console.say(f"{out} is imported already from {folder}; nothing to do.")
        return done
    _agree(source, bound, [raw.eos] if raw else _stated(folder))
    _refuse_other(out)
    card = ModelCard(
        source.config,
        SpecialToken(bound.eos_id, bound.eos_token),
        SpecialToken(bound.pad_id, bound.pad_token),
        bound.vocab_size,
    )
    with torch.device("meta"):
        model = Transformer(source.config)
    model.load_state_dict(source.read_all(source.entries), assign=True)
    inputs = [{"path": str(made / item.path), "digest": item.digest} for item in given]
    template = None if raw else chat_template(source.folder.path)
    facts = {"chat": template.facts()} if template else None
    save_model(made, model, card, Path(bound.name), inputs, recipe, facts=facts)
    if final.exists():
        shutil.rmtree(final)
    made.rename(final)
    imported = load(out, "checkpoint")
    console.table(
        f"Imported {out}",
        ["what", "value"],
        [
            ["parameters", source.config.parameters],
            ["weights", ", ".join(sorted({type_name(e.dtype) for e in source.entries.values()}))],
            ["context", source.config.context_length],
            ["end of text", f"{bound.eos_token} = {bound.eos_id}"],
            ["chat template", "none" if template is None else "kept"],
        ],
    )
    return imported


def _refuse_other(out: Path) -> None:
    """What stands at `out` may be replaced only if it is an import and nothing lies in it besides."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    held = load(out) if (out / MANIFEST).is_file() else None
    recipe = held.recipe if held and held.kind == "checkpoint" else None
    if held is None or not isinstance(recipe, dict) or "import" not in recipe:
        raise LoomError(f"{out} holds something else than an import; name another folder, or remove it.")
    listed = {MANIFEST, *(item.path for item in held.outputs)}
    here = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    if beside := [name for name in here if name not in listed]:
        raise LoomError(
            f"{out} holds {beside[0]} beside the model that was imported there: move it away first, or name another "
            f"folder."
        )


OLD_SLIP = (0, 50279)  # OLMo v1 stated 0 in its configuration while 50279 ended the documents of its data


def _stated(folder: Path) -> list[int | None]:
    """What config.json names as ends of text."""
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    return stated if isinstance(stated, list) else [stated]


def _agree(source: Source, tokenizer: Tokenizer, stated: list[int | None]) -> None:
    """The model's own binding of end of text must be the tokenizer's."""
    ids = [i for i in stated if i is not None]
    if source.folder.kind == "olmo" and (*ids, tokenizer.eos_id) == OLD_SLIP:
        console.say(
            "The configuration states 0 as the end of text, as OLMo v1's did; 50279 ended its documents."
        )
    elif ids and tokenizer.eos_id not in ids:
        shown = ", ".join(f"{i} ({tokenizer.decode([i])!r})" for i in ids)
        raise LoomError(
            f"{source.folder.path} ends text with id {shown}, but in {tokenizer.name} "
            f"{tokenizer.eos_token!r} is {tokenizer.eos_id}. One of the two files is another model's; OLMo v1's "
            f"data were made with the tokenizer in which 50279 is '<|endoftext|>'."
        )
    if tokenizer.vocab_size > source.config.vocab_size:
        raise LoomError(
            f"{tokenizer.name} has {tokenizer.vocab_size:,} entries but the model only "
            f"{source.config.vocab_size:,} rows: it is another model's tokenizer."
        )
