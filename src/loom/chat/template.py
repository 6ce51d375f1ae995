"""The chat template a model brings along: from a Hugging Face folder's files, or from Loom's manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.errors import LoomError


@dataclass(frozen=True)
class Template:
    """How a model is talked to.

    `text` is a Jinja template; `format` the keys of the `ChatFormat` it was made from, where Loom tuned the
    model; `stop_ids` end an answer besides the tokenizer's end of text; `bos_token` is what the template
    may call by that name.
    """

    text: str
    format: Mapping[str, Any] | None = None
    stop_ids: tuple[int, ...] = ()
    bos_token: str | None = None

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it under `chat`; `chat_template` reads it back."""
        found: dict[str, Any] = {"template": self.text}
        if self.format is not None:
            found["shape"] = dict(self.format)
        if self.stop_ids:
            found["stop_ids"] = list(self.stop_ids)
        if self.bos_token is not None:
            found["bos_token"] = self.bos_token
        return found


def chat_template(path: Path) -> Template | None:
    """The template of the model at `path`, a checkpoint or a Hugging Face folder; None where it has none.

    A Hugging Face folder says it itself. For a checkpoint it is that of the conversations it was tuned on,
    found by walking its manifests. Raises `LoomError` for a file that is not what it should be.
    """
    if (path / "config.json").is_file():
        return _of_folder(path)
    seen: set[Path] = set()
    layer = [path]
    while layer:
        following: list[Path] = []
        for folder in layer:
            manifest = folder / "manifest.json"
            if folder.resolve() in seen or not manifest.is_file():
                continue
            seen.add(folder.resolve())
            body = json.loads(manifest.read_bytes())
            chat = body.get("chat")
            if isinstance(chat, dict) and isinstance(chat.get("template"), str):
                stops = tuple(int(i) for i in chat.get("stop_ids", ()))
                return Template(chat["template"], chat.get("shape"), stops, chat.get("bos_token"))
            inputs = body.get("inputs")
            if isinstance(inputs, list):
                following += [folder / item["path"] for item in inputs]
        layer = following
    return None


def _of_folder(path: Path) -> Template | None:
    """transformers' rule: chat_template.jinja goes before tokenizer_config.json; of a list, the default."""
    config = _json(path / "tokenizer_config.json")
    file = path / "chat_template.jinja"
    text = _text(file) if file.is_file() else _chosen(config.get("chat_template"), path)
    if text is None:
        return None
    ends = _json(path / "generation_config.json").get("eos_token_id")
    stops = ends if isinstance(ends, list) else [ends]
    bos = config.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    kept = tuple(i for i in stops if isinstance(i, int) and not isinstance(i, bool))
    return Template(text, None, kept, bos if isinstance(bos, str) else None)


def _chosen(value: object, path: Path) -> str | None:
    """A template, or the default of several: {name: template}, or [{"name", "template"}]."""
    if isinstance(value, list):
        pairs = [(item.get("name"), item.get("template")) for item in value if isinstance(item, dict)]
        value = {str(name): text for name, text in pairs if isinstance(text, str)}
    if isinstance(value, dict):
        if "default" not in value and len(value) > 1:
            raise LoomError(
                f"{path / 'tokenizer_config.json'} has the chat templates {', '.join(sorted(value))} and none named "
                f"default: rename the one to use."
            )
        value = value.get("default", next(iter(value.values()), None))
    return value if isinstance(value, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(_text(file))
    except ValueError as error:
        raise LoomError(f"{file} is not JSON ({error}): fetch it again.") from None
    return value if isinstance(value, dict) else {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoomError(f"{file} cannot be read ({error}): fetch it again.") from None
