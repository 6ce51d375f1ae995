"""`loom export`: a model as the folder that `OlmoForCausalLM` and everything that reads it load.

Weights are streamed, a tensor at a time, into shards; then the folder is read back and compared with
the source, and a probe text goes through both, a block of each in memory at a time, before the
manifest says that the export is whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from loom.artifact import (
    MANIFEST,
    Artifact,
    Output,
    atomic_write,
    commit,
    describe,
    discard,
    finished,
    refuse_other,
    write_json,
)
from loom.chat.format import DEFAULT, FORMATS
from loom.chat.prompts import conversation
from loom.chat.template import Template, chat_template
from loom.console import console
from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.huggingface import config_from_huggingface, config_to_huggingface, read_config, weight_map
from loom.model.transformer import Block, Norm, rotation_angles
from loom.recipe import to_plain
from loom.release.card import write_card
from loom.release.safetensors import INDEX, SHARD_BYTES, Entry, Folder, Written, file_names, plan, write
from loom.release.source import Source, as_input, open_source, type_name
from loom.release.tokenizer_files import generation_config, special_tokens, tokenizer_config
from loom.tokens.tokenizer import Tokenizer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
}
PROBE = 48  # tokens of the text that goes through source and export
BEGUN = ".export-begun"  # lies in a folder that an export began and did not finish
THEIRS = ("config.json", "model.json", INDEX)  # what makes a folder somebody's model


@dataclass(frozen=True)
class Export:
    """How to export. `dtype` None keeps the weights' own; `chat` "auto" writes a template if it was tuned."""

    dtype: Literal["float32", "bfloat16", "bf16", "float16"] | None = None
    shard_bytes: int = SHARD_BYTES
    chat: Literal["auto", "yes", "no"] = "auto"


@dataclass(frozen=True)
class Difference:
    """What the check found. `weights`: largest |exported - source| over all weights, and the same as a share
    of the source's root mean square; `logits`: largest difference on the probe text."""

    weights: float
    relative: float
    logits: float
    seconds: float


def export(model: Path, out: Path, recipe: Export | None = None) -> Artifact:
    """Write MODEL to `out` as a Hugging Face folder and return the artifact (kind "model").

    Does nothing where that is done already. Raises `LoomError` for a model that cannot be exported, and
    when what was written is not what was read.
    """
    recipe = recipe or Export()
    started = time.monotonic()
    source = open_source(model)
    _refuse_folder(model, source, out)
    inputs = [as_input(source.folder, out)]
    plain = to_plain(recipe)
    if (done := finished(out, "model", plain, inputs)) is not None:
        (out / BEGUN).unlink(missing_ok=True)
        console.say(f"{out} is exported already from {source.folder.path}; nothing to do.")
        return done
    tokenizer = Tokenizer.load(source.tokenizer)
    _refuse_mixture(source, tokenizer)
    template = _template(source, recipe)
    dtype = DTYPES[recipe.dtype] if recipe.dtype else source.dtype
    shards = plan(
        [_entry(source, ours, theirs, dtype) for ours, theirs in weight_map(source.config).items()],
        recipe.shard_bytes,
    )
    names = file_names(len(shards))
    _room(out, names)
    with atomic_write(out / BEGUN) as stream:
        stream.write(b"")
    discard(out, "model")
    written = _write_weights(source, out, shards, names, dtype)
    small = _write_small(source, out, tokenizer, template, type_name(dtype))
    if len(names) > 1:
        small.append(_write_index(out, shards, names))
    found = check(source, out)
    if not math.isfinite(found.weights) or not math.isfinite(found.logits):
        raise LoomError(
            f"{source.folder.path} as {type_name(dtype)} holds or gives values that are not finite: choose another "
            f"--dtype (bfloat16 has float32's range), or look at the model. {out} is not finished."
        )
    same = recipe.dtype is None or _holds(dtype, {entry.dtype for entry in source.entries.values()})
    if same and found.weights:
        raise LoomError(
            f"{out} is not what {source.folder.path} holds: a weight differs by {found.weights:g}, where "
            f"{type_name(dtype)} holds every value. Is the disk sound? Export again."
        )
    write_card(out, source.folder.path, dtype=type_name(dtype), template=template.text if template else None)
    outputs = [Output(item.name, item.bytes, 0, item.xxh3) for item in written]
    outputs += describe(out, [*small, "README.md"])
    made = commit(
        out,
        "model",
        recipe=plain,
        inputs=inputs,
        outputs=outputs,
        counters={
            "parameters": source.config.parameters,
            "tensors": sum(map(len, shards)),
            "shards": len(names),
        },
        facts={
            "model": {
                "dtype": type_name(dtype),
                "difference": {"weights": found.weights, "relative": found.relative, "logits": found.logits},
                "sha256": {item.name: item.sha256 for item in written},
                "chat": template is not None,
            }
        },
        started=started,
    )
    (out / BEGUN).unlink(missing_ok=True)
    console.table(
        f"Exported {out}",
        ["file", "bytes"],
        [[item.path, item.bytes] for item in made.outputs],
    )
    kept = (
        "bit for bit"
        if not found.weights
        else f"to within {found.weights:.3g} ({found.relative:.2e} of their size)"
    )
    console.say(
        f"The weights are the source's {kept}; logits differ by {found.logits:.3g} on a probe text. "
        f"{time.monotonic() - started:.1f} s in all, {found.seconds:.1f} s of it the check."
    )
    return made


def _refuse_folder(model: Path, source: Source, out: Path) -> None:
    """An export may replace an export, finished or not, and nothing else: not its source, nobody's model."""
    if out.resolve() in (model.resolve(), source.folder.path.resolve()):
        raise LoomError(f"{out} is the model that is to be exported: name another folder to write to.")
    if out.exists() and not out.is_dir():
        raise LoomError(f"{out} is a file: name a folder to write to.")
    refuse_other(out, "model")
    if not out.is_dir() or (out / MANIFEST).is_file() or (out / BEGUN).is_file():
        return
    held = [path for path in sorted(out.iterdir()) if path.name in THEIRS or path.suffix == ".safetensors"]
    if held:
        raise LoomError(
            f"{out} holds {held[0].name}, which no export of Loom's wrote there: name another folder, or remove it."
        )


def _holds(dtype: torch.dtype, others: set[torch.dtype]) -> bool:
    """Whether every value of the other types is one of `dtype`."""
    return all(torch.promote_types(dtype, other) == dtype for other in others)


def _refuse_mixture(source: Source, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > source.config.vocab_size:
        raise LoomError(
            f"{source.tokenizer} has {tokenizer.vocab_size:,} entries but the model only "
            f"{source.config.vocab_size:,} rows: it is another model's tokenizer."
        )


def _template(source: Source, recipe: Export) -> Template | None:
    match recipe.chat:
        case "no":
            return None
        case "yes":
            return chat_template(source.folder.path) or Template(FORMATS[DEFAULT].jinja())
        case _:
            return chat_template(source.folder.path)


def _entry(source: Source, ours: str, theirs: str, dtype: torch.dtype) -> Entry:
    return Entry(theirs, dtype, source.entries[ours].shape)


def _room(out: Path, names: list[str]) -> None:
    """Other weights in the folder would be loaded with these: refuse rather than mix or delete."""
    others = [p.name for p in out.glob("*.safetensors") if p.name not in names] if out.is_dir() else []
    if others:
        raise LoomError(
            f"{out} already holds {others[0]}, which is not part of this export and would be loaded with it. "
            f"Remove it, or name another folder."
        )


def _write_weights(
    source: Source, out: Path, shards: list[list[Entry]], names: list[str], dtype: torch.dtype
) -> list[Written]:
    ours = {theirs: name for name, theirs in weight_map(source.config).items()}
    total = sum(entry.bytes for shard in shards for entry in shard)
    written = []
    with console.progress(f"export {out.name}", total=total) as progress:

        def read(name: str) -> Tensor:
            tensor = source.read(ours[name]).to(dtype)
            progress.advance(tensor.numel() * dtype.itemsize)
            return tensor

        for name, shard in zip(names, shards, strict=True):
            written.append(write(out / name, shard, read))
    return written


def _write_small(
    source: Source, out: Path, tokenizer: Tokenizer, template: Template | None, dtype: str
) -> list[str]:
    config = source.config
    text, bos = (template.text, template.bos_token) if template else (None, None)
    stops = conversation(tokenizer, template).stop_ids if template else ()
    files = {
        "config.json": config_to_huggingface(config, tokenizer.eos_id, tokenizer.pad_id, dtype),
        "generation_config.json": generation_config(tokenizer, stops),
        "tokenizer_config.json": tokenizer_config(tokenizer, config.context_length, text, bos),
        "special_tokens_map.json": special_tokens(tokenizer) | ({"bos_token": bos} if bos else {}),
    }
    for name, values in files.items():
        write_json(out / name, values)
    with atomic_write(out / "tokenizer.json") as stream:
        stream.write(tokenizer.data)
    return [*files, "tokenizer.json"]


def _write_index(out: Path, shards: list[list[Entry]], names: list[str]) -> str:
    values: dict[str, Any] = {
        "metadata": {"total_size": sum(entry.bytes for shard in shards for entry in shard)},
        "weight_map": {
            entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard
        },
    }
    write_json(out / INDEX, values)
    return INDEX


def check(source: Source, out: Path) -> Difference:
    """Read the export back: every weight beside the source's, and a probe text through both models."""
    begun = time.monotonic()
    exported, names, config = Folder(out), weight_map(source.config), source.config
    written = config_from_huggingface(read_config(out))
    if replace(written, n_kv_heads=written.kv_heads) != replace(config, n_kv_heads=config.kv_heads):
        raise LoomError(
            f"{out / 'config.json'} is not of the model in {source.folder.path}. Is the disk sound? Export again."
        )
    if set(exported.entries) != set(names.values()):
        odd = sorted(set(exported.entries) ^ set(names.values()))[0]
        raise LoomError(f"{out} was not written whole: {odd} is missing from it or should not be there.")
    probe = torch.arange(PROBE) * 7919 % config.vocab_size
    worst = ratio = 0.0
    streams: tuple[Tensor, Tensor] | None = None
    heads: tuple[Tensor, Tensor] | None = None
    logits = math.nan
    with torch.inference_mode(), console.progress("check the export", total=len(names)) as progress:
        for group in _groups(config):
            mine = source.read_all(group)
            theirs = {name: exported.read(names[name]) for name in group}
            for name in group:
                difference, share = _compare(mine[name], theirs[name])
                worst, ratio = max(worst, difference), max(ratio, share)
                progress.advance()
            if group[0] == "embed.weight":
                streams = _probe(probe, mine[group[0]]), _probe(probe, theirs[group[0]])
                if config.tied:
                    heads = mine[group[0]], theirs[group[0]]
            elif group[0].startswith("blocks."):
                assert streams is not None
                streams = (
                    _through(config, group, mine, streams[0]),
                    _through(config, group, theirs, streams[1]),
                )
            else:
                assert streams is not None
                streams = _finish(config, mine, streams[0]), _finish(config, theirs, streams[1])
                if not config.tied:
                    heads = mine["head.weight"], theirs["head.weight"]
            del mine, theirs  # else the next block is read while this one is still held
        assert streams is not None
        assert heads is not None
        if not any(group[0].startswith(("norm", "head")) for group in _groups(config)):
            streams = _finish(config, {}, streams[0]), _finish(config, {}, streams[1])
        a, b = (F.linear(x[-1:], head.float()) for x, head in zip(streams, heads, strict=True))
        logits = float((a - b).abs().max())
    return Difference(worst, ratio, logits, time.monotonic() - begun)


def _groups(config: ModelConfig) -> Iterator[list[str]]:
    """Weights in the order of the forward pass: the embedding, each block, what comes after."""
    names = list(weight_map(config))
    yield ["embed.weight"]
    for i in range(config.n_layers):
        yield [name for name in names if name.startswith(f"blocks.{i}.")]
    if last := [name for name in names if name.startswith(("norm.", "head."))]:
        yield last


def _compare(mine: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Largest difference, and the same as a share of `mine`'s root mean square; 0 where bitwise equal."""
    if mine.dtype == theirs.dtype and torch.equal(mine, theirs):
        return 0.0, 0.0
    difference = float((mine.float() - theirs.float()).abs().max())
    size = float(mine.float().pow(2).mean().sqrt())
    if not math.isfinite(difference):
        return math.inf, math.inf
    return difference, difference / size if size else math.inf


def _probe(ids: Tensor, embedding: Tensor) -> Tensor:
    return F.embedding(ids, embedding).float()


def _through(config: ModelConfig, names: list[str], weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """x [T, d] through one block with these weights, in float32."""
    with torch.device("meta"):
        block = Block(config)
    own = {name.split(".", 2)[2]: weights[name].float() for name in names}
    block.load_state_dict(own, assign=True)
    cos, sin = rotation_angles(torch.arange(len(x))[None], config.head_dim, config.rope_theta)
    y: Tensor = block(x[None], cos.unsqueeze(2), sin.unsqueeze(2))[0]
    return y


def _finish(config: ModelConfig, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    norm = Norm(config.d_model, config)
    if norm.weight is not None:
        norm.weight.data = weights["norm.weight"].float()
    y: Tensor = norm(x)
    return y
