"""Dolma's taggers for code, toxicity, repetitions and addresses: equal to dolma 1.2.1, key by key, span by span."""

from __future__ import annotations

import gzip
import inspect
import random
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from loom.corpus import attributes, classifier, taggers
from loom.corpus.batch import make_batch
from loom.corpus.taggers import Texts
from loom.errors import LoomError
from tests.corpus.test_dolma_taggers import nonsense

ORACLE = Path(__file__).resolve().parents[1] / "oracles" / "dolma_more.py"


def run_dolma(
    python: Path, rows: Sequence[dict[str, Any]], folder: Path, **settings: Any
) -> list[dict[str, Any]]:
    (folder / "settings.json").write_bytes(orjson.dumps(settings))
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    command = [str(python), str(ORACLE), str(folder / "settings.json")]
    done = subprocess.run(command, input=data, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [orjson.loads(line)["attributes"] for line in done.stdout.splitlines()]


def run_loom(
    rows: Sequence[dict[str, Any]], names: Sequence[str], files: taggers.Files | None = None
) -> list[dict[str, Any]]:
    texts = Texts(make_batch(rows, range(1, len(rows) + 1)))
    found: list[dict[str, Any]] = [{name: {} for name in names} for _ in rows]
    for name in names:
        for key, spans in taggers.get(name, files)(texts).items():
            scores = attributes.rounded(spans.scores)
            for row in range(len(rows)):
                span = attributes.Spans(spans.offsets, spans.starts, spans.ends, scores, spans.present).of(
                    row
                )
                if span:
                    found[row][name][key] = [list(value) for value in span]
    return found


def check(
    mine: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> int:
    """Both sides are equal (scores of models within float32's last digits); returns how many texts Dolma gave up."""
    failed = 0
    for row, ours, theirs in zip(rows, mine, other, strict=True):
        for name, keys in theirs.items():
            if "error" in keys:
                failed += 1
                continue
            assert ours[name].keys() == keys.keys(), (name, row["text"][:200])
            for key, spans in keys.items():
                assert [s[:2] for s in ours[name][key]] == [s[:2] for s in spans], (
                    name,
                    key,
                    row["text"][:300],
                )
                scores = [s[2] for s in spans]
                assert [s[2] for s in ours[name][key]] == pytest.approx(scores, abs=2e-5), (
                    name,
                    key,
                    row["text"][:300],
                )
    return failed


@pytest.fixture(scope="module")
def dolma(oracle: Any) -> Path:
    python: Path = oracle("dolma")
    return python


def web(folder: Path, count: int) -> list[dict[str, Any]]:
    with gzip.open(folder / "text" / "c4.jsonl.gz") as stream:
        return [orjson.loads(line) for _, line in zip(range(count), stream, strict=False)]


def labelled(path: Path) -> Path:
    choose = random.Random(3)
    words = [f"w{number}" for number in range(200)] + ["the", "page", "naïve"]
    lines = []
    for number in range(600):
        line = [choose.choice(words) for _ in range(12)]
        line[choose.randrange(12)] = "vile ugly" if number % 2 else "kind café"
        lines.append(f"__label__{'toxic' if number % 2 else 'non_toxic'} {' '.join(line)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_toxicity(dolma: Path, shared_data: Path, tmp_path: Path) -> None:
    model = tmp_path / "toxic.bin"
    classifier.train(classifier.Training((str(labelled(tmp_path / "lines.txt")),)), model)
    names = ["jigsaw_hatespeech_document_v2", "jigsaw_hatespeech_sentence_v2", "jigsaw_nsfw_sencence_v2"]
    files = {name: str(model) for name in names}
    rows = [*web(shared_data, 60), *nonsense(60, seed=5)]
    rows += [{"id": "a", "text": "A vile thing. A kind café! Not\nso ugly?"}]
    rows = [row for row in rows if row["text"].strip()]
    failed = check(
        run_loom(rows, names, files), run_dolma(dolma, rows, tmp_path, taggers=names, models=files), rows
    )
    assert failed == 0


PYTHON = '''
# A comment, and another   # one
"""Module's own words."""
import os


class One:
    """What it is."""

    def two(self):
        """Longer words here."""
        return os  # trailing


def three():
    pass
'''
JAVA = "/* Copyright 2020 Somebody */\nclass A { // one\n  /** doc */ int x = 1; /* more */\n}\n"
SCRIPT = "// first\n// second\n\nlet key = 'a'; /* block */ const s = '// not one';\n"
SHELL = "#!/bin/sh\n# Copyright\n\n# more\necho hi\n"
HTML = f"<html><head><style>p {{}}</style><script>1</script></head><body><p>{'Words shown. ' * 20}</p></body></html>"
SECRETS = (
    "aws_key = 'AKIAIOSFODNN7EXAMPLE'\npassword = 'hunter2hunter2'\nurl = 'https://user:pa55word@host/x'\n"
)


def code_rows() -> list[dict[str, Any]]:
    texts = [
        (PYTHON, "py"), (JAVA, "java"), (SCRIPT, "js"), (HTML, "html"), (SHELL, "sh"), (SECRETS, "py"),
        ("def broken(:\n  # yes\n", "py"), ("'''never closed", "py"), ("<?xml version='1.0'?><a/>", "xml"),
        ("<p>short</p>", "html"), ("x = 1\r\ny = 2\r\n", "py"), ("no ext at all", ""), ("-- sql\n--\nselect", "sql"),
        (inspect.getsource(textwrap), "py"), (inspect.getsource(random), "py"), (inspect.getsource(gzip), "py"),
    ]  # fmt: skip
    return [
        {"id": str(number), "text": text, "metadata": {"ext": ext, "max_stars_count": number or None}}
        for number, (text, ext) in enumerate(texts)
    ]


def test_code(dolma: Path, shared_data: Path, tmp_path: Path) -> None:
    names = [
        "code_redpajama_taggers_v1", "code_copyright_comments_v1", "code_starcoder_taggers_v2", "code_secrets_v1",
    ]  # fmt: skip
    rows = [*code_rows(), *nonsense(80, seed=9), *web(shared_data, 30), {"id": "empty", "text": ""}]
    failed = check(run_loom(rows, names), run_dolma(dolma, rows, tmp_path, taggers=names), rows)
    assert failed <= 2
    found = run_loom(code_rows(), ["code_secrets_v1"])
    assert any(key.startswith("SECRET_AWS") for key in found[5]["code_secrets_v1"])


def test_repetitions(dolma: Path, shared_data: Path, tmp_path: Path) -> None:
    tokenizer = str(shared_data / "tokenizers" / "olmo-v1.json")
    names = ["repetitions_v1", "paragraph_repetitions_v1"]
    by_token = [
        "tokenizer_repetitions_v1",
        "paragraph_tokenizer_repetitions_v1",
        "tokenizer_repetitions_v2r2",
    ]
    choose = random.Random(1)
    rows = [
        {"id": "empty", "text": ""},
        {"id": "a", "text": "a"},
        {"id": "one", "text": "ha" * 40 + "\n" + "=-" * 9},
    ]
    for number in range(60):
        unit = [
            choose.choice(("foo ", "bar", " x", "12 ", "\n", "é", "!")) for _ in range(choose.randint(1, 14))
        ]
        around = [choose.choice(("This is ", "text ", "\n", "ab ")) for _ in range(6)]
        rows.append(
            {"id": f"r{number}", "text": "".join(around[:3] + unit * choose.randint(1, 7) + around[3:])}
        )
    files = dict.fromkeys(by_token, tokenizer)
    mine = run_loom(rows, [*names, *by_token], files)
    other = run_dolma(dolma, rows, tmp_path, taggers=[*names, *by_token], tokenizer=tokenizer)
    assert check(mine, other, rows) <= 2
    pages = web(shared_data, 15)
    names = ["tokenizer_repetitions_v2r2", "paragraph_repetitions_v1"]
    other = run_dolma(dolma, pages, tmp_path, taggers=names, tokenizer=tokenizer)
    assert check(run_loom(pages, names, files), other, pages) == 0


def test_lengths_in_tokens(dolma: Path, shared_data: Path, tmp_path: Path) -> None:
    tokenizer = str(shared_data / "tokenizers" / "olmo-v1.json")
    names = [
        "dolma_v1_tokenizer",
        "dolma_v2_tokenizer",
        "tokenizers_EleutherAI_GPT_NeoX_20B",
        "tokenizers_AI2_OLMo_v1",
    ]
    rows = [
        *web(shared_data, 40),
        *nonsense(80, seed=3),
        {"id": "empty", "text": ""},
        {"id": "blank", "text": " \n"},
    ]
    mine = run_loom(rows, names, dict.fromkeys(names, tokenizer))
    assert check(mine, run_dolma(dolma, rows, tmp_path, taggers=names, tokenizer=tokenizer), rows) == 0
    assert mine[0]["dolma_v1_tokenizer"]["length"][0][2] > 50


HOSTS = """# a hosts file
0.0.0.0 bad.example
127.0.0.1 localhost
127.0.0.1 www.worse.example
10.1.2.3 intranet.example
plain.example
plain.example/path/page
||adblock.example^
; comment
! comment
:: six.example
"""
ADBLOCK = """! a list
[Adblock Plus 2.0]
||ads.example^
||deep.tracker.example^$third-party
||scripts.example^$script
||pictures.example^$image,third-party
||first.example^$~third-party
||somewhere.example^$domain=other.example
|http://start.example/ad
/banner/*/img^
.gif?ad=
@@||good.ads.example^
||important.example^$important
@@||important.example^
ad-end.html|
/[0-9]{4}-promo/
example.org##.banner
||path.example/ads/
||part
"""
ADDRESSES = [
    "http://bad.example/x", "https://www.bad.example/", "worse.example", "https://sub.bad.example/",
    "http://10.1.2.3/page", "https://plain.example/path/page/?q=1", "https://plain.example/other", "localhost",
    "https://adblock.example/", "https://six.example", "https://ads.example/", "https://x.ads.example/y?z",
    "https://good.ads.example/", "http://notads.example/", "https://deep.tracker.example/", "https://tracker.example/",
    "https://scripts.example/a", "https://pictures.example/a.png", "https://first.example/", "http://start.example/ad1",
    "https://start.example/ad1", "https://any.example/banner/foo/img", "https://any.example/banner/foo/img?x",
    "https://any.example/banner/foo/imgs", "https://any.example/x.gif?ad=1", "https://somewhere.example/",
    "https://important.example/", "https://any.example/ad-end.html", "https://any.example/ad-end.html?x",
    "https://any.example/2024-promo/", "https://path.example/ads/1", "https://path.example/other",
    "https://partner.example/", "", "   ", "https://WWW.Bad.Example:8080/X", "https://www2.bad.example",
]  # fmt: skip


def test_addresses(dolma: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text(HOSTS)
    (tmp_path / "links.txt").write_text("# links\nplain.example/path/page\nbad.example/x\n")
    (tmp_path / "adblock.txt").write_text(ADBLOCK)
    lists = {
        "blocklist_hosts_porn_v1": "hosts.txt", "blocklist_firebog_ads_v1": "hosts.txt",
        "link_blocklist_phishing_v1": "links.txt", "oisd_small_abp_v1": "adblock.txt",
        "brave_core_abp_v1": "adblock.txt",
    }  # fmt: skip
    files = {name: str(tmp_path / path) for name, path in lists.items()}
    rows = [
        {"id": str(number), "text": "Some text.", "metadata": {"url": url}}
        for number, url in enumerate(ADDRESSES)
    ]
    rows.append({"id": "none", "text": "Some text.", "metadata": {}})
    names = list(files)
    other = run_dolma(
        dolma, rows, tmp_path, taggers=names, lists={name: [path] for name, path in files.items()}
    )
    mine = run_loom(rows, names, files)
    wrong = [
        (name, row["metadata"].get("url"), bool(a[name]), bool(b[name]))
        for row, a, b in zip(rows, mine, other, strict=True)
        for name in names
        if "error" not in b[name] and bool(a[name]) != bool(b[name])
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert check(mine, other, rows) == 0
    assert any(row["oisd_small_abp_v1"] for row in mine)


@pytest.mark.parametrize("content", ["", "# nothing\n\n", "@@||good.example^\n"])
def test_a_list_without_an_entry_is_refused(tmp_path: Path, content: str) -> None:
    """A tagger that could never match would say that every document is clean."""
    (tmp_path / "list.txt").write_text(content)
    (tmp_path / "list.json").write_bytes(b'[{"name": "no address"}]\n' if content else b"")
    found = [entry for entry in taggers.available() if entry.make.__module__.endswith("taggers.url")]
    assert len(found) == 29
    for entry in found:
        wikidata = "Wikidata" in entry.needs
        if content.startswith("@@") and not ("abp" in entry.name or "adblock" in entry.name or wikidata):
            continue  # a line like any other to those that read hosts
        path = tmp_path / ("list.json" if wikidata else "list.txt")
        with pytest.raises(LoomError, match="could never match"):
            taggers.get(entry.name, {entry.name: str(path)})
    (tmp_path / "list.json").write_bytes(b"[{")
    with pytest.raises(LoomError, match=r"row 1, is not JSON"):
        taggers.get("allowlist_wikidata_v1", {"allowlist_wikidata_v1": str(tmp_path / "list.json")})
