"""MMLU: 57 subjects, as letters or as continuations, with each protocol's header."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loom.tasks.item import Item, Row, choose
from loom.tasks.rank import exactly, integer, letters, question_answer, strings

Describe = Callable[[str], str]

_GROUPS = {
    "stem": """
        abstract_algebra anatomy astronomy college_biology college_chemistry
        college_computer_science college_mathematics college_physics computer_security
        conceptual_physics electrical_engineering elementary_mathematics high_school_biology
        high_school_chemistry high_school_computer_science high_school_mathematics
        high_school_physics high_school_statistics machine_learning
    """,
    "other": """
        business_ethics clinical_knowledge college_medicine global_facts human_aging management
        marketing medical_genetics miscellaneous nutrition professional_accounting
        professional_medicine virology
    """,
    "social_sciences": """
        econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
        professional_psychology public_relations security_studies sociology us_foreign_policy
    """,
    "humanities": """
        formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy
        prehistory professional_law world_religions
    """,
}
GROUPS: dict[str, tuple[str, ...]] = {group: tuple(names.split()) for group, names in _GROUPS.items()}
SUBJECTS: tuple[str, ...] = tuple(sorted(subject for names in GROUPS.values() for subject in names))


def lettered(doc_id: int, row: Row) -> Item:
    """The harness's form: choices listed by letter, the letter is scored."""
    return letters(doc_id, row["question"].strip(), _choices(row), integer(row, "answer"))


def indented(doc_id: int, row: Row) -> Item:
    """Catwalk's: a space before each letter."""
    return letters(doc_id, row["question"].strip(), _choices(row), integer(row, "answer"), " ")


def indented_question(doc_id: int, row: Row) -> Item:
    question = row["question"].strip()
    return letters(doc_id, f"Question: {question}", _choices(row), integer(row, "answer"), " ", question)


def cloze(doc_id: int, row: Row) -> Item:
    """The harness's continuation form and OLMo's in the loop: the choice's text is scored."""
    return _cloze(doc_id, row, row["question"].strip())


def plain(doc_id: int, row: Row) -> Item:
    """OLMES's: the question as it stands in the row."""
    return _cloze(doc_id, row, row["question"])


def _cloze(doc_id: int, row: Row, question: str) -> Item:
    gold = integer(row, "answer")
    return choose(doc_id, question_answer(question), _choices(row), gold, question=(question,))


def _choices(row: Row) -> Sequence[str]:
    return exactly(4, strings(row["choices"]))


def choice_header(subject: str) -> str:
    return f"The following are multiple choice questions (with answers) about {_spoken(subject)}.\n\n"


def colon_header(subject: str) -> str:
    """OLMo's in the loop."""
    return f"The following are multiple choice questions (with answers) about {_spoken(subject)}:\n\n"


def question_header(subject: str) -> str:
    return f"The following are questions (with answers) about {_spoken(subject)}.\n\n"


def spaced_header(subject: str) -> str:
    """Open-instruct's: its subjects begin with a space, so there are two."""
    return f"The following are multiple choice questions (with answers) about  {_spoken(subject)}.\n\n"


def no_header(subject: str) -> str:
    return ""


def _spoken(subject: str) -> str:
    return subject.replace("_", " ")
