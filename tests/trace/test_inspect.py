"""`inspect` tells what the model was really fed, and `steps` is its inverse."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.corpus.documents import find_files, read
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.road.training import run_training
from loom.serve.explorer import Explorer
from loom.tokens.tokenizer import Tokenizer
from loom.trace.inspect import inspect_step
from loom.trace.page import write_step_page
from loom.trace.reading import open_reading
from loom.train.checkpoint import step_folder
from loom.train.config import DataConfig
from tests.small import make_tokenizer
from tests.trace.runs import LENGTH, lm, make_tokens, recipe, watched
from tests.train.tokens import learnable, write_tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def texts(corpus: Path) -> dict[str, str]:
    found = {}
    for path in find_files([corpus]):
        for batch in read(path):
            found |= dict(zip(batch.ids, batch.texts(), strict=True))
    return found


def test_the_ids_of_a_step_are_those_the_model_was_fed(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_tokens(tmp_path, tokenizer=tokenizer)
    with watched() as fed:
        run_training(lm(tokens, steps=4, stage=True), tmp_path / "run")
    told = [
        row["tokens"] for step in range(1, 5) for row in inspect_step(tmp_path / "run", step)["instances"]
    ]
    assert len(told) == 8 + 8 + 16 + 16
    assert told == fed


def test_each_document_is_where_it_is_said_to_be(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_tokens(tmp_path, tokenizer=tokenizer)
    run_training(lm(tokens), tmp_path / "run")
    known, encoder = texts(tmp_path / "corpus"), Tokenizer.load(tokenizer)
    for instance in inspect_step(tmp_path / "run", 2, text=True)["instances"]:
        at = 0
        for document in instance["documents"]:
            assert document["start"] == at, "documents lie back to back"
            at = document["end"]
            ids = [*encoder.encode(known[document["id"]].strip()).tolist(), encoder.eos_id]
            first = document["document_start"]
            assert instance["tokens"][document["start"] : at] == ids[first : first + at - document["start"]]
            assert document["document_tokens"] == len(ids)
            path, _, row = document["origin"].rpartition(":")
            line = (tmp_path / "corpus" / "documents" / path).read_text().splitlines()[int(row) - 1]
            assert json.loads(line)["id"] == document["id"]
        assert at == LENGTH


def test_a_mixture_over_more_than_an_epoch_and_its_inverse(tmp_path: Path, tokenizer: Path) -> None:
    first = make_tokens(tmp_path / "b", tokenizer=tokenizer)
    second = make_tokens(tmp_path / "a", shard_tokens=7_000, tokenizer=tokenizer)
    config = lm(first, second, steps=60, weights=(0.1, 0.9), stage=True, batch=40)
    with watched() as fed:
        run_training(config, tmp_path / "run")
    reading = open_reading(tmp_path / "run")
    told, read_at = [], {}
    for step in range(1, 61):
        for instance in reading.instances(step):
            told.append(reading.tokens(instance).tolist())
            (piece,) = instance.pieces
            read_at.setdefault((piece.source, piece.shard, piece.start), []).append(step)
    assert told == fed
    assert max(map(len, read_at.values())) > 1, "some windows were read in two epochs"
    for (source, shard, start), steps in read_at.items():
        assert reading.steps(source, shard, start + 5, start + 6) == sorted(set(steps))
    assert reading.folders[0].path.resolve() == first.resolve()
    # A checkpoint from before the order was written down: it is found by trying.
    state = step_folder(tmp_path / "run", 60) / "state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "sources"}))
    assert [f.path for f in open_reading(tmp_path / "run").folders] == [f.path for f in reading.folders]


def test_ranks_share_a_step_without_overlap(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_tokens(tmp_path, tokenizer=tokenizer)
    run_training(lm(tokens), tmp_path / "run")
    whole = [row["place"] for row in inspect_step(tmp_path / "run", 1)["instances"]]
    parts = [
        [row["place"] for row in inspect_step(tmp_path / "run", 1, rank=rank, ranks=2)["instances"]]
        for rank in (0, 1)
    ]
    assert parts == [whole[0::2], whole[1::2]]


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_tuning_too(tmp_path: Path, tokenizer: Path, objective: str) -> None:
    rows = []
    for number in range(60):
        asked = {"role": "user", "content": f"What is {number} and {number}?"}
        said = [
            {"role": "assistant", "content": f"It is {number * k}, I say." * (1 + number % 3)} for k in (2, 3)
        ]
        if objective == "sft":
            rows.append({"id": f"c{number}", "messages": [asked, said[0]]})
        else:
            rows.append({"id": f"c{number}", "chosen": [asked, said[0]], "rejected": [asked, said[1]]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = make_tokens(tmp_path, tokenizer=tokenizer)
    run_training(lm(tokens), tmp_path / "base")
    shares = (Share(str(tmp_path / "rows.jsonl")),)
    prepare(Prepare(objective, shares, tokenizer, max_length=LENGTH), tmp_path / "data", LocalEngine(1))  # type: ignore[arg-type]
    key = "sft" if objective == "sft" else "pairs"
    data = DataConfig(**{key: str(tmp_path / "data")}, sequence_length=LENGTH)
    config = recipe(
        data, objective=objective, init=str(tmp_path / "base"), batch_pairs=4, batch_tokens=2 * LENGTH
    )
    config = type(config)(**{**vars(config), "model": type(config.model)()})
    with watched() as fed:
        run_training(config, tmp_path / "run")
    told = [row for step in (1, 2) for row in inspect_step(tmp_path / "run", step)["instances"]]
    assert all(row["documents"] for row in told)
    if objective == "sft":
        assert [row["tokens"] for row in told] == fed
    else:
        assert len(told) == 8
        sides = [[document["side"] for document in row["documents"]] for row in told]
        assert sides == [["chosen", "rejected"]] * 8
        joined = [" ".join(map(str, row)) for row in fed]
        for row in told:
            chosen, rejected = (row["tokens"][d["start"] : d["end"]] for d in row["documents"])
            shared = next(at for at in range(len(chosen)) if chosen[at] != rejected[at])
            for part in (chosen, rejected[shared:]):  # a packed pair holds its prompt once
                assert any(" ".join(map(str, part)) in line for line in joined)
        sides_are_said(tmp_path / "run", tmp_path / "step.html")


def sides_are_said(run: Path, file: Path) -> None:
    """The page of a step and the explorer's say of each answer whether it was the chosen one."""
    found = inspect_step(run, 1, text=True)
    write_step_page(file, found)
    explorer = Explorer(run).page("/step?n=1")[1]
    said = {
        "page": re.findall(r"the (chosen|rejected) answer of pair (\d+)", file.read_text(encoding="utf-8"))
    }
    said["explorer"] = re.findall(r'<b class="side">(chosen|rejected)</b> answer of pair (\d+)', explorer)
    documents = [document for instance in found["instances"] for document in instance["documents"]]
    expected = [(document["side"], str(document["pair"])) for document in documents]
    assert len(expected) == 8
    assert said == {"page": expected, "explorer": expected}


def test_what_cannot_be_said_is_said_so(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_tokens(tmp_path, tokenizer=tokenizer)
    with pytest.raises(LoomError, match="no finished checkpoint"):
        inspect_step(tmp_path, 1)
    run_training(lm(tokens), tmp_path / "run")
    with pytest.raises(LoomError, match="steps 1 to 2"):
        inspect_step(tmp_path / "run", 3)
    with pytest.raises(LoomError, match="no rank 2"):
        inspect_step(tmp_path / "run", 1, rank=2, ranks=2)
    tokens.rename(tmp_path / "away")
    with pytest.raises(LoomError, match="no longer there"):
        inspect_step(tmp_path / "run", 1)
    make_tokens(tmp_path, shard_tokens=9_000, tokenizer=tokenizer)
    with pytest.raises(LoomError, match="changed since"):
        inspect_step(tmp_path / "run", 1)


def test_a_run_is_looked_into_without_what_it_began_from(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_tokens(tmp_path, tokenizer=tokenizer)
    run_training(lm(tokens), tmp_path / "base")
    begun = lm(tokens, steps=3)
    begun = replace(begun, model=type(begun.model)(), train=replace(begun.train, init=str(tmp_path / "base")))
    run_training(begun, tmp_path / "run")
    before = inspect_step(tmp_path / "run", 3)
    shutil.rmtree(tmp_path / "base")
    assert inspect_step(tmp_path / "run", 3) == before
    tokens.rename(tmp_path / "away")
    with pytest.raises(LoomError, match=r"was made from .*base.*, .*/tokens, no longer there"):
        inspect_step(tmp_path / "run", 3)


def test_a_mixture_of_many_folders(tmp_path: Path) -> None:
    folders = [write_tokens(tmp_path / f"t{n}", [learnable(700, 64, n)]) for n in range(8)]
    folders = [folders[n] for n in (3, 1, 7, 0, 2, 6, 4, 5)]
    with watched() as fed:
        run_training(
            lm(*folders, steps=4, weights=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)), tmp_path / "run"
        )
    reading = open_reading(tmp_path / "run")
    told = [reading.tokens(row).tolist() for step in range(1, 5) for row in reading.instances(step)]
    assert told == fed and len(told) == 32
    assert [folder.path.name for folder in reading.folders] == [folder.name for folder in folders]


def test_verify_reads_the_shards(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_tokens(tmp_path, tokenizer=tokenizer)
    run_training(lm(tokens, steps=2), tmp_path / "run")
    (folder,) = open_reading(tmp_path / "run").folders
    assert inspect_step(tmp_path / "run", 1, verify=True) == inspect_step(tmp_path / "run", 1)
    with open(folder.path / folder.shards[0].path, "r+b") as stream:
        first = stream.read(1)[0]
        stream.seek(0)
        stream.write(bytes([first ^ 1]))
    inspect_step(tmp_path / "run", 1)  # sizes are as before
    with pytest.raises(LoomError, match="changed since it was written"):
        inspect_step(tmp_path / "run", 1, verify=True)
