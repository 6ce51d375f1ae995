"""A recipe is right, or the message says where and how it is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from loom import recipe
from loom.errors import LoomError


@dataclass(frozen=True)
class Source:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Train:
    steps: int
    learning_rate: float = 3e-4
    precision: Literal["float32", "bf16"] = "bf16"
    compile: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


@dataclass(frozen=True)
class Recipe:
    name: str
    train: Train
    sources: tuple[Source, ...] = ()
    tokens: Path | tuple[Source, ...] | None = None
    rules: dict[str, tuple[str, ...]] = field(default_factory=dict)
    limit: int | None = None


GOOD = """
name: tiny
train: {steps: 1e3, learning_rate: 3e-4}
sources: [{path: a.jsonl, weight: 2}]
rules: {code: [gopher_v2.word_count >= 50]}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return recipe.load(path, Recipe, overrides)


def test_values_arrive_with_their_types(tmp_path: Path) -> None:
    read = load(tmp_path, GOOD)
    assert read == Recipe(
        "tiny",
        Train(1000, 3e-4),
        (Source(Path("a.jsonl"), 2.0),),
        rules={"code": ("gopher_v2.word_count >= 50",)},
    )
    assert isinstance(read.train.steps, int)


def test_overrides_are_yaml_and_go_deep(tmp_path: Path) -> None:
    read = load(
        tmp_path,
        GOOD,
        "train.steps=7",
        "train.precision=float32",
        "limit=5",
        "tokens=[{path: b, weight: 0.7}]",
    )
    assert (read.train.steps, read.train.precision, read.limit) == (7, "float32", 5)
    assert read.tokens == (Source(Path("b"), 0.7),)


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        (GOOD + "trian: {}", [], ["unknown key 'trian'", "Did you mean 'train'?"]),
        (GOOD, ["train.step=3"], ["unknown key 'train.step'", "'train.steps'"]),
        (GOOD, ["train.steps=many"], ["'train.steps' is 'many'", "a whole number"]),
        (GOOD, ["train.steps=0"], ["train: steps must be at least 1"]),
        (
            GOOD,
            ["train.precision=bf61"],
            ["'train.precision'", "one of 'float32', 'bf16'", "Did you mean 'bf16'?"],
        ),
        (GOOD, ["train.compile=1"], ["'train.compile' is 1", "true or false"]),
        (GOOD, ["sources=[{weight: 1}]"], ["'sources[0].path' is missing", "a path"]),
        (GOOD, ["tokens=3"], ["'tokens' is 3", "a path or a list"]),
        (GOOD, ["steps"], ["'steps' is not an override"]),
        ("name: x", [], ["'train' is missing"]),
        ("name: x\nname: y", [], ["written twice"]),
        ("- a", [], ["must hold keys and values"]),
        ("name: [", [], ["not valid YAML"]),
        ("name: !!python/object/apply:os.system [ls]", [], ["not valid YAML"]),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(LoomError) as caught:
        load(tmp_path, text, *overrides)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(GOOD)
    with pytest.raises(LoomError, match=r"Did you mean 'tiny.yaml'\?"):
        recipe.load(tmp_path / "tinny.yaml", Recipe)


def test_a_misspelt_name_finds_the_shipped_recipe() -> None:
    with pytest.raises(LoomError, match=r"Did you mean 'tiny'\?"):
        recipe.load(recipe.find("tinny"), Recipe)


def test_resolved_recipes_read_back_as_themselves(tmp_path: Path) -> None:
    read = load(tmp_path, GOOD, "limit=5")
    assert load(tmp_path, recipe.dump_yaml(read)) == read


def test_a_shipped_recipe_is_found_by_its_name_and_a_path_is_left_alone(tmp_path: Path) -> None:
    shipped = sorted(recipe.folder().glob("*.yaml"))
    assert shipped, "Loom comes with recipes"
    assert recipe.find(shipped[0].stem) == shipped[0]
    mine = tmp_path / shipped[0].name
    assert recipe.find(mine) == mine
