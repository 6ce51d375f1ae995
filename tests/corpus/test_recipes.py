"""The published corpora's recipes: they plan, check, and run on a small corpus of every source."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest

from loom.corpus import classifier, documents
from loom.corpus.curate import curate
from loom.corpus.plan import check, plan
from loom.corpus.rules import Curate
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.recipe import load
from tests.corpus.test_curate import texts

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CONTAMINATED = "Which of these thirteen or more words of a question would be found in the corpus again here?"


TOPICS = sorted(topics.topics, key=lambda key: -len(topics.topics[key]))  # the longest say most


@cache
def english() -> list[str]:
    """Words of the Python manual, in their order: prose that repeats no more than prose does."""
    return re.findall(r"[A-Za-z]{2,}", " ".join(topics.topics[key] for key in TOPICS))


def prose(seed: int, sentences: int = 14) -> str:
    """English enough for every rule for web pages; no two seeds share a line."""
    words = english()
    start = seed * 170 % (len(words) - 200)
    lines = [words[start + 12 * line : start + 12 * line + 12] for line in range(sentences)]
    return "\n".join(f"{' '.join(line)}." for line in lines)


def page(name: str, text: str, **metadata: Any) -> dict[str, Any]:
    return {"id": name, "text": text, "metadata": metadata}


CODE = "/* Copyright 2020 Somebody */\nint add(int first, int second) {\n  return first + second;\n}\n"
SECRET = "key = 'AKIAIOSFODNN7EXAMPLE'\nprint(key)\n" + "".join(f"value{i} = other{i}\n" for i in range(9))


def corpus() -> dict[str, list[dict[str, Any]]]:
    web = [page(f"w{i}", prose(i), url=f"https://example.org/{i}") for i in range(6)]
    web += [
        page("again", prose(77), url="https://example.org/0"),
        page("short", "Too short."),
        page(
            "german", "Der Hund und die Katze gehen in das Haus und schlafen dort die ganze Nacht lang.\n" * 9
        ),
        page(
            "toxic", prose(20) + "\nYou vile ugly thing, you vile ugly thing!\n", url="https://example.org/t"
        ),
        page(
            "private",
            prose(21) + "\nWrite to somebody@example.org if you like.\n",
            url="https://example.org/p",
        ),
        page("question", prose(22) + f"\n{CONTAMINATED}\n", url="https://example.org/q"),
    ]
    return {
        "common-crawl": web,
        "cc": web,
        "web": web,
        "c4": [page(f"c{i}", prose(100 + i)) for i in range(3)] + [page("c-short", "A few words.")],
        "stack": [
            page("code", CODE, ext="c", language="C"),
            page("secret", SECRET, ext="py", language="Python"),
            page("data", '{"a": 1}', ext="json", language="JSON"),
            page("minified", "x=1;" * 600, ext="js", language="JavaScript"),
        ],
        "reddit": [page("r1", prose(200)), page("r2", f"Asked:\n{CONTAMINATED}\n")],
        "pes2o": [page("s1", prose(300)), page("s2", prose(300))],
        "gutenberg": [page("g1", prose(400)), page("g2", "Der Hund und die Katze schlafen im Haus.\n" * 9)],
        "wiki": [page("k1", prose(500)), page("k2", "Stub.")],
    }


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of every source, a classifier, evaluation texts, a list."""
    folder = tmp_path_factory.mktemp("recipes")
    for source, rows in corpus().items():
        documents.write(folder / "corpus" / "documents" / source / "part.jsonl.gz", rows)
    choose = random.Random(2)
    for label in ("toxic", "nsfw"):
        lines = []
        for number in range(400):
            words = prose(number, 1).split()
            words[choose.randrange(len(words))] = "vile ugly" if number % 2 else "kind"
            lines.append(f"__label__{label if number % 2 else f'non_{label}'} {' '.join(words)}")
        (folder / f"{label}.txt").write_text("\n".join(lines) + "\n")
        recipe = classifier.Training((str(folder / f"{label}.txt"),), epoch=20)
        classifier.train(recipe, folder / f"{label}.bin")
    documents.write(folder / "eval.jsonl", [{"id": "q", "text": CONTAMINATED}])
    (folder / "blocklist.txt").write_text("blocked.example\n")
    return folder


def overrides(name: str, here: Path, tokenizer: Path | None) -> list[str]:
    files = {
        "jigsaw_hatespeech_sentence_v2": here / "toxic.bin",
        "jigsaw_nsfw_sencence_v2": here / "nsfw.bin",
        "paloma_paragraphs_v1": here / "eval.jsonl",
        "url_hosts_v1": here / "blocklist.txt",
        "tokenizer_repetitions_v2r2": tokenizer,
    }
    text = (RECIPES / f"{name}.yaml").read_text()
    return [
        f"documents={here / 'corpus'}",
        *(["most_removed.contaminated=0.5"] if "most_removed" in text else []),  # of so few, one is many
        *(f"files.{key}={path}" for key, path in files.items() if f"  {key}: " in text),
    ]


def recipe(name: str, here: Path, tokenizer: Path | None = None, *more: str) -> Curate:
    return load(RECIPES / f"{name}.yaml", Curate, [*overrides(name, here, tokenizer), *more])


@pytest.mark.parametrize("name", ["dolma-v1_5", "dolma-v1_6-web", "fineweb", "c4"])
def test_recipes_plan_check_and_run(name: str, here: Path, shared_data: Path, tmp_path: Path) -> None:
    made = recipe(name, here, shared_data / "tokenizers" / "olmo-v1.json")
    planned = plan(made)
    assert planned["sources"].keys() == made.sources.keys()
    found = check(made)
    assert all(found[source]["documents"] == len(corpus()[source]) for source in made.sources)
    artifact = curate(made, tmp_path / "out", LocalEngine(1))
    assert artifact.counters["documents_in"] == sum(len(corpus()[source]) for source in made.sources)
    kept = texts(tmp_path / "out").keys()
    web = {row["id"] for row in corpus()["web"]} & kept
    assert {"w0", "w5"} <= web
    assert not {"german"} & web
    if name != "c4":
        assert "short" not in web


def test_dolma_v1_5_by_source(here: Path, tmp_path: Path) -> None:
    artifact = curate(recipe("dolma-v1_5", here), tmp_path / "out", LocalEngine(1))
    removed = {name: part["removed"] for name, part in artifact.counters["sources"].items()}
    assert removed == {
        "common-crawl": {"not_english": 2, "contaminated": 1, "duplicate_key": 1},
        "c4": {"word_count": 1},
        "stack": {"data": 1, "long_lines": 1},
        "reddit": {"contaminated": 1},
        "pes2o": {},
        "gutenberg": {"not_english": 1},
        "wiki": {"short": 1},
    }
    kept = texts(tmp_path / "out")
    assert "vile" not in kept["toxic"]["text"]
    assert " |||EMAIL_ADDRESS||| " in kept["private"]["text"]
    assert "Copyright" not in kept["code"]["text"]
    assert "AKIA" not in kept["secret"]["text"]
    fate = texts(tmp_path / "out", "removed")
    assert fate["again"]["removed"] == {"rule": "duplicate_key", "survivor": "w0"}


def test_too_much_contamination_stops_the_run(here: Path, tmp_path: Path) -> None:
    """Not only in `loom decontaminate`: a recipe with evaluation texts that are everywhere would remove everything."""
    made = recipe("dolma-v1_5", here, None, "most_removed.contaminated=0.2")
    with pytest.raises(LoomError, match=r"'contaminated' speaks for 1 of the 2 documents of 'reddit' \(50"):
        curate(made, tmp_path / "out", LocalEngine(1))
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(LoomError, match="did you mean 'contaminated'"):
        recipe("dolma-v1_5", here, None, "most_removed={contamminated: 0.2}")


def test_a_missing_model_is_named_before_work_starts(here: Path) -> None:
    with pytest.raises(LoomError, match=r"no file .*nothing\.bin"):
        check(recipe("dolma-v1_5", here, None, "files.jigsaw_nsfw_sencence_v2=nothing.bin"))
    with pytest.raises(LoomError, match="jigsaw_hatespeech_sentence_v2' needs a fastText model"):
        check(recipe("dolma-v1_5", here, None, "files={}"))
