"""The ids of a conversation are those of its template, and trained is what an assistant says and its stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.chat.format import (
    FORMATS,
    ChatFormat,
    Message,
    Renderer,
    Turn,
    check_template,
    find_format,
    render_jinja,
)
from loom.errors import LoomError
from loom.tokens.tokenizer import Tokenizer

CONTROL = ("<|endoftext|>", "<|padding|>")
pieces = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "\n",
            " ",
            "\n\n",
            "<|user|>",
            "<|assistant|>\n",
            "\u0301",
            "\u00a0x",
            "{{ eos_token }}",
            "'s",
            "|||",
        ]
    ),
    st.sampled_from(["|||EMAIL_ADDRESS|||", "   indented", "a\r\nb", "\U0001f469\u200d\U0001f469"]),
)
contents = st.lists(pieces, min_size=1, max_size=5).map("".join)
plain = contents.filter(lambda text: text.strip() and not any(token in text for token in CONTROL))


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str] = plain) -> list[Message]:
    """Turns that alternate, with a system message or without, an answer last."""
    messages = [Message("system", draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(text)), Message("assistant", draw(text))]
    return messages


@pytest.fixture(scope="module")
def olmo(shared_data: Path) -> Renderer:
    return Renderer(FORMATS["olmo-v1"], Tokenizer.load(shared_data / "tokenizers" / "olmo-v1.json"))


@settings(max_examples=300, deadline=None)
@given(messages=conversations(), prompt=st.booleans())
def test_ids_equal_those_of_the_rendered_template(
    tokenizer: Tokenizer, tokenizer_path: Path, messages: list[Message], prompt: bool
) -> None:
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)
    text = render_jinja(
        renderer.format.jinja(), messages, eos_token=tokenizer.eos_token, generation_prompt=prompt
    )
    whole = tokenizers.Tokenizer.from_file(str(tokenizer_path)).encode(text)
    assert renderer.render(messages, generation_prompt=prompt).ids.tolist() == whole.ids


@settings(max_examples=200, deadline=None)
@given(messages=conversations())
def test_the_same_holds_for_olmos_tokenizer_through_transformers(
    olmo: Renderer, messages: list[Message]
) -> None:
    other = transformers_tokenizer(olmo.tokenizer.name, olmo.format.jinja())
    turns = [{"role": item.role, "content": item.content} for item in messages]
    assert other.apply_chat_template(turns, return_dict=False) == olmo.render(messages).ids.tolist()


_loaded: dict[str, object] = {}


def transformers_tokenizer(path: str, template: str) -> object:
    from transformers import PreTrainedTokenizerFast

    if path not in _loaded:
        _loaded[path] = PreTrainedTokenizerFast(
            tokenizer_file=path, eos_token=CONTROL[0], pad_token=CONTROL[1], chat_template=template
        )
    return _loaded[path]


@settings(max_examples=300, deadline=None)
@given(messages=conversations(contents.filter(str.strip)))
def test_trained_are_the_answers_and_their_stop_and_nothing_else(
    tokenizer: Tokenizer, messages: list[Message]
) -> None:
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)
    rendered = renderer.render(messages)
    expected: list[int] = []
    for message in messages:
        if message.role == "assistant":
            expected += [*tokenizer.encode(message.content.strip()).tolist(), tokenizer.eos_id]
    assert rendered.ids[rendered.trained == 1].tolist() == expected


@settings(max_examples=200, deadline=None)
@given(
    messages=conversations(
        st.lists(st.sampled_from([*CONTROL, "a", " "]), min_size=1).map("".join).filter(str.strip)
    )
)
def test_no_content_can_end_a_turn(tokenizer: Tokenizer, messages: list[Message]) -> None:
    ids = Renderer(FORMATS["olmo-v1"], tokenizer).render(messages).ids.tolist()
    answers = sum(message.role == "assistant" for message in messages)
    assert ids.count(tokenizer.eos_id) == answers + 1
    assert tokenizer.pad_id not in ids


@settings(max_examples=100, deadline=None)
@given(messages=conversations())
def test_a_conversation_begins_with_its_shorter_self(tokenizer: Tokenizer, messages: list[Message]) -> None:
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)
    whole = renderer.render(messages).ids.tolist()
    for count in range(1, len(messages)):
        opens = messages[count].role == "assistant"
        start = renderer.render(messages[:count], generation_prompt=opens).ids.tolist()
        assert whole[: len(start)] == start


def test_golden_ids_and_mask_for_olmo_v1(olmo: Renderer) -> None:
    """Made once by `tokenizers` from the text of the format, headers and ends told apart by hand."""
    messages = [
        Message("system", "Be brief."),
        Message("user", " Hi there\n"),
        Message("assistant", "Hello!"),
        Message("user", "bye"),
        Message("assistant", "Bye.\n\nNow"),
    ]
    rendered = olmo.render(messages)
    user, assistant = [29, 93, 4537, 49651, 187], [29, 93, 515, 5567, 49651, 187]
    golden: list[tuple[list[int], int]] = [
        ([50279], 0),
        ([29, 93, 10394, 49651, 187], 0),
        ([4678, 4864, 15], 0),
        ([187], 0),
        (user, 0),
        ([12764, 627], 0),
        ([187], 0),
        (assistant, 0),
        ([12092, 2, 50279], 1),
        ([187], 0),
        (user, 0),
        ([17034], 0),
        ([187], 0),
        (assistant, 0),
        ([43696, 15, 187, 187, 4125, 50279], 1),
        ([187], 0),
    ]
    assert rendered.ids.tolist() == [index for ids, _ in golden for index in ids]
    assert rendered.trained.tolist() == [mark for ids, mark in golden for _ in ids]
    assert olmo.render(messages[:2], generation_prompt=True).ids.tolist()[-6:] == assistant
    assert olmo.stop_id == 50279
    assert olmo.stop_id != olmo.tokenizer.pad_id


def test_the_wrong_tokenizer_ends_answers_with_another_id(shared_data: Path) -> None:
    wrong = Tokenizer.load(shared_data / "tokenizers" / "olmo-v1-wrong-eos.json")
    rendered = Renderer(FORMATS["olmo-v1"], wrong).render([Message("user", "a"), Message("assistant", "b")])
    assert rendered.ids[0] == 0
    assert 50279 not in rendered.ids


def test_the_template_is_one_line_and_strict(tokenizer: Tokenizer) -> None:
    for form in FORMATS.values():
        template = form.jinja()
        assert "\n" not in template
        with pytest.raises(LoomError, match="tool"):
            render_jinja(template, [Message("tool", "x")], eos_token="E")  # type: ignore[arg-type]
    with pytest.raises(LoomError, match="add_generation_promptt"):
        render_jinja("{{ add_generation_promptt }}", [], eos_token="E")
    with pytest.raises(LoomError, match="role 'tool'"):
        Renderer(FORMATS["olmo-v1"], tokenizer).render([Message("tool", "x")])  # type: ignore[arg-type]


def test_a_template_that_drops_a_turn_is_refused(tokenizer: Tokenizer) -> None:
    form = FORMATS["olmo-v1"]
    check_template(Renderer(form, tokenizer), form.jinja())
    dropped = form.jinja().replace("{% for message in messages %}", "{% for message in messages[-2:] %}")
    with pytest.raises(LoomError, match="other ids than the format"):
        check_template(Renderer(form, tokenizer), dropped)
    untrimmed = form.jinja().replace(" | trim", "")
    with pytest.raises(LoomError, match="other ids than the format"):
        check_template(Renderer(form, tokenizer), untrimmed)


def test_other_formats_are_data(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(
        'name: plain\nstart: ""\nsystem: {before: "", after: "\\n"}\nuser: {before: "Q:\\n", after: "\\n"}\n'
        'assistant: {before: "A:\\n", after: "{eos}"}\n'
    )
    form = find_format(str(path))
    rendered = Renderer(form, tokenizer).render([Message("user", "x"), Message("assistant", "y")])
    assert tokenizer.decode(rendered.ids) == "Q:\nx\nA:\ny<|endoftext|>"
    check_template(Renderer(form, tokenizer), form.jinja())
    seams = replace(form, assistant=Turn("A: ", "{eos}"))  # its space belongs to the word after it
    with pytest.raises(LoomError, match="other ids than the format"):
        check_template(Renderer(seams, tokenizer), seams.jinja())
    with pytest.raises(LoomError, match="'olmo-v1'"):
        find_format("olmo-v2")
    with pytest.raises(LoomError, match="im_end"):
        Renderer(FORMATS["chatml"], tokenizer)
    with pytest.raises(ValueError, match="ends an answer"):
        ChatFormat("x", "", Turn("", ""), Turn("", ""), Turn("", "\n"))
