"""OLMo's own checkpoints: imported they give OLMo's logits; what is not one is refused by name."""

from __future__ import annotations

import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from loom.errors import LoomError
from loom.library import load
from loom.model.huggingface import parameter_shapes
from loom.release.importing import import_model
from loom.release.olmo import model_config, open_raw
from loom.tokens.tokenizer import Tokenizer

SAVE = Path(__file__).parents[1] / "oracles" / "olmo_save.py"
SAVE_PARTS = SAVE.with_name("olmo_save_parts.py")
OPTIONS: dict[str, Any] = {
    "d_model": 48, "n_heads": 4, "n_layers": 3, "mlp_hidden_size": 256, "vocab_size": 1200,
    "embedding_size": 1280, "max_sequence_length": 64, "weight_tying": True, "activation_type": "swiglu",
    "block_type": "sequential", "rope": True, "include_bias": False, "bias_for_layer_norm": False,
    "layer_norm_type": "default", "layer_norm_with_affine": False, "attention_layer_norm": False,
    "attention_layer_norm_with_affine": False, "pad_token_id": 1,
}  # fmt: skip


def tensors(options: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under OLMo's names."""
    config = model_config(options, Path("config.yaml"))
    chance = torch.Generator().manual_seed(3)
    d, kv, mlp = config.d_model, config.kv_width, config.mlp_width
    shapes = {"transformer.wte.weight": (config.vocab_size, d)}
    for i in range(config.n_layers):
        block = f"transformer.blocks.{i}"
        shapes |= {
            f"{block}.att_proj.weight": (d + 2 * kv, d),
            f"{block}.attn_out.weight": (d, d),
            f"{block}.ff_proj.weight": (2 * mlp, d),
            f"{block}.ff_out.weight": (d, mlp),
        }
    if not config.tied:
        shapes["transformer.ff_out.weight"] = (config.vocab_size, d)
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


@pytest.fixture
def write(tmp_path: Path, tokenizer_path: Path) -> Callable[..., Path]:
    """`write(weights, **options)` makes an OLMo checkpoint."""

    def make(weights: Any = None, **changes: Any) -> Path:
        folder = tmp_path / "step100-unsharded"
        folder.mkdir(exist_ok=True)
        options = OPTIONS | {"eos_token_id": Tokenizer.load(tokenizer_path).eos_id} | changes
        torch.save(tensors(options) if weights is None else weights, folder / "model.pt")
        (folder / "config.yaml").write_text(yaml.safe_dump({"run_name": "small", "model": options}))
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"weight_tying": False, "n_kv_heads": 2, "clip_qkv": 0.5}])
def test_logits_are_olmos(
    tmp_path: Path, tokenizer_path: Path, oracle: Callable[[str], Path], changes: dict[str, Any]
) -> None:
    eos = Tokenizer.load(tokenizer_path).eos_id
    options = json.dumps(OPTIONS | {"eos_token_id": eos} | changes)
    subprocess.run([str(oracle("ai2-olmo")), str(SAVE), str(tmp_path / "olmo"), options], check=True)
    import_model(tmp_path / "olmo", tmp_path / "out", tokenizer_path)
    model, _ = load(tmp_path / "out")
    with np.load(tmp_path / "olmo" / "logits.npz") as expected, torch.inference_mode():
        got = model(torch.from_numpy(expected["ids"])).numpy()
        np.testing.assert_allclose(got, expected["logits"], atol=2e-5)


@pytest.mark.slow
def test_what_two_ranks_of_fsdp_saved_is_the_whole_model(
    tmp_path: Path, tokenizer_path: Path, oracle: Callable[[str], Path]
) -> None:
    eos = Tokenizer.load(tokenizer_path).eos_id
    python, whole = str(oracle("ai2-olmo")), tmp_path / "whole"
    subprocess.run([python, str(SAVE), str(whole), json.dumps(OPTIONS | {"eos_token_id": eos})], check=True)
    subprocess.run([python, str(SAVE_PARTS), str(whole)], check=True)
    import_model(whole, tmp_path / "a", tokenizer_path)
    (whole / "model.pt").unlink()
    import_model(whole, tmp_path / "b", tokenizer_path)
    first, second = load(tmp_path / "a")[0].state_dict(), load(tmp_path / "b")[0].state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def in_parts(folder: Path) -> Path:
    """The checkpoint's weights as torch's distributed format holds them, an optimizer's state beside them."""
    weights = torch.load(folder / "model.pt", weights_only=True)
    state = {"model": weights, "optim": {"state": {"transformer.wte.weight": {"exp_avg": torch.zeros(3)}}}}
    save(state, storage_writer=FileSystemWriter(folder / "model_and_optim"), no_dist=True)
    (folder / "model.pt").unlink()
    return folder


def test_a_checkpoint_in_parts_is_the_whole_one(
    write: Callable[..., Path], tmp_path: Path, tokenizer_path: Path
) -> None:
    import_model(write(), tmp_path / "whole", tokenizer_path)
    import_model(in_parts(write()), tmp_path / "parts", tokenizer_path)
    first, second = load(tmp_path / "whole")[0].state_dict(), load(tmp_path / "parts")[0].state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_part_that_is_missing_and_one_that_runs_code_are_named(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = in_parts(write())
    part = next((folder / "model_and_optim").glob("*.distcp"))
    part.rename(tmp_path / "elsewhere")
    with pytest.raises(LoomError, match="a part of it is missing"):
        open_raw(folder, tmp_path)
    (tmp_path / "elsewhere").rename(part)
    (folder / "model_and_optim" / ".metadata").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(LoomError, match="could run code"):
        open_raw(folder, tmp_path)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("changes", [{}, {"weight_tying": False, "n_kv_heads": 2}])
def test_every_row_has_its_place(
    write: Callable[..., Path], tmp_path: Path, tokenizer_path: Path, changes: dict[str, Any]
) -> None:
    folder = write(**changes)
    theirs = torch.load(folder / "model.pt", weights_only=True)
    import_model(folder, tmp_path / "out", tokenizer_path)
    ours = load(tmp_path / "out")[0].state_dict()
    assert {name: tuple(t.shape) for name, t in ours.items()} == parameter_shapes(
        model_config(OPTIONS | changes, folder)
    )
    for i in range(3):
        q, k, v = (ours[f"blocks.{i}.attention.{n}.weight"] for n in "qkv")
        assert torch.equal(torch.cat([q, k, v]), theirs[f"transformer.blocks.{i}.att_proj.weight"])
        up, gate = (ours[f"blocks.{i}.mlp.{n}.weight"] for n in ("up", "gate"))
        assert torch.equal(torch.cat([up, gate]), theirs[f"transformer.blocks.{i}.ff_proj.weight"])


def test_names_of_wrapped_and_grouped_models_are_read(
    write: Callable[..., Path], tmp_path: Path, tokenizer_path: Path
) -> None:
    plain = tensors(OPTIONS)
    import_model(write(plain), tmp_path / "plain", tokenizer_path)
    wrapped = {
        name.replace("transformer.blocks.", "_fsdp_wrapped_module.transformer.block_groups.0."): tensor
        for name, tensor in plain.items()
    }
    import_model(write(wrapped, block_group_size=3), tmp_path / "wrapped", tokenizer_path)
    first, second = load(tmp_path / "plain")[0], load(tmp_path / "wrapped")[0]
    assert all(torch.equal(a, second.state_dict()[name]) for name, a in first.state_dict().items())


def test_tensors_missing_unknown_and_misshapen_are_named(write: Callable[..., Path], tmp_path: Path) -> None:
    weights = tensors(OPTIONS)
    renamed = dict(weights)
    renamed["transformer.blocks.1.attn_outer.weight"] = renamed.pop("transformer.blocks.1.attn_out.weight")
    with pytest.raises(LoomError, match=r"no tensor transformer\.blocks\.1\.attn_out\.weight"):
        open_raw(write(renamed), tmp_path)
    with pytest.raises(LoomError, match=r"transformer\.extra, which has no place"):
        open_raw(write(weights | {"transformer.extra": torch.ones(1)}), tmp_path)
    cut = weights | {"transformer.blocks.2.ff_out.weight": torch.ones(48, 127)}
    with pytest.raises(LoomError, match=r"blocks\.2\.mlp\.down\.weight has the shape \(48, 127\)"):
        open_raw(write(cut), tmp_path)


class Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was-run"),))


def test_a_pickle_that_runs_code_is_refused(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoomError, match="more than tensors"):
        open_raw(write({"x": Runs()}), tmp_path)
    assert not (tmp_path / "was-run").exists()
    with pytest.raises(LoomError, match="nothing else"):
        open_raw(write({"x": 3}), tmp_path)


def test_a_file_cut_short_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    file = write() / "model.pt"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(LoomError, match=r"model\.pt .*cut short"):
        open_raw(file.parent, tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [("layer_norm_type", "rms"), ("include_bias", True), ("alibi", True), ("attention_layer_norm", True)],
)
def test_other_models_are_refused_by_their_option(
    write: Callable[..., Path], tmp_path: Path, option: str, value: object
) -> None:
    with pytest.raises(LoomError, match=option):
        open_raw(write(**{option: value}), tmp_path)


def test_parts_tokenizers_and_ends_of_text(
    write: Callable[..., Path], tmp_path: Path, tokenizer_path: Path
) -> None:
    folder = write()
    with pytest.raises(LoomError, match="--tokenizer"):
        import_model(folder, tmp_path / "out")
    with pytest.raises(LoomError, match="ends text with id 7"):
        import_model(write(eos_token_id=7), tmp_path / "out", tokenizer_path)
    (folder / "model.pt").unlink()
    (folder / "model").mkdir()
    with pytest.raises(LoomError, match=r"in parts \(model\).*unshard"):
        import_model(folder, tmp_path / "out", tokenizer_path)
