"""Data of OLMo's and Dolma's is taken over as it is, and refused where it is not what it is said to be."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import numpy as np
import orjson
import pytest
from tests.small import write_documents
from tests.tokens.test_tokenize import stored

from loom.cli import main
from loom.errors import LoomError
from loom.tokens.adopt import Adopt, adopt
from loom.tokens.shards import open_tokens
from loom.tokens.tokenize import Tokenize, tokenize
from loom.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def made(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    documents = write_documents(folder / "in")
    tokenize(Tokenize((str(documents),), tokenizer_path, shard_tokens=9000, csv=True), folder / "t")
    return folder / "t"


def copy_pairs(made: Path, to: Path, csv: bool = True) -> Path:
    to.mkdir()
    for path in [*made.glob("*.npy"), *(made.glob("*.csv.gz") if csv else ())]:
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_dolmas_pairs_come_back_as_they_went(made: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    pairs = copy_pairs(made, tmp_path / "pairs")
    taken = adopt(Adopt(pairs, tokenizer_path), tmp_path / "t")
    before, after = stored(made), stored(tmp_path / "t")
    assert [(item.ids, item.id, item.origin) for item in before] == [
        (item.ids, item.id, item.origin) for item in after
    ]
    assert taken.counters["documents"] == len(before)
    assert adopt(Adopt(pairs, tokenizer_path), tmp_path / "t").digest == taken.digest


def test_without_a_list_documents_are_found_by_their_end(
    made: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    adopt(Adopt(copy_pairs(made, tmp_path / "bare", csv=False), tokenizer_path), tmp_path / "t")
    assert [item.ids for item in stored(tmp_path / "t")] == [item.ids for item in stored(made)]
    assert stored(tmp_path / "t")[1].origin == "shard-00000.npy:2"


def test_a_spelt_end_of_text_ends_no_document(made: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    """Dolma encodes a text that spells the token out as the id; its list says where documents end."""
    pairs = copy_pairs(made, tmp_path / "pairs")
    first = stored(made)[0]
    path = next(iter(sorted(pairs.glob("*.npy"))))
    ids = np.fromfile(path, "<u2")
    ids[1] = ids[3] = first.ids[-1]
    ids.tofile(path)
    taken = adopt(Adopt(pairs, tokenizer_path), tmp_path / "t")
    assert [item.id for item in stored(tmp_path / "t")] == [item.id for item in stored(made)]
    assert stored(tmp_path / "t")[0].ids == ids[: len(first.ids)].tolist()
    assert taken.counters["eos_inside"] == 2
    ids[len(first.ids) - 1] = 5
    ids.tofile(path)
    with pytest.raises(LoomError, match="some of the documents' ends not among them"):
        adopt(Adopt(pairs, tokenizer_path), tmp_path / "other")


def test_dolmas_own_files_are_taken_over(shared_data: Path, oracle: object, tmp_path: Path) -> None:
    dolma = oracle("dolma").with_name("dolma")  # type: ignore[operator]
    texts = ["One text.", "Two <|endoftext|> in one.", "", "A last one."]
    rows = [{"id": str(n), "text": text, "source": "s"} for n, text in enumerate(texts)]
    (tmp_path / "documents").mkdir()
    with gzip.open(tmp_path / "documents" / "a.jsonl.gz", "wb") as stream:
        stream.write(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    tokenizer = shared_data / "tokenizers" / "olmo-v1-wrong-eos.json"
    command = [
        dolma,
        "tokens",
        "--documents",
        tmp_path / "documents" / "*.gz",
        "--destination",
        tmp_path / "theirs",
    ]
    command += ["--tokenizer.name_or_path", tokenizer, "--tokenizer.eos_token_id", "0"]
    command += ["--tokenizer.pad_token_id", "1", "--dtype", "uint16", "--processes", "1"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    taken = adopt(Adopt(tmp_path / "theirs", tokenizer), tmp_path / "t")
    found = {item.id: item.ids for item in stored(tmp_path / "t")}
    assert taken.counters["eos_inside"] == 1
    model = Tokenizer.load(tokenizer)
    assert model.decode(found["1"][:-1]) == texts[1]
    assert {len(ids) - ids.count(0) for name, ids in found.items() if name in "03"} == {3, 4}


def test_the_list_is_dolmas(made: Path) -> None:
    """start, end, id, file, line from 1; no header; what Dolma's readers take apart by commas."""
    lines = gzip.decompress((made / "shard-00000.csv.gz").read_bytes()).decode().splitlines()
    first = stored(made)[0]
    name, _, row = first.origin.rpartition(":")
    assert lines[0].split(",") == ["0", str(len(first.ids)), first.id, name, row]


def test_a_tail_without_end_of_text_is_kept_and_counted(
    tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    ids = np.array([5, 6, tokenizer.eos_id, 7, 8], dtype="<u2")
    ids.tofile(tmp_path / "in" / "part-0.npy")
    taken = adopt(Adopt(tmp_path / "in", tokenizer_path), tmp_path / "t")
    assert (taken.counters["documents"], taken.counters["without_eos"]) == (2, 1)


def test_data_of_another_tokenizer_is_refused(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.array([500, 600, 0, 700, 0], dtype="<u2").tofile(tmp_path / "in" / "part-0.npy")
    with pytest.raises(LoomError, match=r"never holds id 50279.*IP_ADDRESS"):
        adopt(Adopt(tmp_path / "in", shared_data / "tokenizers" / "olmo-v1.json"), tmp_path / "t")
    adopt(Adopt(tmp_path / "in", shared_data / "tokenizers" / "olmo-v1-wrong-eos.json"), tmp_path / "t")
    assert open_tokens(tmp_path / "t").eos.id == 0


def test_what_cannot_be_taken_over_is_named(
    made: Path, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(LoomError, match=message):
            adopt(Adopt(tmp_path / name, tokenizer_path), tmp_path / f"{name}-out")

    for name in ("empty", "header", "odd", "large"):
        (tmp_path / name).mkdir()
    refused("empty", "no .npy files")
    np.save(tmp_path / "header" / "a.npy", np.array([5, tokenizer.eos_id], dtype="<u2"))
    refused("header", "numpy.save")
    (tmp_path / "odd" / "a.npy").write_bytes(b"abc")
    refused("odd", "3 bytes")
    np.array([60000, tokenizer.eos_id], dtype="<u2").tofile(tmp_path / "large" / "a.npy")
    refused("large", "60,000")
    pairs = copy_pairs(made, tmp_path / "mixed")
    (pairs / "shard-00000.csv.gz").write_bytes((pairs / "shard-00001.csv.gz").read_bytes())
    refused("mixed", r"shard-00000\.csv\.gz lists")


@pytest.mark.parametrize(
    "more",
    [["--held-out", "0.1"], ["--shard-tokens", "9"], ["--csv"], ["--workers", "2"], ["--engine", "ray"]],
)
def test_flags_that_would_be_ignored_are_refused(
    made: Path, tokenizer_path: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = copy_pairs(made, tmp_path / "pairs")
    out = tmp_path / "t"
    with pytest.raises(SystemExit) as ended:
        main(
            ["tokenize", "--adopt", str(pairs), "--tokenizer", str(tokenizer_path), "--out", str(out), *more]
        )
    assert ended.value.code == 1
    assert f"{more[0]} says nothing with --adopt" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
