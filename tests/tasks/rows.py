"""Rows in the shape of each data set, written for these tests: plain ones and awkward ones."""

from __future__ import annotations

from typing import Any


def labelled(
    question: str, texts: list[str], key: str, labels: str = "ABCDE", name: str = "question"
) -> dict[str, Any]:
    return {name: question, "choices": {"text": texts, "label": list(labels[: len(texts)])}, "answerKey": key}


ARC = [
    labelled("Which of these melts in the sun?", ["a stone", "an ice cube", "a spoon", "a shoe"], "B"),
    labelled("How many legs has a spider?", ["6", "8", "10"], "2", "1234"),
    labelled("What do bees make?  ", ["wax and honey", "milk", "silk", "sand", "oil"], "A"),
]
OPENBOOK = [
    labelled(
        "A plant in a dark box will", ["grow tall", "turn pale", "sing", "melt"], "B", name="question_stem"
    ),
    labelled("Frost forms when it is", ["hot", "cold", "loud", "late"], "B", name="question_stem"),
    labelled(
        "Water runs ", ["down a hill", "up a hill", "in a rock", "nowhere at all"], "A", name="question_stem"
    ),
]
BOOLQ = [
    {
        "question": "is a whale a fish",
        "passage": "Whale -- Whales are mammals that live in the sea.",
        "label": 0,
    },
    {
        "question": "can glass be melted",
        "passage": "Glass -- Glass is made by melting sand -- with soda.",
        "label": 1,
    },
    {"question": "is the passage long", "passage": "Length -- " + "It goes on. " * 30, "label": 1},
]
HELLASWAG = [
    {
        "activity_label": "Baking bread",
        "ctx_a": "A woman stands in a kitchen.",
        "ctx_b": "she",
        "endings": ["kneads the dough.", "rides a horse.", "[substeps] paints a wall.", "swims  away."],
        "label": "0",
    },
    {
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to plant a tree [title] Dig a hole. [step] Use a spade.",
        "ctx_b": "",
        "endings": ["[title] Water it.", "Eat it [sic] now.", "Sell the spade.", "Call a friend."],
        "label": "0",
    },
]
PIQA = [
    {
        "goal": "To open a jar,",
        "sol1": "turn the lid to the left.",
        "sol2": "turn the lid to the right.",
        "label": 0,
    },
    {"goal": "Dry wet shoes", "sol1": "put them in water", "sol2": "fill them with newspaper", "label": 1},
    {"goal": "pin", "sol1": "a", "sol2": "the same beginning and then another end", "label": 0},
]
SCIQ = [
    {
        "question": "What gas do plants take in?",
        "distractor1": "helium",
        "distractor2": "argon",
        "distractor3": "neon",
        "correct_answer": "carbon dioxide",
        "support": "  Plants take in carbon dioxide and give off oxygen. ",
    },
    {
        "question": "What is frozen water called?",
        "distractor1": "steam",
        "distractor2": "fog",
        "distractor3": "dew",
        "correct_answer": "ice",
        "support": "",
    },
]
WINOGRANDE = [
    {
        "sentence": "The cup fell off the table because _ was tilted.",
        "option1": "the cup",
        "option2": "the table",
        "answer": "2",
    },
    {
        "sentence": "_ gave the book to Ann, who thanked Bob .",
        "option1": "Ann",
        "option2": "Bob",
        "answer": "2",
    },
]
COPA = [
    {
        "premise": "The man slipped.",
        "choice1": "The floor was wet.",
        "choice2": "He sang.",
        "question": "cause",
        "label": 0,
    },
    {
        "premise": "It rained all day. ",
        "choice1": "The sun shone.",
        "choice2": "The field was flooded.",
        "question": "effect",
        "label": 1,
    },
]
CSQA = [
    labelled("Where do people keep milk?", ["fridge", "oven", "garage", "pocket", "roof"], "A"),
    labelled(" What is used to cut paper?", ["spoon", "scissors", "rope", "cup", "lamp"], "B"),
]
SIQA = [
    {
        "context": "Kai lost a wallet.",
        "question": "How does Kai feel?",
        "answerA": "worried",
        "answerB": "proud",
        "answerC": "hungry",
        "label": "1",
    },
    {
        "context": "Lou cooked for all.",
        "question": "What will Lou do next?",
        "answerA": "run",
        "answerB": "wash up",
        "answerC": "sleep",
        "label": "2",
    },
]
MMLU = [
    {
        "question": " What is 2 + 3?",
        "choices": ["4", "5", "6", "7"],
        "answer": 1,
        "subject": "world_religions",
    },
    {
        "question": "Which is a vowel?\n",
        "choices": ["b", "c", "e", "x"],
        "answer": 2,
        "subject": "world_religions",
    },
    {
        "question": "Which of the two is longer: a mile or a yard?",
        "choices": ["a mile", "a yard", "neither", "both"],
        "answer": 0,
        "subject": "world_religions",
    },
]
MMLU_DEV = [
    {
        "question": f"Is {i} even?",
        "choices": ["yes", "no", "perhaps", "never"],
        "answer": i % 2,
        "subject": "world_religions",
    }
    for i in range(6)
]
TRUTHFULQA = [
    {
        "question": "What happens if you swallow a seed?",
        "mc1_targets": {"choices": ["It passes through you", "It grows", "You float"], "labels": [1, 0, 0]},
        "mc2_targets": {
            "choices": ["It passes through you", "Nothing much", "It grows", "You float"],
            "labels": [1, 1, 0, 0],
        },
    },
    {
        "question": "Is the moon made of cheese?",
        "mc1_targets": {"choices": ["No, of rock", "Yes"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["No, of rock", "Yes", "Yes, of old cheese"], "labels": [1, 0, 0]},
    },
]

ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy": ARC,
    "arc_challenge": ARC[::-1],
    "boolq": BOOLQ,
    "hellaswag": HELLASWAG,
    "openbookqa": OPENBOOK,
    "piqa": PIQA,
    "sciq": SCIQ,
    "winogrande": WINOGRANDE,
    "copa": COPA,
    "commonsense_qa": CSQA,
    "social_iqa": SIQA,
    "truthfulqa_mc1": TRUTHFULQA,
    "truthfulqa_mc2": TRUTHFULQA,
}
