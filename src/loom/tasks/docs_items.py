"""The quickstart's own tasks, over the files of `loom.tasks.docs`.

`docs` asks which of four functions a sentence describes. The sentence is scored as the answer to
"What does `name` do?" for each of the four names in the chat format, and the name under which it is
most likely wins: log p(sentence | name), the channel direction of Min et al. (2022). Every choice
scores the same text, so neither a name's length nor how common it is plays a part, and what tuning on
questions and answers teaches is what is asked.
"""

from __future__ import annotations

from loom.tasks.docs import question
from loom.tasks.item import Item, Row, choose


def chat_prompt(text: str) -> str:
    """One user turn and the beginning of the answer, in OLMo's chat format (the leading end-of-text token is
    put there by its id)."""
    return f"<|user|>\n{text.strip()}\n<|assistant|>\n"


def which_function(doc_id: int, row: Row) -> Item:
    pairs = tuple((chat_prompt(question(name)), row["summary"]) for name in row["choices"])
    texts = (row["summary"],) * len(pairs)
    return Item(doc_id, pairs, row["gold"], texts, cluster=" ".join(sorted(row["choices"])), chat=True)


def answer(doc_id: int, row: Row) -> Item:
    """The right answer alone: its bits per byte."""
    return choose(doc_id, chat_prompt(row["question"]), (row["summary"],), 0, joint="", chat=True)


def preference(doc_id: int, row: Row) -> Item:
    """The right summary against a sibling's: summed in `acc`, per character in `acc_norm`."""
    texts = (row["chosen"], row["rejected"])
    return choose(doc_id, chat_prompt(row["prompt"]), texts, 0, joint="", chat=True)
