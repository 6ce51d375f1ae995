"""The small files of a Hugging Face folder, written by ourselves.

Old readers do not know what new versions of the library write (a class named `TokenizersBackend`,
lists of extra tokens), so every key here is one that all of them read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from loom.tokens.tokenizer import Tokenizer

CLASS = "PreTrainedTokenizerFast"  # takes tokenizer.json as it is; GPTNeoX's class rebuilds parts of it


def tokenizer_config(
    tokenizer: Tokenizer, context_length: int, template: str | None, bos_token: str | None = None
) -> dict[str, Any]:
    """tokenizer_config.json. `template` is the chat template: Loom's are on one line, another's as it came."""
    added = json.loads(tokenizer.data)["added_tokens"]
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    values: dict[str, Any] = {
        "tokenizer_class": CLASS,
        "model_max_length": context_length,
        "bos_token": bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: token.get(key, False) for key in keys}
            for token in sorted(added, key=lambda token: token["id"])
        },
    }
    return values | ({"chat_template": template} if template is not None else {})


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """special_tokens_map.json: end of text and padding, by their strings."""
    return {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}


def generation_config(tokenizer: Tokenizer, stop_ids: Sequence[int] = ()) -> dict[str, Any]:
    """generation_config.json from the tokenizer's own binding of end of text; `stop_ids` end an answer too."""
    ends = [tokenizer.eos_id, *(i for i in stop_ids if i != tokenizer.eos_id)]
    return {
        "_from_model_config": False,
        "bos_token_id": None,
        "eos_token_id": ends if len(ends) > 1 else tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
