"""The model that is evaluated, with its tokenizer: from a Hugging Face folder, a checkpoint or a run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loom import artifact
from loom.artifact import digest_file
from loom.console import console
from loom.errors import LoomError
from loom.evals.encode import PLAIN, Opening
from loom.evals.foreign import Foreign, is_foreign, load_foreign, opening_of
from loom.model.product import hasten
from loom.tokens.tokenizer import Tokenizer
from loom.train.opening import open_model

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """`max_length` is the context the model was made for; `digest` is that of its weights' files. `cached`:
    what it gives is kept in the user's cache folder and looked up there. `opening` is what it reads before a text."""

    model: Any
    tokenizer: Tokenizer
    max_length: int
    path: Path
    digest: str
    dtype: str
    device: str
    cached: bool = False
    opening: Opening = PLAIN


def load_subject(path: Path, dtype: str = "float32", device: str | None = None) -> Subject:
    """Load MODEL for evaluation. Raises `LoomError` for a folder that is none, for weights that are missing
    or left over, and for a tokenizer whose ids the model has no rows for."""
    if dtype not in DTYPES:
        raise LoomError(f"--dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any
    if is_foreign(path) and (path / "config.json").is_file():
        model, there = load_foreign(path, DTYPES[dtype]), path
        rows, length = model.vocab_size, model.context_length
    else:
        model, folder = open_model(path, DTYPES[dtype])
        hasten(model)
        there, rows, length = folder.path, model.config.vocab_size, model.config.context_length
    _check_written(there)
    tokenizer = Tokenizer.load(there)
    _check_end(there, tokenizer)
    if tokenizer.vocab_size > rows:
        raise LoomError(
            f"The tokenizer in {there} has {tokenizer.vocab_size:,} entries but the model only {rows:,} rows: "
            f"it is another model's tokenizer."
        )
    model = model.to(device).eval()
    opening = opening_of(there, tokenizer) if isinstance(model, Foreign) else PLAIN
    return Subject(model, tokenizer, length, there, digest(there), dtype, device, opening=opening)


def _check_written(path: Path) -> None:
    """Raise `LoomError` where the folder's own manifest lists another tokenizer.json than the one that is there: its
    ids would be read by a model that was taught others."""
    try:
        listed = {output.path: output.digest for output in artifact.load(path).outputs}
    except LoomError:
        return  # a folder from elsewhere
    file = path / "tokenizer.json"
    if file.is_file() and listed.get(file.name, digest_file(file)) != digest_file(file):
        raise LoomError(
            f"{file} is not the one that this model was written with (its digest is not what {path / artifact.MANIFEST} "
            f"lists): put that one back, or export the model again."
        )


OLD_SLIP = (0, 50279)  # OLMo v1 stated 0 in its configuration while 50279 ended the documents of its data


def _check_end(path: Path, tokenizer: Tokenizer) -> None:
    """Raise `LoomError` unless the model ends text with the tokenizer's own token (documents and prompts are
    read behind it), or, a tuned one of another family, with another of its control tokens."""
    stated: list[Any] = []
    card = path / "model.json"
    if card.is_file():
        stated = [json.loads(card.read_bytes()).get("eos", {}).get("id")]
    else:
        for name in ("config.json", "generation_config.json"):
            if (path / name).is_file():
                ids = json.loads((path / name).read_bytes()).get("eos_token_id")
                stated += ids if isinstance(ids, list) else [ids]
    known = [one for one in stated if isinstance(one, int)]
    ends = {tokenizer.eos_id}
    if is_foreign(path):
        ends |= {tokenizer.token_id(token) for token in tokenizer.control}
    if not known:
        console.warn(
            f"{path} says nowhere which token ends text, so that its tokenizer.json is its own could not be checked."
        )
    if known and not ends & set(known) and (known[0], tokenizer.eos_id) != OLD_SLIP:
        raise LoomError(
            f"{path} ends text with id {known[0]}, but in its tokenizer.json {tokenizer.eos_token!r} is "
            f"{tokenizer.eos_id}: one of the two is another model's."
        )


def digest(path: Path) -> str:
    """What identifies a model's weights: the manifest's digest of a checkpoint; of a Hugging Face folder
    sha256 over the names and contents of weights, configuration and tokenizer."""
    if (path / artifact.MANIFEST).is_file() and not (path / "config.json").is_file():
        return artifact.load(path).digest
    state = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json") and file.is_file():
            state.update(file.name.encode() + b"\0")
            with open(file, "rb") as stream:
                while chunk := stream.read(1 << 20):
                    state.update(chunk)
    return state.hexdigest()
