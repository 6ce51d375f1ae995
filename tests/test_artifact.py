"""An artifact is finished or it is not there, and what it says of itself is true."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom import artifact
from loom.artifact import Input, atomic_write, canonical_json, commit, describe, finished, lineage, refer
from loom.errors import LoomError


def make(
    path: Path, kind: str = "documents", inputs: tuple[Input, ...] = (), text: bytes = b"text"
) -> artifact.Artifact:
    with atomic_write(path / "data.txt") as stream:
        stream.write(text)
    return commit(
        path, kind, recipe={"a": 1}, inputs=inputs, outputs=describe(path, ["data.txt"]), counters={"n": 1}
    )


def test_equal_work_has_equal_manifests(tmp_path: Path) -> None:
    first, second = make(tmp_path / "one"), make(tmp_path / "two")
    assert first.digest == second.digest
    assert (first.path / "manifest.json").read_bytes() == (second.path / "manifest.json").read_bytes()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"before")
    with pytest.raises(RuntimeError), atomic_write(target) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("code", "word"),
    [(errno.ENOSPC, "No space left"), (errno.EROFS, "Cannot write"), (errno.EACCES, "--out")],
)
def test_an_os_error_names_the_folder_and_the_mend(tmp_path: Path, code: int, word: str) -> None:
    with pytest.raises(LoomError, match=word) as caught, atomic_write(tmp_path / "file") as stream:
        stream.write(b"half")
        raise OSError(code, os.strerror(code))
    assert str(tmp_path) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b"text")
    with pytest.raises(LoomError, match="never finished"):
        artifact.load(tmp_path)
    with pytest.raises(LoomError, match="is not there"):
        artifact.load(tmp_path / "nowhere")


def test_a_manifest_edited_by_hand_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "one")
    body = json.loads((made.path / "manifest.json").read_bytes())
    body["counters"]["n"] = 2
    (made.path / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(LoomError, match="changed after it was written"):
        artifact.load(made.path)


def test_a_file_cut_short_or_changed_is_named(tmp_path: Path) -> None:
    made = make(tmp_path / "one")
    (made.path / "data.txt").write_bytes(b"tex")
    with pytest.raises(LoomError, match=r"data\.txt has 3 bytes"):
        made.verify()
    (made.path / "data.txt").write_bytes(b"TEXT")
    made.verify()
    with pytest.raises(LoomError, match="was changed"):
        made.verify(data=True)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "one", kind="tokens")
    with pytest.raises(LoomError, match="'tokens' where 'documents'"):
        artifact.load(tmp_path / "one", kind="documents")


def test_finished_only_for_the_same_recipe_and_inputs(tmp_path: Path) -> None:
    raw = make(tmp_path / "raw")
    path = tmp_path / "next"
    source = refer(raw, path)
    make(path, kind="tokens", inputs=(source,))
    assert finished(path, "tokens", {"a": 1}, (source,)) is not None
    assert finished(path, "tokens", {"a": 2}, (source,)) is None
    assert finished(path, "tokens", {"a": 1}, (Input(source.path, "0" * 32),)) is None
    assert finished(tmp_path / "nowhere", "tokens", {"a": 1}, (source,)) is None


def test_lineage_leads_to_raw_files_and_survives_a_move(tmp_path: Path) -> None:
    raw = tmp_path / "outside.txt"
    raw.write_bytes(b"raw")
    tree = tmp_path / "tree"
    one = make(tree / "one", inputs=(Input(str(raw), artifact.digest_file(raw)),))
    make(tree / "two", kind="tokens", inputs=(refer(one, tree / "two"),))
    shutil.move(tree, tmp_path / "moved")
    node = lineage(tmp_path / "moved" / "two" / "data.txt")
    assert (node.kind, node.parents[0].kind, node.parents[0].parents[0].kind) == (
        "tokens",
        "documents",
        "file",
    )
    assert node.parents[0].parents[0].path == raw
    assert not node.parents[0].stale


def test_lineage_shows_what_was_made_anew_or_lost(tmp_path: Path) -> None:
    one = make(tmp_path / "one")
    two = make(tmp_path / "two", inputs=(refer(one, tmp_path / "two"),))
    make(tmp_path / "one", text=b"other text")
    assert lineage(two.path).parents[0].stale
    shutil.rmtree(tmp_path / "one")
    assert lineage(two.path).parents[0].kind == "missing"


def test_long_lists_lie_beside_the_manifest(tmp_path: Path) -> None:
    inputs = tuple(Input(f"/raw/{i:05}", f"{i:032x}") for i in range(artifact.LONG_LIST + 1))
    made = make(tmp_path / "one", inputs=inputs)
    assert artifact.load(made.path).inputs == inputs
    assert len((made.path / "manifest.json").read_bytes()) < 2000
    listing = (made.path / "inputs.jsonl").read_bytes()
    (made.path / "inputs.jsonl").write_bytes(listing.replace(b"00007", b"00008"))
    with pytest.raises(LoomError, match="inputs.jsonl"):
        artifact.load(made.path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(json_values)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: object) -> None:
    def turned(item: object) -> object:
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(list(item))}
        return [turned(part) for part in item] if isinstance(item, list) else item

    assert canonical_json(turned(value)) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


def test_what_is_not_of_the_kind_is_not_discarded(tmp_path: Path) -> None:
    held = make(tmp_path / "documents")
    with pytest.raises(LoomError, match="documents"):
        artifact.discard(held.path, "tokens")
    assert artifact.load(held.path, "documents").digest == held.digest
    artifact.discard(held.path, "documents")
    with pytest.raises(LoomError):
        artifact.load(held.path, "documents")
