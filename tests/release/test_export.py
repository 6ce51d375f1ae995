"""Out to Hugging Face and back: bitwise weights, bitwise logits, everything that could be lost is named."""

from __future__ import annotations

import json
import subprocess
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import loom
from loom import artifact
from loom.chat.template import Template, chat_template
from loom.errors import LoomError
from loom.model.huggingface import weight_map
from loom.release import export as exporting
from loom.release.export import Export, check, export
from loom.release.importing import import_model
from loom.release.safetensors import INDEX, Folder
from loom.release.source import Source, open_source
from loom.train.checkpoint import load_model, save_model
from loom.train.config import LoraConfig
from loom.train.lora import attach, start_adapters
from tests.release.conftest import SHAPES, TIED, UNTIED, Make

IDS = torch.arange(40)[None] * 37 % 1280


def theirs(folder: Path) -> Any:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_bitwise_those_of_transformers(make_checkpoint: Make, tmp_path: Path, shape: str) -> None:
    source = make_checkpoint(SHAPES[shape])
    made = export(source, tmp_path / "export")
    model, tokenizer = loom.load(source)
    other = theirs(made.path)
    with torch.inference_mode():
        assert torch.equal(model(IDS), other(IDS).logits)
    assert other.generation_config.eos_token_id == tokenizer.eos_id
    assert other.generation_config.pad_token_id == tokenizer.pad_id


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_import_gives_back_the_exported_weights(
    make_checkpoint: Make, tmp_path: Path, shape: str, dtype: torch.dtype
) -> None:
    source = make_checkpoint(SHAPES[shape], dtype=dtype)
    export(source, tmp_path / "export")
    import_model(tmp_path / "export", tmp_path / "back")
    first, last = loom.load(source)[0].state_dict(), loom.load(tmp_path / "back")[0].state_dict()
    assert first.keys() == last.keys()
    assert all(first[name].dtype == dtype and torch.equal(first[name], last[name]) for name in first)
    assert (source / "model.json").read_bytes() == (tmp_path / "back" / "model.json").read_bytes()


def test_equal_work_is_equal_bytes_and_is_not_done_twice(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint(UNTIED)
    first = export(source, tmp_path / "a")
    stamp = (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns
    assert export(source, tmp_path / "a").digest == first.digest
    assert (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns == stamp
    assert export(source, tmp_path / "b").digest == first.digest


@pytest.mark.parametrize("limit", [1, 20_000, 10**9])
def test_shards_of_any_size_hold_the_same(make_checkpoint: Make, tmp_path: Path, limit: int) -> None:
    source = make_checkpoint(UNTIED)
    made = export(source, tmp_path / "export", Export(shard_bytes=limit))
    stored = Folder(made.path)
    for name, entry in open_source(source).entries.items():
        assert entry.bytes == open_source(source).read(name).nbytes
    with torch.inference_mode():
        assert torch.equal(loom.load(source)[0](IDS), theirs(made.path)(IDS).logits)
    files = sorted(p.name for p in made.path.glob("*.safetensors"))
    if len(files) > 1:
        index = json.loads((made.path / INDEX).read_text())
        assert set(index["weight_map"]) == set(stored.entries)
        assert index["metadata"]["total_size"] == sum(entry.bytes for entry in stored.entries.values())
        assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]


def test_a_narrower_type_reports_its_error(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint(TIED)
    made = export(source, tmp_path / "export", Export(dtype="bfloat16"))
    model = loom.load(source)[0]
    worst = max(float((p - p.bfloat16().float()).abs().max()) for p in model.parameters())
    found = made.facts["model"]["difference"]
    assert found["weights"] == pytest.approx(worst)
    assert 0 < found["logits"] < 1
    assert theirs(made.path).dtype == torch.bfloat16


def test_check_finds_one_changed_weight(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint(UNTIED)
    made = export(source, tmp_path / "export")
    assert check(open_source(source), made.path).weights == 0
    file = made.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40
    file.write_bytes(content)
    assert check(open_source(source), made.path).weights > 0


def test_lineage_goes_on_to_the_checkpoint(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint(TIED)
    export(source, tmp_path / "export")
    walked = artifact.lineage(tmp_path / "export")
    assert (walked.kind, walked.parents[0].kind, walked.parents[0].stale) == ("model", "checkpoint", False)
    assert walked.parents[0].path.resolve() == source.resolve()


def test_tokenizer_reads_alike(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint(TIED)
    made = export(source, tmp_path / "export", Export(chat="yes"))
    mine, other = loom.load(source)[1], transformers.AutoTokenizer.from_pretrained(made.path)
    assert (other.eos_token_id, other.pad_token_id) == (mine.eos_id, mine.pad_id)
    assert other.model_max_length == TIED.context_length
    for text in ("def f(x):\n    return x", "Ünï 日本 \U0001f642", "  two  spaces\t"):
        assert other(text)["input_ids"] == mine.encode(text).tolist()


def test_template_renders_as_the_format_does(make_checkpoint: Make, tmp_path: Path) -> None:
    from loom.chat.format import DEFAULT, FORMATS, Message, Renderer

    source = make_checkpoint(TIED)
    made = export(source, tmp_path / "export", Export(chat="yes"))
    other = transformers.AutoTokenizer.from_pretrained(made.path)
    messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "What is\n x?"}]
    ids = other.apply_chat_template(messages, add_generation_prompt=True)
    ids = ids if isinstance(ids, list) else ids["input_ids"]
    turns = [Message("system", " Be brief. "), Message("user", "What is\n x?")]
    renderer = Renderer(FORMATS[DEFAULT], loom.load(source)[1])
    assert ids == renderer.render(turns, generation_prompt=True).ids.tolist()
    assert "\n" not in json.loads((made.path / "tokenizer_config.json").read_text())["chat_template"]


def test_a_model_that_was_not_tuned_gets_no_template(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    assert "chat_template" not in json.loads((made.path / "tokenizer_config.json").read_text())
    assert made.facts["model"]["chat"] is False


def _rename(folder: Path, old: str, new: str) -> None:
    """Rename a tensor in a file's header, keeping the header's length."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    assert len(old) == len(new)
    file.write_bytes(content.replace(old.encode(), new.encode(), 1))


def test_a_renamed_tensor_is_named(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    _rename(made.path, "layers.1.mlp.up_proj", "layers.1.mlp.xx_proj")
    with pytest.raises(LoomError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*xx_proj"):
        import_model(made.path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_tensor_too_many_is_named(make_checkpoint: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made = export(make_checkpoint(TIED), tmp_path / "export")
    weights = load_file(made.path / "model.safetensors")
    save_file(weights | {"model.layers.9.bias": torch.zeros(3)}, made.path / "model.safetensors")
    with pytest.raises(LoomError, match=r"model\.layers\.9\.bias"):
        import_model(made.path, tmp_path / "back")


@pytest.mark.parametrize("cut", [4, 60, 5000])
def test_a_file_cut_short_is_named(make_checkpoint: Make, tmp_path: Path, cut: int) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    file = made.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-cut] if cut == 5000 else file.read_bytes()[:cut])
    with pytest.raises(LoomError, match=r"model\.safetensors.*cut short"):
        import_model(made.path, tmp_path / "back")


def test_a_checkpoint_cut_short_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint(TIED)
    file = next(source.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoomError, match="instead of"):
        export(source, tmp_path / "export")
    assert not (tmp_path / "export").exists()


class _Hostile:
    def __reduce__(self) -> Any:
        return exec, ("import builtins; builtins.stolen = True",)


def test_nothing_of_a_checkpoint_is_executed(make_checkpoint: Make) -> None:
    import builtins
    import pickle

    source = make_checkpoint(TIED)
    hostile = pickle.dumps(_Hostile())
    (source / ".metadata").write_bytes(hostile)
    body = json.loads((source / "manifest.json").read_text())
    for output in body["outputs"]:
        if output["path"] == ".metadata":
            output |= {"bytes": len(hostile), "digest": artifact.digest_bytes(hostile)}
    (source / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(LoomError, match=r"builtins\.exec"):
        loom.load(source)
    assert not hasattr(builtins, "stolen")


def test_another_models_end_of_text_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    config = json.loads((made.path / "config.json").read_text())
    config["eos_token_id"] = 7
    (made.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoomError, match="ends text with id 7"):
        import_model(made.path, tmp_path / "back")


def test_pickled_weights_are_not_read(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    (made.path / "model.safetensors").rename(made.path / "pytorch_model.bin")
    with pytest.raises(LoomError, match="run code"):
        import_model(made.path, tmp_path / "back")


def test_weights_of_another_export_are_not_mixed_in(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint(UNTIED)
    export(source, tmp_path / "export", Export(shard_bytes=20_000))
    with pytest.raises(LoomError, match="not part of this export"):
        export(source, tmp_path / "export")


def test_card_is_made_of_records_only(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(UNTIED), tmp_path / "export")
    text = (made.path / "README.md").read_text()
    assert text.startswith("---\n")
    assert "Not measured." in text
    assert "Not in the records." in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_weight_that_came_out_otherwise_is_refused(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    """As it is stored, and in a wider type, which holds every value: nothing may differ."""
    real = exporting.write

    def off(path: Path, shard: Any, read: Any) -> Any:
        return real(path, shard, lambda name: read(name) + (0.5 if "layers.1.mlp.down" in name else 0))

    monkeypatch.setattr(exporting, "write", off)
    source = make_checkpoint(TIED, dtype=torch.bfloat16)
    with pytest.raises(LoomError, match="a weight differs by 0.5"):
        export(source, tmp_path / "export", Export(dtype=dtype))
    assert not (tmp_path / "export" / "manifest.json").exists()


def test_a_wider_type_holds_the_same(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(TIED, dtype=torch.bfloat16), tmp_path / "export", Export(dtype="float32"))
    assert made.facts["model"]["difference"] == {"weights": 0.0, "relative": 0.0, "logits": 0.0}


@pytest.mark.parametrize(
    ("value", "dtype"), [(1e5, "float16"), (float("nan"), None), (float("inf"), "bfloat16")]
)
def test_values_that_are_not_finite_are_refused(
    make_checkpoint: Make, tmp_path: Path, value: float, dtype: Any
) -> None:
    """float16 ends at 65,504; a weight that is none to begin with is no release either."""
    source = make_checkpoint(TIED)
    model, card = load_model(source)
    with torch.no_grad():
        model.blocks[0].mlp.down.weight[3, 5] = value
    save_model(tmp_path / "odd", model, card, source / "tokenizer.json")
    with pytest.raises(LoomError, match="not finite"):
        export(tmp_path / "odd", tmp_path / "export", Export(dtype=dtype))
    assert not (tmp_path / "export" / "manifest.json").exists()


def test_adapters_are_merged_on_the_way_out(make_checkpoint: Make, tmp_path: Path) -> None:
    """A LoRA checkpoint's export is the model that trained, without a trace of adapters."""
    source = make_checkpoint(TIED)
    model, card = load_model(source)
    attach(model, LoraConfig(4, targets=("q", "v", "down")))
    start_adapters(model, LoraConfig(4), 0)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_out"):
                parameter.copy_(torch.randn(parameter.shape, generator=chance) * 0.05)
    save_model(tmp_path / "tuned", model, card, source / "tokenizer.json")
    made = export(tmp_path / "tuned", tmp_path / "export")
    other = theirs(made.path)
    with torch.inference_mode():
        torch.testing.assert_close(other(IDS).logits, model.eval()(IDS), atol=1e-5, rtol=1e-4)
        assert torch.equal(other(IDS).logits, loom.load(tmp_path / "tuned")[0](IDS))
        assert not torch.equal(other(IDS).logits, loom.load(source)[0](IDS)), "the adapters do something"
    assert not any("lora" in name for name in Folder(made.path).entries)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_transformers_wrote_is_imported(make_checkpoint: Make, tmp_path: Path, shape: str) -> None:
    """save_pretrained in several shards, the tokenizer and a chat template by its own means."""
    made = export(make_checkpoint(SHAPES[shape]), tmp_path / "export", Export(chat="yes"))
    written = tmp_path / "written"
    model = theirs(made.path)
    model.save_pretrained(written, max_shard_size="100KB")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.path)
    tokenizer.chat_template = "{% for m in messages %}\n<{{ m['role'] }}> {{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(written)
    assert len(list(written.glob("model-*.safetensors"))) > 1
    import_model(written, tmp_path / "back")
    with torch.inference_mode():
        assert torch.equal(loom.load(tmp_path / "back")[0](IDS), model(IDS).logits)
    assert chat_template(tmp_path / "back") == Template(tokenizer.chat_template, None, (_eos(written),))
    export(tmp_path / "back", tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.chat_template == tokenizer.chat_template, "it travels on, line by line"
    rows = [{"role": "user", "content": "a"}]
    assert again.apply_chat_template(rows, tokenize=False) == tokenizer.apply_chat_template(
        rows, tokenize=False
    )


def _eos(folder: Path) -> int:
    return int(json.loads((folder / "generation_config.json").read_text())["eos_token_id"])


def test_a_formats_own_stop_token_ends_answers_elsewhere_too(make_checkpoint: Make, tmp_path: Path) -> None:
    """generation_config.json names it beside the end of text, and it comes back from there."""
    source = make_checkpoint(TIED)
    tokenizer = loom.load(source)[1]
    stop = 300  # any token will do
    text = "{{ messages[0]['content'] }}"
    body = json.loads((source / "manifest.json").read_text()) | {
        "chat": {"template": text, "stop_ids": [stop]}
    }
    (source / "manifest.json").write_text(json.dumps(body))
    made = export(source, tmp_path / "export")
    named = json.loads((made.path / "generation_config.json").read_text())["eos_token_id"]
    assert named[0] == tokenizer.eos_id
    assert sorted(named) == sorted({tokenizer.eos_id, stop})
    assert theirs(made.path).generation_config.eos_token_id == named
    assert chat_template(made.path) == Template(text, None, tuple(named))
    import_model(made.path, tmp_path / "back")
    assert chat_template(tmp_path / "back") == chat_template(made.path)


OLD = Path(__file__).parents[1] / "oracles" / "old_tokenizer.py"


@pytest.mark.parametrize("peer", ["transformers-4"])
def test_an_old_transformers_reads_the_tokenizer_alike(
    make_checkpoint: Make, tmp_path: Path, oracle: Callable[[str], Path], peer: str
) -> None:
    """Ids, control tokens, length and the chat template, in a version from before the files changed."""
    source = make_checkpoint(TIED)
    made = export(source, tmp_path / "export", Export(chat="yes"))
    texts = ["def f(x):\n    return x", "Ünï 日本 \U0001f642", "  two  spaces\t", "<|endoftext|>", ""]
    rows = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "What is\n x?"}]
    asked = json.dumps({"texts": texts, "messages": rows})
    command = [str(oracle(peer)), str(OLD), str(made.path)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    old, new = json.loads(done.stdout), transformers.AutoTokenizer.from_pretrained(made.path)
    assert old["version"].startswith("4.")
    assert old["ids"] == [new(text)["input_ids"] for text in texts]
    assert (old["eos"], old["pad"], old["length"]) == (
        new.eos_token_id,
        new.pad_token_id,
        TIED.context_length,
    )
    assert old["chat"] == new.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    assert old["text"] == [new.decode(ids) for ids in old["ids"]]


def test_a_configuration_of_another_model_is_refused(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared is the config.json that was written, not what it should have been."""
    real = exporting.config_to_huggingface
    odd = {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    monkeypatch.setattr(exporting, "config_to_huggingface", lambda *given: real(*given) | odd)
    with pytest.raises(LoomError, match=r"config\.json is not of the model"):
        export(make_checkpoint(UNTIED), tmp_path / "export")
    assert not (tmp_path / "export" / "manifest.json").exists()


def test_as_many_key_heads_as_heads_may_be_said(make_checkpoint: Make, tmp_path: Path) -> None:
    """The same model, told with and without the number."""
    made = export(make_checkpoint(replace(TIED, n_kv_heads=TIED.n_heads)), tmp_path / "export")
    assert made.facts["model"]["difference"]["logits"] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_check_holds_a_layer_of_each_and_no_more(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    """Whenever a weight of the export is read, those alive are of the same layer, and the tied matrix."""
    source = open_source(make_checkpoint(SHAPES[shape]))
    made = export(source.folder.path, tmp_path / "export")
    names = {theirs: ours for ours, theirs in weight_map(SHAPES[shape]).items()}
    alive: list[tuple[str, weakref.ref[torch.Tensor]]] = []
    seen: set[str] = set()

    def layer(name: str) -> str:
        return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name.split(".")[0]

    def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
        held = {layer(other) for other, ref in alive if ref() is not None} - {layer(name), "norm", "head"}
        assert held <= ({"embed"} if SHAPES[shape].tied else set())
        alive.append((name, weakref.ref(tensor)))
        seen.add(layer(name))
        return tensor

    real_read, real_all = Folder.read, Source.read_all
    monkeypatch.setattr(Folder, "read", lambda self, name: keep(names[name], real_read(self, name)))
    monkeypatch.setattr(
        Source,
        "read_all",
        lambda self, wanted: {name: keep(name, tensor) for name, tensor in real_all(self, wanted).items()},
    )
    check(source, made.path)
    assert {f"blocks.{i}" for i in range(SHAPES[shape].n_layers)} < seen
