"""The rank-classification tasks: a row's texts under each protocol.

Texts are those of lm-evaluation-harness 0.4.13, OLMo's in-loop evaluation, Catwalk (the OLMo paper) and
OLMES v0.1, to the character: a prompt that differs by a space is another task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loom.tasks.item import BadRow, Item, Row, choose

LETTERS = "ABCDEFGHIJ"
Render = Callable[[int, Row], Item]


def question_answer(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def labelled(row: Row) -> tuple[list[str], int]:
    """Choices `{"text": [...], "label": [...]}` and the index of `answerKey` among the labels."""
    choices = row["choices"]
    if not isinstance(choices, Mapping):
        raise BadRow(f'its choices are {choices!r}, not {{"text": [...], "label": [...]}}')
    texts, labels = strings(choices["text"]), strings(choices["label"], "label")
    key = row["answerKey"].strip()
    if key not in labels:
        raise BadRow(f"its answerKey {key!r} is none of the labels {labels}")
    if len(labels) != len(texts):
        raise BadRow(f"it has {len(texts)} choices for {len(labels)} labels")
    return texts, labels.index(key)


def strings(values: Any, what: str = "choice") -> list[str]:
    """A list of texts. Raises `BadRow` for what is none, and for an entry that is missing."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise BadRow(f"its {what}s are {values!r}, not a list")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            why = "is missing" if value is None else f"is {value!r}, not text"
            raise BadRow(f"its {what} {index} (counted from 0) {why}")
    return list(values)


def exactly(count: int, texts: Sequence[str]) -> Sequence[str]:
    """`texts` of a task whose questions all have as many. Raises `BadRow` where one is missing."""
    if len(texts) != count:
        raise BadRow(f"it has {len(texts)} choices, not {count}")
    return texts


def integer(row: Row, name: str, first: int = 0) -> int:
    """A label that may be written as text, counted from `first`. Raises `BadRow` for one that is missing."""
    value = row[name]
    if isinstance(value, float) and value.is_integer():  # pandas writes a column with gaps so
        value = int(value)
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
        raise BadRow(f"its {name} is {value!r}, not a number")
    return int(value) - first


def arc(doc_id: int, row: Row) -> Item:
    texts, gold = labelled(row)
    return _asked(doc_id, row["question"], texts, gold, unconditioned="Answer:")


def _asked(doc_id: int, question: str, texts: Sequence[str], gold: int, **more: Any) -> Item:
    return choose(doc_id, question_answer(question), texts, gold, question=(question,), **more)


def letters(
    doc_id: int, stem: str, texts: Sequence[str], gold: int, indent: str = "", question: str = ""
) -> Item:
    """The multiple-choice form: choices listed by letter, the letter is the continuation. `question` is the stem
    in plain words, where it is framed. Raises `BadRow` for an empty choice: its letter would hide it."""
    if empty := [i for i, text in enumerate(texts) if text is None or not str(text).strip()]:
        raise BadRow(f"its choice {empty[0]} (counted from 0) is empty")
    lines = "".join(f"{indent}{LETTERS[i]}. {text}\n" for i, text in enumerate(texts))
    letter = LETTERS[: len(texts)]
    return choose(doc_id, f"{stem}\n{lines}Answer:", letter, gold, question=(question or stem,))


def arc_letters(doc_id: int, row: Row) -> Item:
    return _lettered(doc_id, row["question"], *labelled(row))


def _lettered(doc_id: int, question: str, texts: Sequence[str], gold: int) -> Item:
    return letters(doc_id, f"Question: {question}", texts, gold, " ", question)


def boolq(doc_id: int, row: Row) -> Item:
    if "label" not in row and " -- " not in row["passage"]:
        raise BadRow(
            "its passage has no title before it: these are the rows of google/boolq, and this protocol reads those "
            "of super_glue"
        )
    text = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return choose(
        doc_id, text, ("no", "yes"), _truth(row), cluster=row["passage"], question=(row["question"],)
    )


def boolq_inloop(doc_id: int, row: Row) -> Item:
    """In-loop BoolQ has the passage without its "Title -- ", and yes before no."""
    passage = row["passage"] if "answer" in row else row["passage"].split(" -- ", 1)[-1]
    text = f"{passage}\nQuestion: {row['question']}?\nAnswer:"
    return choose(
        doc_id, text, ("yes", "no"), 1 - _truth(row), cluster=row["passage"], question=(row["question"],)
    )


def _truth(row: Row) -> int:
    if "answer" not in row:
        return integer(row, "label")
    if row["answer"] not in (True, False):
        raise BadRow(f"its answer is {row['answer']!r}, not true or false")
    return int(row["answer"])


def hellaswag(doc_id: int, row: Row) -> Item:
    return _hellaswag(doc_id, row, _wikihow)


def hellaswag_olmes(doc_id: int, row: Row) -> Item:
    return _hellaswag(doc_id, row, lambda text: _wikihow(re.sub(r"\.? \[title\]", ". ", text)))


def _hellaswag(doc_id: int, row: Row, clean: Callable[[str], str]) -> Item:
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = [clean(ending) for ending in exactly(4, strings(row["endings"]))]
    text = clean(f"{row['activity_label']}: {context}")
    plain = (clean(context),)
    return choose(doc_id, text, endings, integer(row, "label"), unconditioned="Answer:", question=plain)


def _wikihow(text: str) -> str:
    """WikiHow's marks, taken out as the harness does it; double spaces that remain are meant to."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def openbookqa(doc_id: int, row: Row) -> Item:
    texts, gold = _labelled(4, row)
    stem = row["question_stem"]
    return choose(doc_id, stem, texts, gold, unconditioned="Answer:", question=(stem,))


def openbookqa_olmes(doc_id: int, row: Row) -> Item:
    return _asked(doc_id, row["question_stem"], *_labelled(4, row), unconditioned="Answer:")


def openbookqa_letters(doc_id: int, row: Row) -> Item:
    return _lettered(doc_id, row["question_stem"], *_labelled(4, row))


def _labelled(count: int, row: Row) -> tuple[Sequence[str], int]:
    texts, gold = labelled(row)
    return exactly(count, texts), gold


def piqa(doc_id: int, row: Row) -> Item:
    return _asked(doc_id, row["goal"], (row["sol1"], row["sol2"]), integer(row, "label"))


def piqa_olmes(doc_id: int, row: Row) -> Item:
    texts = (row["sol1"], row["sol2"])
    context = f"Goal: {row['goal']}\nAnswer:"
    return choose(doc_id, context, texts, integer(row, "label"), question=(row["goal"],))


def piqa_letters(doc_id: int, row: Row) -> Item:
    texts = (row["sol1"], row["sol2"])
    return letters(doc_id, f"Goal: {row['goal']}", texts, integer(row, "label"), " ", row["goal"])


def sciq(doc_id: int, row: Row) -> Item:
    return _sciq(doc_id, row, f"{row['support'].lstrip()}\n{question_answer(row['question'])}")


def sciq_inloop(doc_id: int, row: Row) -> Item:
    return _sciq(doc_id, row, f"{row['support'].strip()}\n{question_answer(row['question'])}")


def sciq_catwalk(doc_id: int, row: Row) -> Item:
    """Catwalk strips the whole prompt: without support it does not begin with a newline."""
    return _sciq(doc_id, row, f"{row['support']}\n{question_answer(row['question'])}".strip())


def _sciq(doc_id: int, row: Row, text: str) -> Item:
    texts = [row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]]
    return choose(doc_id, text, texts, 3, cluster=row["support"], question=(row["question"],))


def winogrande(doc_id: int, row: Row) -> Item:
    """Two contexts, one for each option in the blank; the rest of the sentence is scored after both."""
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise BadRow("its sentence has no blank _")
    rest = after.strip()
    options = (row["option1"], row["option2"])
    if not all(option.strip() for option in options):
        raise BadRow("one of its options is empty")
    pairs = tuple((before + option, f" {rest}") for option in options)
    # With its blank, without it, and filled in.
    plain = (row["sentence"], f"{before} {after}", *(before + option + after for option in options))
    return Item(doc_id, pairs, integer(row, "answer", first=1), (rest, rest), question=plain)


def winogrande_letters(doc_id: int, row: Row) -> Item:
    stem = f"Fill in the blank: {row['sentence'].replace('_', '___')}"
    plain = winogrande(doc_id, row)
    return replace(
        letters(doc_id, stem, (row["option1"], row["option2"]), plain.golds[0], " "), question=plain.question
    )


def copa(doc_id: int, row: Row) -> Item:
    """Two spaces before a choice: the harness joins with one and the choice brings one."""
    texts = [f" {text}" for text in _copa_choices(row)]
    return choose(doc_id, _copa_premise(row), texts, integer(row, "label"), question=(row["premise"],))


def copa_inloop(doc_id: int, row: Row) -> Item:
    texts = _copa_choices(row)
    return choose(doc_id, _copa_premise(row), texts, integer(row, "label"), question=(row["premise"],))


def _copa_premise(row: Row) -> str:
    connectors = {"cause": "because", "effect": "therefore"}
    if row["question"] not in connectors:
        raise BadRow(f"its question is {row['question']!r}, not cause or effect")
    return f"{row['premise'].strip()[:-1]} {connectors[row['question']]}"


def _copa_choices(row: Row) -> list[str]:
    texts = [row["choice1"], row["choice2"]]
    if not all(texts):
        raise BadRow("one of its choices is empty")
    return [text[0].lower() + text[1:] for text in texts]


def commonsense_qa(doc_id: int, row: Row) -> Item:
    """The harness's form: lettered choices."""
    texts, gold = _labelled(5, row)
    return letters(doc_id, f"Question: {row['question'].strip()}", texts, gold, question=row["question"])


def commonsense_qa_question(doc_id: int, row: Row) -> Item:
    return _asked(doc_id, row["question"], *_labelled(5, row), unconditioned="Answer:")


def commonsense_qa_letters(doc_id: int, row: Row) -> Item:
    return _lettered(doc_id, row["question"], *_labelled(5, row))


def social_iqa(doc_id: int, row: Row) -> Item:
    return _siqa(doc_id, row, f"Q: {row['context']} {row['question']}\nA:")


def social_iqa_question(doc_id: int, row: Row) -> Item:
    return _siqa(doc_id, row, question_answer(f"{row['context']} {row['question']}"))


def social_iqa_letters(doc_id: int, row: Row) -> Item:
    texts = (row["answerA"], row["answerB"], row["answerC"])
    stem = f"Question: {row['context']} {row['question']}"
    return letters(doc_id, stem, texts, integer(row, "label", first=1), " ", stem.removeprefix("Question: "))


def _siqa(doc_id: int, row: Row, text: str) -> Item:
    texts = (row["answerA"], row["answerB"], row["answerC"])
    gold = integer(row, "label", first=1)
    plain = (f"{row['context']} {row['question']}",)
    return choose(doc_id, text, texts, gold, unconditioned="Answer:", question=plain)
