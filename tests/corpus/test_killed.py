"""kill -9 in every stage, at points chosen by the files written: the same command, the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from loom.corpus import documents
from loom.engine import LocalEngine
from tests.corpus.test_curate import prose, tree

FILES = 10
LONG = " ".join(f"word{i}" for i in range(20))


def stage_tag(root: Path, engine: LocalEngine) -> None:
    from loom.corpus.tag import Tag, tag

    tag(Tag((str(root / "documents"),), ("gopher_v2", "c4_v2")), root / "out", engine)


def stage_dedupe(root: Path, engine: LocalEngine) -> None:
    from loom.corpus.dolma import config
    from loom.corpus.dolma.deduping import dedupe

    rules = config.Dedupe("out", paragraphs=config.Paragraphs("bff"), skip_empty=True)
    bloom = config.Bloom(str(root / "out" / "filter"), False, estimated_doc_count=10_000)
    dedupe(config.Deduper((str(root / "documents"),), rules, bloom), "", engine)
    same = config.Dedupe("exact", documents=config.Documents("same", "$.text"))
    dedupe(config.Deduper((str(root / "documents"),), same), "", engine)  # exactly, with survivors


def stage_minhash(root: Path, engine: LocalEngine) -> None:
    from loom.corpus.dedupe.minhash import MinHash, minhash

    minhash(MinHash((str(root / "documents"),)), engine, root / "out")


def stage_decontaminate(root: Path, engine: LocalEngine) -> None:
    from loom.corpus.contamination import Decontaminate, run

    held = (str(root / "held.jsonl"),)
    run(Decontaminate((str(root / "documents"),), held, most_removed=1.0), root / "out", engine)


def stage_dolma_mix(root: Path, engine: LocalEngine) -> None:
    from loom.corpus.dolma import config
    from loom.corpus.dolma.mixing import mix

    output = config.Output(str(root / "out"), max_size_in_bytes=1)  # an output for every input
    stream = config.Stream("s", (f"{root}/documents/*/*.gz",), output)
    mix(config.Mixer((stream,)), "", engine)


def stage_mixture(root: Path, engine: LocalEngine) -> None:
    """Counting, drawing, the shuffle and the index of ids."""
    from loom.corpus.sample import Sample, SampleSource, sample

    source = SampleSource((str(root / "documents"),), share=0.8)
    sample(Sample({"s": source}, str(root / "tokenizer.json"), file_mb=1), root / "out", engine)


def stage_tokenize(root: Path, engine: LocalEngine) -> None:
    from loom.tokens.tokenize import Tokenize, tokenize

    recipe = Tokenize((str(root / "documents"),), root / "tokenizer.json", 0.1, shard_tokens=200_000)
    tokenize(recipe, root / "out", engine)


def stage_collect(root: Path, engine: LocalEngine) -> None:
    from loom.corpus.sources.dumps import Dump, collect

    collect(Dump("c4", tuple(map(str, sorted((root / "c4").iterdir())))), root / "out", engine)


def at_warc(root: Path) -> None:
    """Two crawls into one root, the second beside what the first left."""
    from loom.corpus.sources.warc import Warc, collect

    for part in ("a", "b"):
        collect(Warc((f"{root}/warc/{part}*.warc.gz",), part), root / "out", LocalEngine(1))


def at_dumps(root: Path) -> None:
    """A kind, another, and the first once more with a file that changed."""
    from loom.corpus.sources.dumps import Dump, collect

    few = sorted((root / "c4").iterdir())[:3]
    os.utime(few[1], ns=(2, 2))
    collect(Dump("c4", tuple(map(str, few))), root / "out", LocalEngine(1))
    collect(Dump("pes2o", (str(root / "papers.jsonl"),)), root / "out", LocalEngine(1))
    os.utime(few[1], ns=(1, 1))  # its identity is another
    collect(Dump("c4", tuple(map(str, few))), root / "out", LocalEngine(1))


def at_adopt(root: Path) -> None:
    from loom.tokens.adopt import Adopt, adopt

    adopt(Adopt(root / "npy", root / "tokenizer.json"), root / "out")


EVERY_WRITE = {"warc": at_warc, "dumps": at_dumps, "adopt": at_adopt}
KILL_AT = """
import os, signal, sys
from pathlib import Path
from tests.corpus.test_killed import EVERY_WRITE
done, wanted, replace = 0, int(sys.argv[3]), os.replace
def counting(*names):
    global done
    replace(*names)
    done += 1
    if done == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = counting
EVERY_WRITE[sys.argv[1]](Path(sys.argv[2]))
print(done)
"""
STAGES: dict[str, Callable[[Path, LocalEngine], None]] = {
    name.removeprefix("stage_"): value for name, value in list(globals().items()) if name.startswith("stage_")
}

RUN = """
import sys
from pathlib import Path
from loom.engine import LocalEngine
from tests.corpus.test_killed import STAGES
if __name__ == "__main__":
    STAGES[sys.argv[1]](Path(sys.argv[2]), LocalEngine(2))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.corpus.test_sample import bytes_tokenizer

    root = tmp_path_factory.mktemp("killed")
    for part in range(FILES):
        rows = [
            {
                "id": f"d{part}-{i}",
                "text": "\n".join(prose((part * 40 + i) % 300 * 7 + j % 3, 120) for j in range(8))
                + f"\n{LONG}",
                "source": "s",
            }
            for i in range(40)
        ]
        documents.write(root / "documents" / "s" / f"part-{part:02d}.jsonl.gz", rows)
        lines = [{"text": row["text"], "url": f"https://x/{row['id']}", "timestamp": "2019"} for row in rows]
        (root / "c4").mkdir(exist_ok=True)
        data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        (root / "c4" / f"c4-{part:02d}.json").write_bytes(data)
    from tests.corpus.test_warc import pack, page, record

    (root / "warc").mkdir()
    for part in ("a0", "a1", "b0"):
        members = [record(f"https://example.org/{part}{i}", page(f"Page {i}")) for i in range(5)]
        (root / "warc" / f"{part}.warc.gz").write_bytes(pack([*members, b"WARC/1.0\r\nbroken"]))
    papers = [orjson.dumps({"id": str(i), "text": prose(i)}) for i in range(9)]
    (root / "papers.jsonl").write_bytes(b"\n".join([*papers, b"{"]))
    (root / "npy").mkdir()
    for part in range(3):
        ids = np.random.default_rng(part).integers(0, 256, 5000)
        ids[499::500] = 256  # the end of a text, as `bytes_tokenizer` has it
        ids.astype("<u2").tofile(root / "npy" / f"part-{part}.npy")
    (root / "held.jsonl").write_bytes(orjson.dumps({"text": LONG}) + b"\n")
    bytes_tokenizer(root / "tokenizer.json")
    return root


def outputs(stage: str, root: Path) -> Path:
    return root / ("attributes" if stage == "dedupe" else "out")


def made(stage: str, root: Path) -> dict[str, bytes]:
    """Every file of a stage's output, a kept filter too."""
    return tree(outputs(stage, root)) | (
        {"filter": (root / "out" / "filter").read_bytes()} if stage == "dedupe" else {}
    )


def written(folder: Path) -> int:
    return sum(not name.startswith(".") for _, _, names in os.walk(folder) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_mid_stage_the_bytes_are_the_same(corpus: Path, stage: str) -> None:
    folders = [corpus / "out", corpus / "attributes"]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    STAGES[stage](corpus, LocalEngine(1))
    expected = made(stage, corpus)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-c", RUN, stage, str(corpus)]
    choose = random.Random(os.getpid())
    kills = 0
    for files in (choose.randint(1, 4), choose.randint(5, len(expected))):
        process = subprocess.Popen(command)
        while process.poll() is None and written(outputs(stage, corpus)) < files:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    subprocess.run(command, check=True)
    assert made(stage, corpus) == expected


@pytest.mark.slow
@pytest.mark.parametrize("stage", EVERY_WRITE)
def test_killed_at_a_write_the_bytes_are_the_same(corpus: Path, stage: str) -> None:
    """Right behind the first file that was put in place, one in the middle, and the last but the manifest."""

    def work(kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILL_AT, stage, str(corpus), str(kill_at)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    out = corpus / "out"
    shutil.rmtree(out, ignore_errors=True)
    whole = work(0)
    assert whole.returncode == 0, whole.stderr
    expected, writes = tree(out), int(whole.stdout)
    for kill_at in (1, writes // 2, writes - 1):
        shutil.rmtree(out)
        assert work(kill_at).returncode == -signal.SIGKILL
        assert work(0).returncode == 0
        assert tree(out) == expected


@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        ("tag", "out"),
        ("dedupe", "attributes/out"),
        ("minhash", "out/attributes/near_duplicates"),
        ("decontaminate", "out/attributes/decontamination"),
        ("dolma_mix", "out"),
        ("mixture", "out"),
    ],
)
def test_killed_behind_its_manifest_a_run_is_tidied_by_the_next(
    corpus: Path, stage: str, folder: str
) -> None:
    for name in ("out", "attributes"):
        shutil.rmtree(corpus / name, ignore_errors=True)
    STAGES[stage](corpus, LocalEngine(1))
    expected = made(stage, corpus)
    (corpus / folder / "tasks").mkdir()
    (corpus / folder / "tasks" / "0.json").write_text("{}")
    STAGES[stage](corpus, LocalEngine(1))
    assert made(stage, corpus) == expected
