"""The registry: open to a module of one's own, typed or in a recipe; names taken once."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pytest

from loom.artifact import atomic_write, digest_file
from loom.cli import main
from loom.corpus import documents, taggers
from loom.corpus.curate import curate
from loom.corpus.plan import check
from loom.corpus.tag import Tag, tag
from loom.engine import LocalEngine
from loom.errors import LoomError
from tests.corpus.test_curate import corpus, recipe, write

MODULE = '''
from loom.corpus.attributes import whole
from loom.corpus.taggers import tagger

@tagger("shouting_{name}", spans="document", source="mine")
def shouting():
    """`share`: letters that are capitals."""
    def tag(texts):
        return {{"share": whole(texts.lengths, [sum(map(str.isupper, t)) / max(len(t), 1) for t in texts.strings])}}
    return tag
'''


@pytest.mark.parametrize("flag", ["--tagger-module", "--tagger-modules"])
def test_a_module_of_one_s_own(tmp_path: Path, flag: str) -> None:
    module = tmp_path / f"shouting_{flag.count('s')}.py"
    name = f"shouting_{flag.count('s')}"
    module.write_text(MODULE.format(name=flag.count("s")))
    documents.write(
        tmp_path / "documents" / "a.jsonl", [{"id": "a", "text": "LOUD"}, {"id": "b", "text": "soft"}]
    )
    with pytest.raises(SystemExit) as ended:
        main(
            f"tag --documents {tmp_path / 'documents'} --taggers {name} {flag} {module} --out {tmp_path}".split()
        )
    assert ended.value.code == 0
    rows = map(orjson.loads, documents.read_lines(tmp_path / "attributes" / name / "a.jsonl.gz"))
    assert [row["attributes"][f"{name}__{name}__share"][0][2] for row in rows] == [1.0, 0.0]


def test_a_recipe_names_modules(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(MODULE.format(name="recipe"))
    rules = {"r": {"taggers": ["shouting_recipe"], "remove": {"loud": "shouting_recipe.share > 0.5"}}}
    raw = write(tmp_path / "raw", [*corpus()[:4], {"id": "loud", "text": "VERY LOUD INDEED"}], 1)
    made = recipe(raw, rules=rules, modules=[str(module)])
    check(made)
    artifact = curate(made, tmp_path / "out", LocalEngine(2))
    assert artifact.counters["sources"]["s"]["removed"] == {"loud": 1}


def test_an_edited_module_or_list_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a curation and by the tagger, without a change of the recipe; neither is what the documents hold."""
    rows = [{"id": str(n), "text": "Some words.", "metadata": {"url": f"http://{n}.org"}} for n in range(4)]
    rows.append({"id": "loud", "text": "VERY LOUD INDEED", "metadata": {"url": "http://loud.org"}})
    raw = write(tmp_path / "raw", rows, 1)
    module, listed = tmp_path / "edited.py", tmp_path / "hosts.txt"
    module.write_text(MODULE.format(name="edited"))
    listed.write_text("1.org\n")
    names = ["shouting_edited", "url_hosts_v1"]
    remove = {"loud": "shouting_edited.share > 0.5", "listed": "count(url_hosts_v1.url) > 0"}
    more = {"modules": [str(module)], "files": {"url_hosts_v1": str(listed)}}
    made = recipe(raw, rules={"r": {"taggers": names, "remove": remove}}, dedupe={"documents": False}, **more)

    def removed() -> tuple[dict[str, int], float]:
        chosen = Tag((str(raw),), (names[0],), modules=(str(module),))
        (alone,) = tag(chosen, None, LocalEngine(1))
        last = [orjson.loads(line) for line in documents.read_lines(alone.path / "s" / "part-00.jsonl.gz")][
            -1
        ]
        artifact = curate(made, tmp_path / "out", LocalEngine(1))
        assert {digest_file(path) for path in (module, listed)} == set(artifact.facts["against"])
        share = last["attributes"]["shouting_edited__shouting_edited__share"][0][2]
        return artifact.counters["sources"]["s"]["removed"], share

    assert removed() == removed() == ({"loud": 1, "listed": 1}, 0.875)
    listed.write_text("1.org\n2.org\n")
    assert removed()[0] == {"loud": 1, "listed": 2}
    module.write_text(MODULE.format(name="edited").replace("isupper", "isnumeric"))
    monkeypatch.delitem(sys.modules, "loom_taggers_edited")
    assert removed() == ({"listed": 2}, 0.0)


def test_every_tagger_says_what_it_is() -> None:
    found = taggers.available()
    assert len(found) > 60
    for entry in found:
        assert entry.spans and entry.source and entry.summary, entry.name


def test_a_name_is_taken_once() -> None:
    taggers.load_families()
    with pytest.raises(LoomError, match="'gopher_v2' is taken"):
        taggers.tagger("gopher_v2", spans="document", source="mine")(lambda: lambda texts: {})


def test_an_address_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="is an address"), atomic_write(Path("s3://bucket/key")):
        pass
