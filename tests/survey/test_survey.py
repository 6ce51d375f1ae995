"""The survey equals plain Python on real pages; its parts merge; its sketches keep within their error."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom import artifact
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.survey.contamination import INPUTS
from loom.survey.grams import Grams
from loom.survey.people import sentiment
from loom.survey.registry import NAMES, Options
from loom.survey.search import Search
from loom.survey.sketches import Counts, Distinct, Sample
from loom.survey.survey import Survey, dump_partials, load_partials, survey
from loom.survey.web import country_of, host_of, suffix_of
from loom.tasks.registry import TASKS

WORD = re.compile(r"\w+")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def result(folder: Path, *documents: Path, workers: int = 1, **more: Any) -> dict[str, Any]:
    recipe = Survey(tuple(map(str, documents)), **more)
    made = survey(recipe, folder, LocalEngine(workers))
    return json.loads(made.file("survey.json").read_bytes())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pages(shared_data: Path) -> list[dict[str, Any]]:
    with gzip.open(shared_data / "text" / "c4.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, pages: list[dict[str, Any]]) -> Path:
    """The pages in three files, the first forty of them twice, as a real crawl has them."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [*pages, *({**page, "id": f"again-{page['id']}"} for page in pages[:40])]
    for number in range(3):
        write(folder / "documents" / f"{number}.jsonl", rows[number::3])
    return folder


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[dict[str, Any]]:
    files = sorted((corpus / "documents").iterdir())
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def found(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    options = Options(search=("police AND town OR city",), regex=("[A-Z]{5,}",), ngrams=(1, 2, 3))
    return result(tmp_path_factory.mktemp("survey"), corpus, options=options)


def test_counts(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    words = [len(WORD.findall(row["text"])) for row in rows]
    counts = found["counts"]
    assert counts["documents"] == len(rows)
    assert counts["words"] == sum(words)
    assert counts["bytes"] == sum(len(row["text"].encode()) for row in rows)
    assert counts["characters"] == sum(len(row["text"]) for row in rows)
    assert counts["most_words"]["number"] == max(words)
    assert counts["fewest_words"]["number"] == min(words)
    assert counts["most_words"]["id"] == rows[words.index(max(words))]["id"]


def test_urls(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    hosts = [urlsplit(row["metadata"]["url"]).hostname or "" for row in rows]
    names = Counter(host.removeprefix("www.") for host in hosts)
    told = {row["name"]: row["documents"] for row in found["domains"]["by_documents"]}
    assert found["domains"]["different"] == len(names)
    assert all(names[name] == count for name, count in told.items())
    assert sorted(told.values(), reverse=True) == sorted(names.values(), reverse=True)[: len(told)]
    words: Counter[str] = Counter()
    for host, row in zip(hosts, rows, strict=True):
        words[host.removeprefix("www.")] += len(WORD.findall(row["text"]))
    assert [row["words"] for row in found["domains"]["by_words"]] == sorted(words.values(), reverse=True)[:50]
    schemes = Counter(urlsplit(row["metadata"]["url"]).scheme for row in rows)
    assert {row["name"]: row["documents"] for row in found["schemes"]["by_documents"]} == dict(schemes)
    years = Counter(row["created"][:4] for row in rows)
    assert {row["date"]: row["documents"] for row in found["dates"]["years"]} == dict(years)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngrams(found: dict[str, Any], rows: list[dict[str, Any]], n: int) -> None:
    grams: Counter[str] = Counter()
    for row in rows:
        words = WORD.findall(row["text"])
        grams.update(" ".join(words[at : at + n]) for at in range(len(words) - n + 1))
    told = found["ngrams"][str(n)]
    assert told["exact"]
    assert told["unique"] == len(grams)
    assert [row["count"] for row in told["most_common"]] == [count for _, count in grams.most_common(25)]
    assert all(grams[row["text"]] == row["count"] for row in told["most_common"] + told["least_common"])
    assert told["least_common"][0]["count"] == min(grams.values())


def test_duplicates(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    for key, values in (
        ("text", [row["text"] for row in rows]),
        ("url", [row["metadata"]["url"] for row in rows]),
    ):
        clusters = Counter(values)
        doubled = [count for count in clusters.values() if count > 1]
        told = found["duplicates"][key]
        assert (told["documents"], told["unique"]) == (len(rows), len(clusters))
        assert (told["clusters"], told["copies"]) == (len(doubled), sum(doubled) - len(doubled))
        assert [row["documents"] for row in told["largest"]] == sorted(doubled, reverse=True)[:30]


def test_lengths(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    for key, values in (
        ("characters", [len(row["text"]) for row in rows]),
        ("words", [len(WORD.findall(row["text"])) for row in rows]),
    ):
        told = found["lengths"][key]
        assert told["mean"] == pytest.approx(np.mean(values))
        assert told["quantiles"]["0.5"] == np.quantile(values, 0.5, method="inverted_cdf")
        for part in told["histogram"]:
            high = part["below"] if part["below"] is not None else float("inf")
            assert part["documents"] == sum(part["from"] <= value < high for value in values)
        for peak in told["peaks"]:
            assert peak["documents"] == values.count(peak["length"])
            around = [v for v in values if v != peak["length"] and abs(v - peak["length"]) <= 10]
            assert peak["expected"] == pytest.approx(len(around) / (10 + min(10, peak["length"])), abs=0.01)


def test_an_odd_length_is_shown_with_an_example(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = ["x" * int(size) for size in random.integers(200, 800, 300) if size != 496] + [
        "template " * 55 + str(i % 10) for i in range(30)
    ]
    write(tmp_path / "a.jsonl", [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)])
    told = result(tmp_path / "out", tmp_path / "a.jsonl", only=("lengths",))
    peak = told["lengths"]["characters"]["peaks"][0]
    assert (peak["length"], peak["documents"], texts[int(peak["id"][1:])][:9]) == (496, 30, "template ")


def test_search(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    phrase, pattern = found["search"]["queries"]
    texts = [row["text"] for row in rows]
    both = [n for n, text in enumerate(texts) if "police" in text and ("town" in text or "city" in text)]
    assert phrase["documents"] == len(both) > 0
    assert [row["id"] for row in phrase["first"]] == [rows[n]["id"] for n in both[:20]]
    assert pattern["occurrences"] == sum(len(re.findall("[A-Z]{5,}", text)) for text in texts)
    assert pattern["documents"] == sum(bool(re.search("[A-Z]{5,}", text)) for text in texts)


def test_people(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    mails = sum("@" in row["text"] for row in rows)
    told = {row["kind"]: row for row in found["pii"]["kinds"]}
    assert 0 < told["EMAIL_ADDRESS"]["documents"] <= mails
    women = next(row for row in found["demographics"]["terms"] if row["term"] == "women")
    sentences = [
        s for row in rows for s in re.findall(r"[^.!?\n]+", row["text"]) if re.search(r"\bwomen\b", s, re.I)
    ]
    assert women["sentences"] == len(sentences)
    assert women["positive"] == sum(sentiment(s) > 0 for s in sentences)
    assert women["negative"] == sum(sentiment(s) < 0 for s in sentences)
    languages = {row["language"]: row["documents"] for row in found["language"]["languages"]}
    assert languages["en"] > 0.95 * len(rows)
    assert sum(languages.values()) == len(rows)
    assert set(NAMES) - {"overlap"} <= found.keys()


def test_parts_merge_and_workers_change_nothing(corpus: Path, tmp_path: Path) -> None:
    only = ("counts", "ngrams", "duplicates", "lengths", "demographics")
    options = Options(ngrams=(2,))
    one = result(tmp_path / "one", corpus, only=only, options=options)
    two = result(tmp_path / "two", corpus, only=only, options=options, workers=2)
    assert one == two
    joined = tmp_path / "documents" / "joined.jsonl"
    joined.parent.mkdir()
    joined.write_bytes(b"".join(path.read_bytes() for path in sorted((corpus / "documents").iterdir())))
    whole = result(tmp_path / "whole", joined, only=only, options=options)
    for name in ("counts", "ngrams"):
        assert whole[name] == one[name]


def test_contamination(tmp_path: Path, pages: list[dict[str, Any]]) -> None:
    sentence = next(
        line for page in pages for line in page["text"].splitlines() if 12 <= len(WORD.findall(line)) <= 30
    )
    questions = [
        {"id": 1, "question": sentence.upper(), "choices": ["the"], "label": "zzzunseen"},
        {"id": 2, "question": sentence, "choices": ["qqq unseen qqq"], "label": 0},
        {
            "id": 3,
            "question": "Which zebra has never been asked about in any page of a small corpus?",
            "label": 0,
        },
        {"id": 4, "question": sentence + " and then something else is said that nobody wrote", "label": 0},
    ]
    write(tmp_path / "quiz.test.jsonl", questions)
    write(tmp_path / "documents" / "a.jsonl", pages)
    options = Options(eval=(str(tmp_path / "quiz.test.jsonl"),))
    (told,) = result(
        tmp_path / "out", tmp_path / "documents" / "a.jsonl", only=("contamination",), options=options
    )["contamination"]["sets"]
    assert (told["name"], told["rows"], told["contained"]) == ("quiz", 4, 1)
    assert told["examples"][0]["row"] == 0
    assert told["rows_half_overlapping"] >= 2
    assert 0 < told["mean_overlap"] < 1


def test_a_known_task_is_looked_for_by_what_it_asks(tmp_path: Path) -> None:
    """HellaSwag's label of the activity and its halves of the context are no input."""
    row = {
        "ind": 3, "activity_label": "Making tea", "ctx_a": "A kettle boils.", "ctx_b": "the cook",
        "ctx": "A kettle boils. the cook", "endings": ["pours the water.", "runs away."], "label": "0",
        "source_id": "x~v_1", "split_type": "indomain",
    }  # fmt: skip
    write(tmp_path / "hellaswag.validation.jsonl", [row])
    write(tmp_path / "other.validation.jsonl", [row])
    text = "a kettle boils; the cook pours the water, or runs away!"
    write(tmp_path / "a.jsonl", [{"id": "d", "text": text}])
    files = tuple(str(tmp_path / f"{name}.validation.jsonl") for name in ("hellaswag", "other"))
    told = result(
        tmp_path / "out", tmp_path / "a.jsonl", only=("contamination",), options=Options(eval=files)
    )
    assert [(item["name"], item["contained"]) for item in told["contamination"]["sets"]] == [
        ("hellaswag", 1),
        ("other", 0),
    ]


def test_a_sentence_with_a_blank_is_found_filled_in(tmp_path: Path) -> None:
    row = {"sentence": "The trophy did not fit the case because the _ was too big.", "answer": "1"}
    options = {"option1": "trophy", "option2": "case"}
    write(
        tmp_path / "sets" / "winogrande.validation.jsonl",
        [row | options, {**row, "option1": "a", "option2": "b"}],
    )
    text = "They say: the trophy did not fit the case, because the trophy was too big!"
    write(tmp_path / "a.jsonl", [{"id": "d", "text": text}])
    asked = Options(eval=(str(tmp_path / "sets"),))
    (told,) = result(tmp_path / "out", tmp_path / "a.jsonl", only=("contamination",), options=asked)[
        "contamination"
    ]["sets"]
    assert (told["name"], told["rows"], told["contained"]) == ("winogrande", 2, 1)


def test_a_folder_of_evaluation_sets_and_a_set_in_subjects(tmp_path: Path) -> None:
    for name in ("mmlu/anatomy.test", "mmlu/virology.test", "piqa.validation"):
        question = {
            "question": f"what is the part of {name[:8]} that is asked for here",
            "choices": ["this one"],
        }
        goal = {"goal": "to boil water for the tea of a guest", "sol1": "use fire", "sol2": "use ice"}
        write(tmp_path / "sets" / f"{name}.jsonl", [question | goal])
    text = "to boil water for the tea of a guest use fire. use ice"
    write(tmp_path / "a.jsonl", [{"id": "d", "text": text}])
    asked = Options(eval=(str(tmp_path / "sets"),))
    sets = result(tmp_path / "out", tmp_path / "a.jsonl", only=("contamination",), options=asked)[
        "contamination"
    ]["sets"]
    assert [(item["name"], item["rows"], item["contained"]) for item in sets] == [
        ("mmlu", 2, 0),
        ("piqa", 1, 1),
    ]


def test_the_fields_of_every_task_there_is_are_known() -> None:
    assert {name for task in TASKS.values() for name in task.files} <= INPUTS.keys()


def test_a_curated_folder_is_its_documents(tmp_path: Path) -> None:
    folder = tmp_path / "curated"
    write(folder / "documents" / "a.jsonl", [{"id": "1", "text": "kept"}])
    write(folder / "removed" / "a.jsonl", [{"id": "2", "text": "gone"}])
    names = ["documents/a.jsonl", "removed/a.jsonl"]
    outputs = artifact.describe(folder, names)
    artifact.commit(folder, "documents", recipe={}, inputs=[], outputs=outputs, counters={})
    assert result(tmp_path / "out", folder, only=("counts",))["counts"]["documents"] == 1


def test_overlap_between_corpora(tmp_path: Path) -> None:
    for name, numbers in (("a", range(50)), ("b", range(30, 90))):
        documents = [
            {"id": f"{name}{n}", "text": f"text {n}", "metadata": {"url": f"http://x.org/{n // 2}"}}
            for n in numbers
        ]
        write(tmp_path / name / "documents" / "a.jsonl", documents)
    told = result(tmp_path / "out", tmp_path / "a", only=("overlap",), against=((str(tmp_path / "b"),),))
    (pair,) = told["overlap"]
    assert pair["text"]["shared"] == 20
    assert pair["text"]["unique"] == [50, 60]
    assert (pair["url"]["shared"], pair["url"]["documents"]) == (10, [20, 20])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=3000), st.integers(0, 3))
def test_counts_beyond_memory_stay_within_their_bound(keys: list[int], cut: int) -> None:
    sketch, true = Counts(most=64), Counter(keys)
    sketch.table = np.zeros((64, 4), np.uint64)
    halves = [keys[: len(keys) * cut // 3], keys[len(keys) * cut // 3 :]]
    other = Counts(most=64)
    other.table = np.zeros((64, 4), np.uint64)
    for part, target in zip(halves, (sketch, other), strict=True):
        target.add(np.array(part, np.uint64), np.arange(len(part), dtype=np.uint64))
    sketch.merge(other)
    told = {int(row[0]): int(row[1]) for row in sketch.rows()}
    assert all(0 <= true[key] - count <= sketch.missed for key, count in told.items())
    assert all(true[key] <= sketch.missed for key in true.keys() - told.keys())
    if sketch.exact:
        assert told == dict(true)


def test_the_number_of_different_ones_is_within_its_error() -> None:
    random = np.random.default_rng(0)
    for size in (10, 3_000, 200_000):
        from loom.survey.duplicates import note_all

        distinct, other = Distinct(), Distinct()
        keys = random.integers(1, 1 << 63, size, dtype=np.uint64)
        note_all(distinct, keys[: size // 2])
        note_all(other, keys[size // 3 :])
        distinct.merge(other)
        assert abs(distinct.estimate() / size - 1) < 4 * Distinct.ERROR


def test_the_sample_of_different_ones_has_exact_counts() -> None:
    random = np.random.default_rng(0)
    keys = random.integers(1, 1 << 63, 60_000, dtype=np.uint64) << np.uint64(1)
    stream = np.concatenate((keys, keys[::2]))
    sample = Sample()
    rows = np.zeros((len(stream), 4), np.uint64)
    rows[:, 0], rows[:, 1] = stream, 1
    sample.add_rows(rows)
    true = Counter(stream.tolist())
    told = sample.rows()
    assert 0 < len(told) <= 1 << 14
    assert all(true[int(row[0])] == int(row[1]) for row in told)
    assert abs(len(told) / sample.share / len(true) - 1) < 0.05


def test_ngrams_beyond_memory(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write(tmp_path / "a.jsonl", rows)
    options = Options(ngrams=(2,), table=1 << 14)
    told = result(tmp_path / "out", tmp_path / "a.jsonl", only=("ngrams",), options=options)["ngrams"]["2"]
    grams: Counter[str] = Counter()
    for row in rows:
        words = WORD.findall(row["text"])
        grams.update(" ".join(words[at : at + 2]) for at in range(len(words) - 1))
    assert not told["exact"]
    assert abs(told["unique"] / len(grams) - 1) < 4 * told["unique_error"]
    for row in told["most_common"]:
        assert 0 <= grams[row["text"]] - row["count"] <= told["missed"]
    assert all(grams[row["text"]] == row["count"] for row in told["least_common"])
    once = sum(count == 1 for count in grams.values()) / len(grams)
    assert told["share_seen_once"] == pytest.approx(once, abs=0.03)


def test_partial_results_survive_the_disk(tmp_path: Path) -> None:
    partial = {"ngrams": Grams((2,)).start(), "search": Search(("a",)).start()}
    counts = partial["ngrams"]["2"]
    assert isinstance(counts, Counts)
    counts.add(np.array([7, 7, 9], np.uint64), np.array([3, 1, 2], np.uint64))
    (tmp_path / "part").write_bytes(dump_partials(partial))
    again = load_partials(tmp_path / "part")
    assert dump_partials(again) == dump_partials(partial)
    loaded = again["ngrams"]["2"]
    assert isinstance(loaded, Counts)
    assert loaded.rows().tolist() == [[7, 2, 1, 0], [9, 1, 2, 0]]


def test_hosts_suffixes_and_countries() -> None:
    assert host_of("HTTPS://me@WWW.Example.CO.uk:80/a?b#c") == ("https", "www.example.co.uk", "/a")
    assert host_of("mailto:x")[:2] == ("mailto", "")
    assert host_of("nonsense") == ("", "", "")
    assert [suffix_of(h) for h in ("www.bbc.co.uk", "a.org", "10.0.0.1", "localhost")] == [
        "co.uk",
        "org",
        "",
        "",
    ]
    more = ("a.b.kobe.jp", "x.github.io", "gov.za", "a..b", "a.unheard")
    assert [suffix_of(h) for h in more] == ["b.kobe.jp", "io", "gov.za", "", "unheard"]
    assert [country_of(h) for h in ("bbc.co.uk", "a.de", "a.com", "app.io", "x.eu")] == [
        "GB",
        "DE",
        "",
        "",
        "",
    ]
    assert [sentiment(s) for s in ("a kind man", "not a kind man", "cruel and kind", "he sat")] == [
        1,
        -1,
        0,
        0,
    ]


def test_bad_use_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"id": "1", "text": "words here"}])
    with pytest.raises(LoomError, match="Did you mean 'domains'"):
        result(tmp_path / "out", path, only=("domain",))
    with pytest.raises(LoomError, match="no regular expression"):
        result(tmp_path / "out", path, options=Options(regex=("(",)))
    with pytest.raises(LoomError, match="lacks a phrase"):
        result(tmp_path / "out", path, options=Options(search=("a AND ",)))
    with pytest.raises(LoomError, match="no evaluation file"):
        result(tmp_path / "out", path, options=Options(eval=("none.jsonl",)))
    with pytest.raises(LoomError, match="No file matches"):
        result(tmp_path / "out", tmp_path / "none.jsonl")


@pytest.mark.timeout(60)
def test_a_pattern_that_explodes_elsewhere_is_matched_in_linear_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"id": "1", "text": "a" * 20_000 + "!"}])
    told = result(tmp_path / "out", path, only=("search",), options=Options(regex=("(a+)+$", "(a|aa)+$")))
    assert [query["documents"] for query in told["search"]["queries"]] == [0, 0]


def test_hostile_text_is_harmless_on_the_page(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31m\u202e {{ 7*7 }}"
    rows = [{"id": hostile, "text": hostile, "metadata": {"url": "http://x.org/<b>"}}] * 3
    told = result(tmp_path / "out", write(tmp_path / "a.jsonl", rows))
    assert told["duplicates"]["text"]["copies"] == 2
    page = (tmp_path / "out" / "survey.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
