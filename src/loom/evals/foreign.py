"""Models of other architectures, through `transformers` where it is installed.

Families differ in what they do behind the last hidden state (Gemma caps its logits, Cohere and Granite scale
them) and in what they take before it: ALiBi and state-space models read neither position ids nor a mask
that lets two continuations share a row. What a family does is not looked up in a list but tried on the
loaded model: `Foreign.check` compares with the model's own plain forward, and a model that cannot share
rows gets one continuation a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loom.errors import LoomError
from loom.evals.encode import Opening
from loom.tokens.tokenizer import Tokenizer

OURS = ("olmo", "olmo2")
PROBE = 12  # tokens of each part of the rows that a model is tried on


def is_foreign(path: Path) -> bool:
    """Whether `path` is a Hugging Face folder of an architecture that Loom does not build itself."""
    try:
        kind = json.loads((path / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError):
        return False
    return kind not in OURS


class Foreign(nn.Module):
    """A transformers model behind the scorer's interface. Shared prefixes are not kept: `cache` must be
    None. A `plain` one takes no mask either: every row is one sequence."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        head = inner.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None:
            raise LoomError(
                f"{type(inner).__name__} has no plain output matrix, so it cannot be scored here."
            )
        config = inner.config
        self.vocab_size = int(head.weight.shape[0])
        self.context_length = int(
            getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 2048
        )
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        # A mask of our own would take the place of the model's window.
        window = getattr(config, "sliding_window", None)
        self.plain = window is not None and window < self.context_length

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        cache: None = None,
        at: Tensor | None = None,
        readout: Callable[..., Any] | None = None,
    ) -> Any:
        if cache is not None:
            raise ValueError("a foreign model takes no cache")
        if self.plain:
            if attn_mask is not None:
                raise ValueError("this model takes one sequence a row")
            inputs: dict[str, Any] = {}
        else:
            inputs = {"position_ids": position_ids}
            if attn_mask is not None:
                lowest = torch.finfo(self.inner.dtype).min
                mask = torch.zeros_like(attn_mask, dtype=self.inner.dtype)
                inputs["attention_mask"] = mask.masked_fill(~attn_mask, lowest)
        hidden = self.inner.base_model(input_ids=input_ids, use_cache=False, **inputs)[0]
        if at is not None:
            hidden = hidden.flatten(0, 1)[at]
        if self.scale != 1.0:
            hidden = hidden * self.scale
        head = self.inner.get_output_embeddings()
        if readout is None:
            logits = head(hidden)
            return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
        return readout(hidden, head.weight) if self.cap is None else readout(hidden, head.weight, self.cap)

    def generate(
        self, prompt: Sequence[int], limit: int, stop_ids: Sequence[int], ended: Callable[[list[int]], bool]
    ) -> tuple[list[int], bool]:
        """At most `limit` greedy tokens after `prompt`, a stop id not among them, and whether they ended: at a
        stop id, or where `ended` says so of the new tokens. What the folder says of sampling does not count."""
        import transformers as library

        transformers: Any = library
        settings = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=list(stop_ids),
            pad_token_id=next(iter(stop_ids), 0),
        )
        self.inner.generation_config = settings
        ids = torch.tensor([list(prompt)], device=self.inner.get_output_embeddings().weight.device)

        def stop(found: Tensor, _: Any) -> Tensor:
            return torch.tensor([ended(found[0, len(prompt) :].tolist())], device=found.device)

        with torch.inference_mode():
            whole = self.inner.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=transformers.StoppingCriteriaList([stop]),
            )
        new = whole[0, len(prompt) :].tolist()
        if new and new[-1] in stop_ids:
            return new[:-1], True
        return new, ended(new)

    def check(self) -> None:
        """Try the model on rows of random tokens, against its own forward on each sequence by itself.

        Sets `plain` where two continuations in one row do not give what they give apart. Raises
        `LoomError` where the logits are made of the last hidden state in a way that is not known here, and
        where a token depends on those after it.
        """
        name = type(self.inner).__name__
        device = self.inner.get_output_embeddings().weight.device
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocab_size, (3, PROBE), generator=random).to(device)
        context, one, other = ids
        rows = torch.stack([torch.cat([context, one]), torch.cat([context, other])])
        tolerance = 0.01 if self.inner.dtype == torch.float32 else 0.25
        with torch.inference_mode():
            own = self.inner(input_ids=rows, use_cache=False).logits.float().log_softmax(-1)
            if float((own[0, : PROBE - 1] - own[1, : PROBE - 1]).abs().max()) > tolerance:
                raise LoomError(
                    f"{name} is no causal language model as it is configured: what it says of a token depends on "
                    f"the tokens after it. It gets no figure."
                )
            shared, self.plain = self.plain, True
            ours = self(rows).float().log_softmax(-1)
            if not float((own - ours).abs().max()) <= tolerance:
                raise LoomError(
                    f"{name} makes its logits from the last hidden state in a way that is not known here: scores "
                    f"would be wrong. It gets no figure."
                )
            self.plain = shared or not self._shares_rows(context, one, other, own, tolerance)

    def _shares_rows(
        self, context: Tensor, one: Tensor, other: Tensor, own: Tensor, tolerance: float
    ) -> bool:
        """Whether two continuations behind one context in one row are scored as they are apart."""
        row = torch.cat([context, one, other])[None]
        place = torch.arange(2 * PROBE, device=row.device)
        positions = torch.cat([place, place[PROBE:]])[None]
        index = torch.arange(3 * PROBE, device=row.device)
        mask = index[:, None] >= index[None, :]
        mask[2 * PROBE :, PROBE : 2 * PROBE] = False
        self.plain = False
        try:
            found = self(row, position_ids=positions, attn_mask=mask[None, None]).float().log_softmax(-1)[0]
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError):
            return False
        apart = torch.cat([own[0], own[1, PROBE:]])
        return float((found - apart).abs().max()) <= tolerance


def load_foreign(path: Path, dtype: torch.dtype) -> Foreign:
    """Raises `LoomError` if transformers is not installed, does not know the architecture, or reports
    weights that were missing: those would be random numbers."""
    try:
        import transformers as library
    except ImportError:
        raise LoomError(
            f"{path} is of an architecture that Loom does not build itself; install transformers to evaluate "
            f"it (pip install transformers)."
        ) from None
    transformers: Any = library
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise LoomError(f"transformers cannot load {path}: {str(error).splitlines()[0]}") from None
    inner, info = loaded
    missing = sorted(info.get("missing_keys") or ())
    if missing or info.get("mismatched_keys"):
        named = missing[0] if missing else str(info["mismatched_keys"])
        raise LoomError(
            f"{path} does not hold all weights of {type(inner).__name__} ({named} is missing or of another "
            f"shape), so parts of it would be random numbers: it gets no figure."
        )
    model = Foreign(inner.eval())
    model.check()
    return model


def opening_of(path: Path, tokenizer: Tokenizer) -> Opening:
    """What `transformers`, and with it lm-evaluation-harness, puts before a text: the tokens of the post-processor in
    tokenizer.json; and before nothing the BOS of tokenizer_config.json, where there is one."""
    processor = json.loads(tokenizer.data).get("post_processor") or {}
    always: list[int] = []
    for part in processor.get("processors", [processor]):
        for piece in part.get("single", ()) if part.get("type") == "TemplateProcessing" else ():
            if "SpecialToken" not in piece:
                break
            always += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    try:
        stated = json.loads((path / "tokenizer_config.json").read_bytes()).get("bos_token")
    except (OSError, ValueError, AttributeError):
        stated = None
    bos = stated.get("content") if isinstance(stated, dict) else stated
    if isinstance(bos, str) and bos in tokenizer.control:
        return Opening(tuple(always), tokenizer.token_id(bos))
    return Opening(tuple(always), always[-1] if always else None)
