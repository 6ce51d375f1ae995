"""The transformer is bitwise Hugging Face's, and masks, caches and positions mean what they say."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from loom.errors import LoomError
from loom.model.attention import KVCache, attend, document_mask
from loom.model.config import ModelConfig
from loom.model.huggingface import (
    config_from_huggingface,
    config_to_huggingface,
    from_huggingface,
    to_huggingface,
)
from loom.model.initialize import initialize
from loom.model.presets import PRESETS, ModelRecipe, resolve
from loom.model.transformer import Transformer

SHAPE = {
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "mlp_width": 176,
    "vocab_size": 256,
    "context_length": 128,
}
SECOND = {"norm": "rmsnorm", "qk_norm": True, "norm_after": True, "rope_theta": 500_000.0, "norm_eps": 1e-6}
OPTIONS = [
    {"tied": tied, "n_kv_heads": kv, **rest}
    for tied, kv, rest in product((False, True), (None, 2), ({}, {"clip_qkv": 0.02}, SECOND))
]


def build(**options) -> Transformer:
    model = Transformer(ModelConfig(**{**SHAPE, **options}))
    initialize(model, seed=3)
    return model.eval()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_logits_are_bitwise_those_of_hugging_face(options: dict) -> None:
    transformers = pytest.importorskip("transformers")
    model = build(**options)
    second = options.get("norm") == "rmsnorm"
    values = config_to_huggingface(model.config, eos_id=0, pad_id=1)
    kind = transformers.Olmo2Config if second else transformers.OlmoConfig
    oracle = getattr(transformers, values["architectures"][0])(
        kind(**values, attn_implementation="sdpa")
    ).eval()
    weights = to_huggingface(model.state_dict(), model.config)
    missing, unexpected = oracle.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if model.config.tied else [])
    oracle.tie_weights()
    with torch.no_grad():
        for shape in ((1, 1), (2, 33), (1, 128)):
            ids = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))
            assert torch.equal(model(ids), oracle(ids).logits)
    assert config_from_huggingface(oracle.config.to_dict()) == model.config
    back = from_huggingface(weights, model.config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_published_parameter_counts() -> None:
    counts = {"olmo-1b": 1_176_764_416, "olmo-7b": 6_888_095_744, "olmo-65b": 65_584_234_496}
    assert {name: PRESETS[name].parameters for name in counts} == counts
    for name in ("tiny", "olmo-1b", "olmo-7b", "olmo2-7b"):
        with torch.device("meta"):
            model = Transformer(PRESETS[name])
        assert sum(p.numel() for p in model.parameters()) == PRESETS[name].parameters


@pytest.mark.parametrize("options", [{}, SECOND, {"n_kv_heads": 2}], ids=["olmo", "olmo2", "grouped"])
def test_packed_documents_do_not_see_each_other(options: dict) -> None:
    model = build(**options)
    ids = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(2))
    documents = torch.tensor([[0] * 10 + [1] * 9 + [-1] * 5])
    positions = torch.tensor([[*range(10), *range(9), *range(5)]])
    with torch.no_grad():
        packed = model(ids, position_ids=positions, document_ids=documents)
        alone = torch.cat((model(ids[:, :10]), model(ids[:, 10:19])), dim=1)
    torch.testing.assert_close(packed[:, :19], alone, rtol=1e-5, atol=1e-5)
    assert packed.isfinite().all()


@pytest.mark.parametrize("pieces", [(1,) * 12, (5, 7), (5, 1, 6)])
def test_a_cache_changes_nothing(pieces: tuple[int, ...]) -> None:
    model = build(n_kv_heads=2)
    ids = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(3))
    cache = KVCache(model.config, 3, 12)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in ids.split(list(pieces), dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-5, atol=1e-5)


def test_selected_positions_are_those_of_the_whole() -> None:
    model = build()
    ids = torch.randint(0, 256, (2, 8))
    at = torch.tensor([0, 7, 9])
    with torch.no_grad():
        torch.testing.assert_close(model(ids, at=at), model(ids).flatten(0, 1)[at])


def test_bf16_compute_keeps_float32_weights_and_gradients() -> None:
    model = build()
    model.compute_dtype = torch.bfloat16
    loss = model(torch.randint(0, 256, (2, 8))).float().logsumexp(-1).sum()
    loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_rows_follow_the_vocabulary_unless_the_preset_fixes_them() -> None:
    assert resolve(ModelRecipe(preset="tiny"), entries=5001).vocab_size == 5120
    assert resolve(ModelRecipe(preset="olmo-1b"), entries=50280).vocab_size == 50304
    with pytest.raises(LoomError, match=r"60,000 entries.*50,304"):
        resolve(ModelRecipe(preset="olmo-1b"), entries=60_000)
    with pytest.raises(LoomError, match="olmo-1b"):
        resolve(ModelRecipe(preset="olmo-1B"))
    with pytest.raises(LoomError, match=r"model\.mlp_width"):
        resolve(ModelRecipe(d_model=64, n_layers=1, n_heads=1, vocab_size=8, context_length=8))


@pytest.mark.parametrize("length", [5, 128, 200, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_for_training_is_torchs(length: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    q, k, v, slope = (torch.randn(2, length, 3, 16, generator=generator).transpose(1, 2) for _ in range(4))
    mask = None
    if masked:
        mask = document_mask(
            torch.randint(-1, 3, (2, length), generator=generator).sort(descending=True).values
        )
    results = []
    for function in (
        partial(attend, training=True),
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m, is_causal=m is None),
    ):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = function(*leaves, mask)
        results.append((out, *torch.autograd.grad(out, leaves, slope)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
