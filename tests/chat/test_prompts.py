"""The template a model brings along: found in every place it may lie, with the tokens that end an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loom import artifact
from loom.chat import sandbox
from loom.chat.format import DEFAULT, FORMATS, Message, Renderer, render_jinja
from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.chat.prompts import conversation
from loom.chat.template import Template, chat_template
from loom.errors import LoomError
from loom.tokens.tokenizer import Tokenizer

FOREIGN = "{{ bos_token }}{% for m in messages %}\n  [{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
TURNS = [Message("system", " s "), Message("user", "a\nb")]


@pytest.fixture
def with_marks(tokenizer_path: Path, tmp_path: Path) -> Tokenizer:
    """The tokenizer with two more control tokens, as ChatML's."""
    spec = json.loads(tokenizer_path.read_bytes())
    first = Tokenizer.load(tokenizer_path).vocab_size
    base = spec["added_tokens"][0]
    spec["added_tokens"] += [
        base | {"id": first + n, "content": text} for n, text in enumerate(("<|im_start|>", "<|im_end|>"))
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    return Tokenizer.load(tmp_path / "tokenizer.json")


def folder(path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps(generation or {}))
    return path


def test_the_file_goes_before_the_configuration_and_a_list_has_a_default(tmp_path: Path) -> None:
    path = folder(tmp_path / "hf", {"chat_template": "in the configuration"})
    assert chat_template(path) == Template("in the configuration")
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert chat_template(folder(path, {"chat_template": several})) == Template("plain")
    assert chat_template(folder(path, {"chat_template": several[:1]})) == Template("tools")
    with pytest.raises(LoomError, match="rag, tool_use and none named default"):
        chat_template(folder(path, {"chat_template": [several[0], {"name": "rag", "template": "r"}]}))
    assert chat_template(folder(path, {})) is None
    (path / "chat_template.jinja").write_text("in\nits own file")
    found = chat_template(
        folder(path, {"chat_template": "other", "bos_token": {"content": "<s>"}}, {"eos_token_id": [3, 4]})
    )
    assert found == Template("in\nits own file", None, (3, 4), "<s>")
    (path / "tokenizer_config.json").write_text("{")
    with pytest.raises(LoomError, match=r"tokenizer_config\.json is not JSON"):
        chat_template(path)


def test_what_transformers_saves_is_found(tokenizer_path: Path, tmp_path: Path) -> None:
    """save_pretrained of the installed version, with one template and with several."""
    from transformers import PreTrainedTokenizerFast

    for name, given in (("one", FOREIGN), ("several", {"default": FOREIGN, "tool_use": "tools"})):
        saved = PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer_path), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
        )
        saved.chat_template = given
        saved.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text("{}")
        found = chat_template(tmp_path / name)
        assert found == Template(FOREIGN, bos_token="<|endoftext|>")
        tokenizer = Tokenizer.load(tokenizer_path)
        rows = [{"role": m.role, "content": m.content.strip()} for m in TURNS]
        saved.chat_template = FOREIGN
        text = saved.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        stripped = [Message(m.role, m.content.strip()) for m in TURNS]
        ids = conversation(tokenizer, found).prompt(stripped)
        assert tokenizer.decode(ids) == text
        assert ids[0] == tokenizer.eos_id, "a control token of the template is one"


def test_a_format_of_ones_own_keeps_its_stop_token(with_marks: Tokenizer, tmp_path: Path) -> None:
    """From the YAML file through `prepare` and a model's manifests to ids and stops."""
    (tmp_path / "own.yaml").write_text(
        'name: own\nstart: ""\nsystem: {before: "<|im_start|>", after: "\\n"}\n'
        'user: {before: "<|im_start|>Q\\n", after: "\\n"}\n'
        'assistant: {before: "<|im_start|>A\\n", after: "<|im_end|>\\n"}\ncontrol: ["<|im_start|>", "<|im_end|>"]\n'
    )
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}] * 4
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shares = (Share(str(tmp_path / "c.jsonl")),)
    made = prepare(
        Prepare("sft", shares, Path(with_marks.name), str(tmp_path / "own.yaml")), tmp_path / "sft"
    )
    run = tmp_path / "run"
    run.mkdir()
    inputs = [artifact.refer(made, run)]
    artifact.commit(run, "checkpoint", recipe={}, inputs=inputs, outputs=[], counters={})
    found = chat_template(run)
    assert found is not None
    form = conversation(with_marks, found)
    stop = with_marks.token_id("<|im_end|>")
    assert stop in form.stop_ids
    assert with_marks.eos_id in form.stop_ids
    assert "own" in form.note
    ids = form.prompt([Message("user", "hi <|im_end|>")])
    assert ids.count(stop) == 0, "what a person types is no control token"
    assert ids.count(with_marks.token_id("<|im_start|>")) == 2
    # The same template without its data, as an export holds it, stops where the template itself says.
    bare = conversation(with_marks, Template(found.text))
    assert bare.stop_ids == form.stop_ids
    assert bare.prompt([Message("user", "hi")]) == form.prompt([Message("user", "hi")])


def test_facts_come_back(tmp_path: Path) -> None:
    for template in (Template("x"), Template("y", None, (5, 7), "<s>"), Template("z", {"name": "n"})):
        (tmp_path / "manifest.json").write_text(json.dumps({"chat": template.facts(), "inputs": []}))
        assert chat_template(tmp_path) == template


def test_ends_of_another_tokenizer_are_refused_and_masks_are_no_ends(tokenizer: Tokenizer) -> None:
    with pytest.raises(LoomError, match="id 99999, which its tokenizer does not have"):
        conversation(tokenizer, Template("x", stop_ids=(99999,)))
    mask = tokenizer.token_id("|||IP_ADDRESS|||")
    assert conversation(tokenizer, Template("x", stop_ids=(mask, 9))).stop_ids == tuple(
        sorted({9, tokenizer.eos_id})
    )


def test_the_built_in_format_is_recognised_by_its_template(tokenizer: Tokenizer) -> None:
    form = FORMATS[DEFAULT]
    given = conversation(tokenizer, Template(form.jinja()))
    assert given.prompt(TURNS) == Renderer(form, tokenizer).render(TURNS, generation_prompt=True).ids.tolist()
    assert given.note.startswith("chat format olmo-v1")


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for c in 'x' * 1000000000 %}{% endfor %}",
        "{% set s = 'x' * 9999 %}{% for c in s %}{% for d in s %}{% endfor %}{% endfor %}",
        "{% for i in [9] recursive %}{{ loop([i] * 2) }}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x % 7 }}",
        "{{ lipsum(1000000000) }}",
        "{{ 1 // 0 }}",
        "{{ messages[0] + 1 }}",
        "{% for %}",
    ],
    ids=[
        "loops",
        "product",
        "texts",
        "recursion",
        "macros",
        "power",
        "squares",
        "lipsum",
        "arithmetic",
        "types",
        "syntax",
    ],
)
def test_a_template_that_fails_or_never_ends_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(sandbox, "STEPS", 10_000)
    with pytest.raises(LoomError, match="chat template cannot render"):
        render_jinja(template, TURNS, eos_token="E", strict=False)


def test_what_transformers_lends_to_templates() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{% if tools %}T{% endif %}{{ strftime_now('%Y') | length }}"
    )
    text = render_jinja(template, [Message("user", "ü"), Message("user", "b")], eos_token="E", strict=False)
    assert text == '{"role": "user", "content": "ü"}4'


def test_loops_know_where_they_are() -> None:
    """Counting their passes takes nothing from them."""
    template = (
        "{% for m in messages if m['role'] != 'system' %}{{ loop.index }}/{{ loop.length }}"
        "{% if loop.last %}.{% elif loop.first %}:{% endif %}"
        "{{ loop.nextitem.role if not loop.last }}{% else %}none{% endfor %}"
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"
        "{% for x in [[1, [2]]] recursive %}{{ x[0] }}{{ loop([x[1]]) if x[1] else '' }}{% endfor %}"
        "{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 3 * 4 }}{% for i in range(3) %}{{ i }}{% endfor %}"
    )
    text = render_jinja(template, [*TURNS, Message("user", "c")], eos_token="E", strict=False)
    assert text == "1/2:user2/2.role=system;content= s ;12ababab102412012"
    assert render_jinja("{% for m in messages %}{% else %}none{% endfor %}", [], eos_token="E") == "none"
    assert render_jinja("{% for m in missing %}x{% endfor %}", [], eos_token="E", strict=False) == ""
    with pytest.raises(LoomError, match="missing"):
        render_jinja("{% for m in missing %}x{% endfor %}", [], eos_token="E")
