"""Every document is in the shards once, whole and findable, whatever wrote them, killed or not."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.small import library_texts, write_documents, write_lines

from loom import artifact
from loom.engine import RECEIPTS, LocalEngine
from loom.errors import LoomError
from loom.tokens.bpe import TrainTokenizer, train
from loom.tokens.documents import File, read
from loom.tokens.parts import is_held_out, order_hash
from loom.tokens.shards import open_tokens
from loom.tokens.tokenize import Tokenize, tokenize
from loom.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Document:
    ids: list[int]
    id: str
    source: str
    origin: str


def stored(folder: Path) -> list[Document]:
    """The documents of a token folder, as its table says where they are."""
    found: list[Document] = []
    opened = open_tokens(folder)
    for shard, ids in zip(opened.shards, opened.arrays, strict=True):
        rows = pq.read_table(folder / shard.path.replace(".npy", ".docs.parquet")).to_pylist()
        assert [row["start"] for row in rows] == [0, *(row["end"] for row in rows)][: len(rows)]
        assert not rows or rows[-1]["end"] == len(ids)
        for row in rows:
            piece = ids[row["start"] : row["end"]].tolist()
            found.append(Document(piece, row["id"], row["source"], row["origin"]))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact but what may differ from run to run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"))


def test_every_document_is_there_once_whole_and_findable(
    documents: Path, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    made = tokenize(
        Tokenize((str(documents),), tokenizer_path, held_out=0.2, shard_tokens=9000), tmp_path / "t"
    )
    assert len(made.facts["tokens"]["shards"]) > 2
    kept, held = stored(tmp_path / "t"), stored(tmp_path / "t" / "heldout")
    texts = {f"doc-{number}": text.strip() for number, text in enumerate(library_texts())}
    assert sorted(item.id for item in kept + held) == sorted(texts)
    for item in kept + held:
        assert item.ids == [*tokenizer.encode(texts[item.id]).tolist(), tokenizer.eos_id]
        name, _, row = item.origin.rpartition(":")
        line = (documents / "documents" / name).read_text().split("\n")[int(row) - 1]
        assert json.loads(line)["id"] == item.id
        assert json.loads(line)["source"] == item.source
    assert {item.id for item in held} == {name for name in texts if is_held_out(name, 0.2)}
    assert 0 < len(held) < len(kept)
    for name, counts in made.facts["tokens"]["sources"].items():
        mine = [item for item in kept if item.source == name]
        assert counts == {
            "documents": len(mine),
            "tokens": sum(len(item.ids) for item in mine),
            "bytes": sum(len(texts[item.id].encode()) for item in mine),
        }
    assert made.counters["tokens"] == sum(len(item.ids) for item in kept)


def test_documents_stand_in_the_order_of_a_keyed_hash_not_of_their_files(
    documents: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    tokenize(Tokenize((str(documents),), tokenizer_path, shard_tokens=9000), tmp_path / "t")
    names = [item.id for item in stored(tmp_path / "t")]
    assert names == sorted(names, key=order_hash)


def test_bytes_do_not_depend_on_workers_nor_order_on_files(
    documents: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    recipe = Tokenize((str(documents),), tokenizer_path, held_out=0.1, shard_tokens=9000, csv=True)
    for workers in (1, 2, 5):
        tokenize(recipe, tmp_path / f"w{workers}", LocalEngine(workers))
    assert contents(tmp_path / "w1") == contents(tmp_path / "w2") == contents(tmp_path / "w5")
    write_documents(tmp_path / "other", files=1)
    tokenize(Tokenize((str(tmp_path / "other"),), tokenizer_path, 0.1, 9000), tmp_path / "one")
    for shard in open_tokens(tmp_path / "w1").shards:
        assert (tmp_path / "one" / shard.path).read_bytes() == (tmp_path / "w1" / shard.path).read_bytes()


def test_runs_written_as_memory_fills_give_the_same_shards(
    documents: Path, tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Tokenize((str(documents),), tokenizer_path, held_out=0.1, shard_tokens=9000)
    tokenize(recipe, tmp_path / "whole")
    monkeypatch.setattr("loom.tokens.parts.RUN_TOKENS", 500)
    monkeypatch.setattr("loom.tokens.documents.BLOCK", 2000)
    tokenize(recipe, tmp_path / "runs")
    assert contents(tmp_path / "runs") == contents(tmp_path / "whole")


def test_gz_zst_and_parquet_give_what_plain_lines_give(tokenizer_path: Path, tmp_path: Path) -> None:
    rows = [{"id": f"doc-{n}", "text": text, "source": "s"} for n, text in enumerate(library_texts())]
    plain = write_lines(tmp_path / "plain" / "d.jsonl", rows).read_bytes()
    for kind in ("gz", "zst", "parquet", "blank"):
        (tmp_path / kind).mkdir()
    (tmp_path / "gz" / "d.jsonl.gz").write_bytes(gzip.compress(plain[:5000]) + gzip.compress(plain[5000:]))
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "zst" / "d.jsonl.zst").write_bytes(frame(plain[:7000]) + frame(plain[7000:]))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "d.parquet", row_group_size=7)
    (tmp_path / "blank" / "d.jsonl").write_bytes(plain.replace(b"\n", b"\r\n\n"))
    shards = []
    for kind in ("plain", "gz", "zst", "parquet", "blank"):
        tokenize(Tokenize((str(tmp_path / kind),), tokenizer_path), tmp_path / f"t-{kind}")
        shards.append((tmp_path / f"t-{kind}" / "shard-00000.npy").read_bytes())
    assert all(shard == shards[0] for shard in shards)
    assert [item.origin for item in stored(tmp_path / "t-zst")] == [
        item.origin.replace(".parquet", ".jsonl.zst") for item in stored(tmp_path / "t-parquet")
    ]


def test_ids_are_what_olmos_loader_reads(
    documents: Path, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    """Raw little-endian ids without a header, and no other .npy in the folder."""
    tokenize(Tokenize((str(documents),), tokenizer_path, held_out=0.2), tmp_path / "t")
    names = sorted(path.name for path in (tmp_path / "t").glob("*.npy"))
    assert names == ["shard-00000.npy"]
    ids = np.frombuffer((tmp_path / "t" / names[0]).read_bytes(), dtype="<u2")
    assert ids[-1] == tokenizer.eos_id
    assert (ids == tokenizer.eos_id).sum() == open_tokens(tmp_path / "t").documents


def test_empty_documents_are_skipped_and_counted(tokenizer_path: Path, tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": text} for n, text in enumerate(["  a ", "", " \n\t\u2003", "b"])]
    write_lines(tmp_path / "d.jsonl", rows)
    made = tokenize(Tokenize((str(tmp_path / "d.jsonl"),), tokenizer_path), tmp_path / "t")
    assert (made.counters["documents_in"], made.counters["empty"], made.counters["documents"]) == (4, 2, 2)
    assert sorted(item.origin for item in stored(tmp_path / "t")) == ["d.jsonl:1", "d.jsonl:4"]
    write_lines(tmp_path / "e.jsonl", rows[1:3])
    with pytest.raises(LoomError, match="nothing to tokenize"):
        tokenize(Tokenize((str(tmp_path / "e.jsonl"),), tokenizer_path), tmp_path / "e")


def test_a_document_may_spell_end_of_text(tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "d.jsonl", [{"id": "1", "text": "one<|endoftext|>two<|padding|>"}])
    tokenize(Tokenize((str(tmp_path / "d.jsonl"),), tokenizer_path), tmp_path / "t")
    (document,) = stored(tmp_path / "t")
    assert document.ids.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(document.ids[:-1]) == "one<|endoftext|>two<|padding|>"


def test_two_documents_with_one_id_are_kept_and_counted(tokenizer_path: Path, tmp_path: Path) -> None:
    write_lines(
        tmp_path / "d.jsonl", [{"id": "1", "text": "a"}, {"id": "1", "text": "b"}, {"id": "2", "text": "c"}]
    )
    made = tokenize(Tokenize((str(tmp_path / "d.jsonl"),), tokenizer_path), tmp_path / "t")
    assert (made.counters["documents"], made.counters["duplicate_ids"]) == (3, 1)


BROKEN = {
    "json": (b'{"id": "2", "text": "b"', "JSON"),
    "list": (b"[1]", "JSON object"),
    "no id": (b'{"text": "b"}', "its id is None"),
    "no text": (b'{"id": "2", "text": null}', "its text is NoneType"),
    "half a character": (b'{"id": "2", "text": "\\ud83d"}', "JSON"),
    "no UTF-8": (b'{"id": "2", "text": "\xff"}', "JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_line_that_is_no_document_is_set_aside(
    kind: str, tokenizer_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, reason = BROKEN[kind]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"id": "1", "text": "a"}\n' + line + b'\n{"id": "3", "text": "c"}\n')
    made = tokenize(Tokenize((str(path),), tokenizer_path), tmp_path / "t")
    assert (made.counters["documents"], made.counters["rejected"]) == (2, 1)
    (row,) = map(json.loads, (tmp_path / "t" / "rejected.jsonl").read_text().splitlines())
    assert (row["file"], row["line"]) == ("d.jsonl", 2)
    assert reason in row["reason"]
    assert "d.jsonl:2" in capsys.readouterr().err
    assert "rejected.jsonl" in {item.path for item in made.outputs}
    assert sorted(item.origin for item in stored(tmp_path / "t")) == ["d.jsonl:1", "d.jsonl:3"]
    path.write_bytes(b'{"id": "1", "text": "a"}\n')  # mended: nothing is left of the former run
    assert tokenize(Tokenize((str(path),), tokenizer_path), tmp_path / "t").counters["rejected"] == 0
    assert not (tmp_path / "t" / "rejected.jsonl").exists()
    path.write_bytes(line)
    with pytest.raises(LoomError, match="every row was set aside"):
        tokenize(Tokenize((str(path),), tokenizer_path), tmp_path / "none")


def test_a_row_of_parquet_that_is_no_document_is_set_aside(tokenizer_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"id": ["1", None, "3"], "text": ["a", "b", None]}), path)
    made = tokenize(Tokenize((str(path),), tokenizer_path), tmp_path / "t")
    assert (made.counters["documents"], made.counters["rejected"]) == (1, 2)
    found = map(json.loads, (tmp_path / "t" / "rejected.jsonl").read_text().splitlines())
    assert [(row["line"], row["reason"][:8]) for row in found] == [(2, "its id i"), (3, "its text")]


@pytest.mark.parametrize("ending", ["gz", "zst", "parquet"])
def test_a_file_cut_short_is_named(ending: str, tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": text} for n, text in enumerate(library_texts())]
    plain = write_lines(tmp_path / "d.jsonl", rows).read_bytes()
    path = tmp_path / ("d.parquet" if ending == "parquet" else f"d.jsonl.{ending}")
    match ending:
        case "gz":
            whole = gzip.compress(plain)
        case "zst":
            whole = zstandard.ZstdCompressor().compress(plain)
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
            whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoomError, match=path.name):
        list(read(File(path, path.name, ""), []))


def test_finished_work_is_kept_and_damage_is_named(
    documents: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    recipe = Tokenize((str(documents),), tokenizer_path)
    out = tmp_path / "t"
    tokenize(recipe, out)
    stamp = (out / "run.json").read_bytes()
    tokenize(recipe, out)
    assert (out / "run.json").read_bytes() == stamp
    shard = out / "shard-00000.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(LoomError, match=r"shard-00000\.npy.*cut short"):
        tokenize(recipe, out)
    shard.write_bytes(whole)
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace('"uint16"', '"uint32"'))
    with pytest.raises(LoomError, match="changed after it was written"):
        tokenize(recipe, out)


def test_other_settings_replace_the_folder_entirely(
    documents: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t"
    tokenize(Tokenize((str(documents),), tokenizer_path, held_out=0.3, shard_tokens=5000, csv=True), out)
    tokenize(Tokenize((str(documents),), tokenizer_path), out)
    tokenize(Tokenize((str(documents),), tokenizer_path), tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_tokenizer_made_anew_at_the_same_place_is_the_one_used(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "in")
    for size in (500, 700):
        train(TrainTokenizer((str(documents),), size), tmp_path / "tok")
        tokenize(Tokenize((str(documents),), tmp_path / "tok"), tmp_path / "t")
        loaded = Tokenizer.load(tmp_path / "tok")
        texts = {f"doc-{number}": text.strip() for number, text in enumerate(library_texts())}
        for item in stored(tmp_path / "t")[:20]:
            assert item.ids[:-1] == loaded.encode(texts[item.id]).tolist()


def test_a_folder_that_holds_something_else_is_left_alone(documents: Path, tokenizer_path: Path) -> None:
    with pytest.raises(LoomError, match="already holds 'tokenizer'"):
        tokenize(Tokenize((str(documents),), tokenizer_path), tokenizer_path.parent)


def test_lineage_leads_to_the_artifacts_used(tokenizer_path: Path, tmp_path: Path) -> None:
    curated = write_documents(tmp_path / "curated")
    names = [path.relative_to(curated).as_posix() for path in sorted(curated.rglob("*.jsonl"))]
    source = artifact.commit(
        curated, "documents", recipe={}, inputs=[], outputs=artifact.describe(curated, names), counters={}
    )
    made = tokenize(Tokenize((str(curated),), tokenizer_path, held_out=0.2), tmp_path / "t")
    assert {(item.path, item.digest) for item in made.inputs} >= {("../curated", source.digest)}
    kinds = {node.kind for node in artifact.lineage(tmp_path / "t" / "heldout").parents}
    assert kinds == {"documents", "tokenizer"}
    (curated / names[0]).write_text("")
    with pytest.raises(LoomError, match="cut short or changed"):
        tokenize(Tokenize((str(curated),), tokenizer_path), tmp_path / "again")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(tokenizer_path: Path, tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}-{copy}", "text": f"{copy} {text}"}
        for copy in range(40)
        for n, text in enumerate(library_texts())
    ]
    for number in range(12):
        write_lines(tmp_path / "in" / f"{number}.jsonl", rows[number::12])
    words = ["tokenize", "--documents", str(tmp_path / "in"), "--tokenizer", str(tokenizer_path)]
    words += ["--workers", "2", "--held-out", "0.1", "--shard-tokens", "200000"]

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "loom", *words, "--out", str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    assert start(tmp_path / "calm").wait() == 0
    random_ = random.Random(3)
    receipts = tmp_path / "killed" / RECEIPTS
    seen = killed = 0
    while True:
        process = start(tmp_path / "killed")
        enough = seen + random_.randint(1, 4)
        while process.poll() is None and len(list(receipts.glob("*.json"))) < enough:
            time.sleep(0.002)
        time.sleep(random_.uniform(0, 0.02))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        seen = len(list(receipts.glob("*.json")))
    assert process.returncode == 0
    assert killed > 2
    assert contents(tmp_path / "killed") == contents(tmp_path / "calm")
    shutil.rmtree(tmp_path)
