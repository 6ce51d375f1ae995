"""Before step 1 what cannot work is found, and what can is left as it was."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from loom.errors import LoomError
from loom.train import rehearsal
from loom.train.checkpoint import read_weights
from loom.train.loop import train

from .test_loop import losses, recipe
from .tokens import learnable, write_tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])


def test_a_rehearsal_changes_nothing(tmp_path: Path, tokens: Path) -> None:
    runs = {
        rehearse: read_weights(train(recipe(tokens, rehearse=rehearse), tmp_path / str(rehearse)))
        for rehearse in (True, False)
    }
    assert all(torch.equal(runs[True][name], tensor) for name, tensor in runs[False].items())
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
    assert not (tmp_path / "True" / ".rehearsal").exists()


@pytest.mark.parametrize(
    ("place", "name"),
    [(("model",), "embed.weight"), (("optimizer", "state", "blocks.1.mlp.up.weight"), "exp_avg_sq")],
)
def test_a_disk_that_changes_what_it_holds_is_found(
    tmp_path: Path, tokens: Path, monkeypatch, place: tuple[str, ...], name: str
) -> None:
    whole = rehearsal.state_dict_loader.load

    def damaged(state, **options):
        whole(state, **options)
        for part in place:
            state = state.get(part, {})
        if name in state:
            state[name][3, 3] += 1

    monkeypatch.setattr(rehearsal.state_dict_loader, "load", damaged)
    named = ".".join((*place, name)).replace(".", r"\.")
    with pytest.raises(LoomError, match=rf"{named} came back.*No step was taken"):
        train(recipe(tokens), tmp_path / "run")
    assert not (tmp_path / "run" / ".rehearsal").exists()


def test_a_disk_that_gives_nothing_back_is_found(tmp_path: Path, tokens: Path, monkeypatch) -> None:
    monkeypatch.setattr(rehearsal.state_dict_loader, "load", lambda state, **options: None)
    with pytest.raises(LoomError, match="came back"):
        train(recipe(tokens), tmp_path / "run")


def test_a_full_disk_is_found_before_the_first_step(tmp_path: Path, tokens: Path, monkeypatch) -> None:
    def full(*args, **options):
        # As torch raises it; it is no `Exception`.
        error = OSError(28, "No space left on device")
        raise CheckpointException("save", {0: (error, traceback.extract_stack())})

    monkeypatch.setattr(rehearsal.state_dict_saver, "save", full)
    with pytest.raises(LoomError, match=r"No space left.*No step was taken"):
        train(recipe(tokens), tmp_path / "run")
    assert not (tmp_path / "run" / ".rehearsal").exists()


def test_too_little_memory_names_its_mend(tmp_path: Path, tokens: Path, monkeypatch) -> None:
    from loom.train.objective import LanguageModel

    def heavy(self, model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")

    monkeypatch.setattr(LanguageModel, "__call__", heavy)
    with pytest.raises(LoomError, match=r"micro-batch of 4 does not fit.*train\.recompute"):
        train(recipe(tokens), tmp_path / "run")
