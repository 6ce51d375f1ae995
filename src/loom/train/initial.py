"""What training starts from: a run, a checkpoint or a Hugging Face folder, and whether the data are its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.huggingface import config_from_huggingface, read_folder
from loom.model.transformer import Transformer
from loom.tokens.digest import digest_file, digest_json
from loom.tokens.shards import TokenFolder
from loom.train.checkpoint import check, checkpoints, load_weights, newest_good, read_card, reference
from loom.train.parallel import World, load_full


def find_model(path: Path) -> Path:
    """The checkpoint or Hugging Face folder that a path means: a run folder means its newest checkpoint."""
    if (path / "config.json").is_file() or (path / "model.json").is_file():
        return path
    found, damaged = newest_good(path)
    if found is None:
        raise no_model(path, f" ({damaged[0]})" if damaged else "")
    return found


def no_model(path: Path, reason: str = "") -> LoomError:
    return LoomError(
        f"{path} is no run, no checkpoint and no Hugging Face folder{reason}: name a folder with checkpoints/, "
        f"model.json or config.json."
    )


@dataclass(frozen=True)
class Initial:
    """A model to start from, not yet read."""

    folder: Path
    config: ModelConfig
    lineage: dict[str, str]
    mapped: Mapping[str, Tensor] | None
    """The weights of a Hugging Face folder, mapped from its files; None of a checkpoint."""

    def fill(self, model: Transformer, world: World) -> None:
        """Copy the weights into `model`; of a sharded one each rank reads what it holds."""
        if self.mapped is not None:
            load_full(model, self.mapped)
        else:
            load_weights(self.folder, model, world)


def open_initial(path: Path, world: World) -> Initial:
    """The model at `path`, digested by one rank. Raises `LoomError` for what is none, or is damaged."""

    def whole() -> tuple[Path, str]:
        folder = find_model(path)
        if not (folder / "config.json").is_file():
            if folder == path:  # a run's newest was digested when it was found
                check(folder)
            return folder, ""
        files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
        return folder, digest_json([[file.name, digest_file(file)] for file in files])

    folder, digest = world.once(whole)
    if (folder / "config.json").is_file():
        config, weights = read_folder(folder)
        lineage = {"path": str(folder), "digest": digest}
        return Initial(folder, config, lineage, weights)
    return Initial(folder, read_card(folder).model, reference(folder), None)


def read_shape(path: Path) -> ModelConfig:
    """The shape of the model at `path`, of a run of its newest checkpoint; no weights are read or digested."""
    if (path / "config.json").is_file():
        return config_from_huggingface(json.loads((path / "config.json").read_text(encoding="utf-8")))
    if (path / "model.json").is_file():
        return read_card(path).model
    if not (found := checkpoints(path)):
        raise no_model(path)
    return read_card(found[-1]).model


def check_tokenizer(folder: Path, data: TokenFolder) -> None:
    """Raise `LoomError` unless ids mean in the data what they mean to the model, the end of a text first."""
    own = folder / "tokenizer.json"
    if (folder / "config.json").is_file():
        ends = json.loads((folder / "config.json").read_bytes()).get("eos_token_id")
        known = ends if isinstance(ends, list) else [ends]
        if ends is not None and data.eos.id not in known:
            raise LoomError(
                f"{folder} ends text with id {', '.join(map(str, known))}, {data.path} with {data.eos.id} "
                f"({data.eos.token!r}): prepare the data with the model's own tokenizer."
            )
        if not own.is_file() or digest_file(own, data.tokenizer_digest) == data.tokenizer_digest:
            return
        # Tools rewrite the file when they save it; what counts is which id a token has.
        here, there = _ids(own), _ids(data.tokenizer)
        for token, number in there.items():
            if here.get(token) != number:
                has = f"id {here[token]} in" if token in here else "not in"
                raise LoomError(
                    f"{data.path} was made with another tokenizer than {folder} has: {token!r} is id {number} there and "
                    f"{has} {own}. Prepare the data with the model's own tokenizer."
                )
        return
    card = read_card(folder)
    if card.eos != data.eos:
        raise LoomError(
            f"{folder} was trained with EOS {card.eos.token!r} ({card.eos.id}), {data.path} has {data.eos.token!r} "
            f"({data.eos.id}): prepare the data with the model's own tokenizer."
        )
    digest = digest_file(own, data.tokenizer_digest)
    if digest is not None and digest != data.tokenizer_digest:
        raise LoomError(
            f"{folder} was trained with another tokenizer than {data.path} was made with: prepare the data with {own}."
        )


def _ids(tokenizer: Path) -> dict[str, int]:
    """Every token of a tokenizer.json and its id."""
    try:
        body: dict[str, Any] = json.loads(tokenizer.read_bytes())
        vocabulary = (body.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # unigram: (token, score) in the order of ids
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        added = {str(item["content"]): int(item["id"]) for item in body.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoomError(f"{tokenizer} cannot be read as a tokenizer.json ({error}).") from None
    return {**vocabulary, **added}
