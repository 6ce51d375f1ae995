"""Near-duplicates in a curation, short names, fields that nobody has: what the recipe says is what is done."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from loom.cli import main
from loom.corpus import documents
from loom.corpus.curate import curate
from loom.corpus.dedupe.minhash import MinHash, minhash
from loom.corpus.plan import check, plan, some
from loom.corpus.tag import File
from loom.corpus.why import why
from loom.engine import LocalEngine
from loom.errors import LoomError
from tests.corpus.test_curate import recipe, texts, tree, write
from tests.corpus.test_minhash import attributes

VOCABULARY = [f"word{letter}{other}" for letter in "abcdefghijklmnop" for other in "qrstuvwxyz"]


def rows() -> list[dict[str, Any]]:
    """Twelve texts, each with copies of which more and more words are exchanged; a short one of every text."""
    choose = random.Random(5)
    made = []
    for number in range(12):
        words = [choose.choice(VOCABULARY) for _ in range(120)]
        for exchanged in (0, 1, 2, 40):
            copy = list(words)
            for at in choose.sample(range(len(copy)), exchanged):
                copy[at] = choose.choice(VOCABULARY)
            made.append({"id": f"d{number}-{exchanged}", "text": " ".join(copy)})
        made.append({"id": f"d{number}-short", "text": " ".join(words[:3])})
    choose.shuffle(made)
    return made


NEAR = {"documents": True, "near": {"words": 5, "bands": 14, "rows": 8, "seed": 1}, "paragraphs": False}


def test_a_curation_finds_what_the_command_finds(tmp_path: Path) -> None:
    """Among the documents that the rules left; the same for any split and number of workers."""
    every = rows()
    left = [row for row in every if not row["id"].endswith("short")]
    write(tmp_path / "left", left, 1)
    found = attributes(minhash(MinHash(documents=(str(tmp_path / "left"),), name="near")).path)
    expected = {name: item["near_of"] for name, item in found.items() if item}
    assert len(expected) > 20
    made = {}
    for parts, workers in ((1, 1), (4, 3)):
        raw = write(tmp_path / f"raw{parts}", every, parts)
        out = tmp_path / f"out{parts}"
        counters = curate(recipe(raw, dedupe=NEAR), out, LocalEngine(workers)).counters["sources"]["s"]
        assert counters["removed"] == {"short": 12, "near_duplicate": len(expected)}
        removed = {
            name: row["removed"]["survivor"]
            for name, row in texts(out, "removed").items()
            if row["removed"]["rule"] == "near_duplicate"
        }
        assert removed == expected
        made[parts] = texts(out)
    assert made[1] == made[4]
    name, survivor = next(iter(expected.items()))
    fate = why(name, tmp_path / "out4")
    assert (fate["removed_by"], fate["survivor"]) == ("near_duplicate", survivor)


def test_a_source_may_be_left_out(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", rows(), 2)
    values = recipe(raw).rules["r"]
    rules = {"r": {"taggers": list(values.taggers), "remove": dict(values.remove), "near": False}}
    counters = curate(recipe(raw, dedupe=NEAR, rules=rules), tmp_path / "out", LocalEngine(1)).counters
    assert counters["sources"]["s"]["removed"] == {"short": 12}


def short_names(raw: Path, **more: Any) -> Any:
    rules = {
        "r": {
            "taggers": ["gopher_v2", "pii_v1"],
            "remove": {"short": "words < 5", "long": "max(words) > 100000 or count(mail) > 9"},
            "replace": {"mail": " |||EMAIL_ADDRESS||| ", "pii_v1.IP_ADDRESS >= 0.4": "IP"},
        }
    }
    names = {"words": "gopher_v2.word_count", "mail": "pii_v1.EMAIL_ADDRESS"}
    return recipe(raw, rules=rules, **{"names": names, **more})


def test_short_names_are_what_they_stand_for(tmp_path: Path) -> None:
    from tests.corpus.test_curate import corpus

    raw = write(tmp_path / "raw", corpus(), 2)
    short = short_names(raw)
    long = recipe(
        raw,
        rules={
            "r": {
                "taggers": ["gopher_v2", "pii_v1"],
                "remove": {
                    "short": "gopher_v2.word_count < 5",
                    "long": "max(gopher_v2.word_count) > 100000 or count(pii_v1.EMAIL_ADDRESS) > 9",
                },
                "replace": {
                    "pii_v1.EMAIL_ADDRESS": " |||EMAIL_ADDRESS||| ",
                    "pii_v1.IP_ADDRESS >= 0.4": "IP",
                },
            }
        },
    )
    check(short)
    assert plan(short)["names"]["words"] == "gopher_v2.word_count"
    assert plan(short)["sources"]["s"]["remove"]["short"] == "words < 5"
    curate(short, tmp_path / "short", LocalEngine(1))
    curate(long, tmp_path / "long", LocalEngine(1))
    one, other = tree(tmp_path / "short"), tree(tmp_path / "long")
    assert one.pop("manifest.json") != other.pop("manifest.json")  # the recipe as it was written
    assert one == other
    assert why("short", tmp_path / "short")["removed_by"] == "short"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"names": {}}, "'words' cannot stand .*declares under `names`"),
        ({"names": {"words": "gopher_v2.word_counts", "mail": "pii_v1.EMAIL_ADDRESS"}}, "no 'word_counts'"),
        ({"names": {"count": "gopher_v2.word_count"}}, "names.count"),
        ({"names": {"words": "gopher_v2.word_count > 3"}}, "names.words"),
    ],
)
def test_a_short_name_must_be_declared_and_stand_for_a_key(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    raw = write(tmp_path / "raw", rows()[:4], 1)
    with pytest.raises(LoomError, match=said):
        check(short_names(raw, **more))


def test_a_unique_field_that_nobody_has_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write(tmp_path / "raw", rows()[:9], 2)
    wrong = recipe(raw, rules={"r": {"taggers": ["gopher_v2"], "unique": "metadata.link"}})
    check(wrong)
    assert "'metadata.link'" in capsys.readouterr().err
    with pytest.raises(LoomError, match=r"No document has the field 'metadata.link' \(rules.r.unique\)"):
        curate(wrong, tmp_path / "out", LocalEngine(1))
    documents.write(
        raw / "documents" / "s" / "z.jsonl.gz", [{"id": "z", "text": "z", "metadata": {"link": 1}}]
    )
    curate(wrong, tmp_path / "out", LocalEngine(1))


def test_check_looks_into_files_of_every_source(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", rows(), 20)
    assert [f.name for f in some([File(Path(str(n)), str(n), "") for n in range(20)])][::7] == ["0", "19"]
    found = check(recipe(raw))["s"]
    assert found["files"] == 8
    assert 0 < found["matched"]["short"] < 12
    (raw / "documents" / "s" / "part-19.jsonl.gz").write_bytes(b"\x1f\x8b cut")
    with pytest.raises(LoomError, match=r"part-19\.jsonl\.gz is cut short"):
        check(recipe(raw))
    lists = recipe(
        raw,
        rules={"r": {"taggers": ["c4_v2"], "remove": {"x": "c4_v2.lines_with_no_ending_punctuation > 3"}}},
    )
    documents.write(
        raw / "documents" / "s" / "part-19.jsonl.gz", [{"id": "l", "text": "one line\nand another\n"}]
    )
    with pytest.raises(LoomError, match="Put an aggregate around"):
        check(lists)


def test_the_plan_shows_every_step_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "raw", rows()[:9], 1)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"documents: {raw}\nsources: {{s: {{rules: r}}}}\nnames: {{words: gopher_v2.word_count}}\n"
        "rules:\n  r:\n    taggers: [gopher_v2, pii_v1]\n    unique: metadata.url\n"
        "    remove: {short: words < 5}\n    replace: {pii_v1.EMAIL_ADDRESS: MAIL}\n"
        "dedupe: {near: {}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["curate", str(path), "--plan"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for text in (
        "short: words < 5",
        "words stands for gopher_v2.word_count",
        "pii_v1.EMAIL_ADDRESS -> 'MAIL'",
    ):
        assert text in said
    steps = ["tag", "judge", "index of ids", "duplicate ids", "duplicate keys", "duplicate documents"]
    steps += ["near duplicates", "duplicate paragraphs", "mix"]
    assert f"Steps: {', '.join(steps)}" in " ".join(said.split())
