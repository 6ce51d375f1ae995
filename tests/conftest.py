"""What tests share: real data when it is there, oracles when they are built, and saying so when not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.oracles.build import interpreter, is_built

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


def skip_by_name(what: str) -> None:
    """Skip because `what` cannot be had; under CI=true that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is not here")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets, beside the checkout; a test that needs it skips without it."""
    if not DATA.is_dir():
        pytest.skip(f"the real data sets are not here ({os.path.relpath(DATA, ROOT)})")
    return DATA


@pytest.fixture(scope="session")
def oracle() -> object:
    """`oracle(name)` is the Python interpreter of a peer's own environment."""

    def find(name: str) -> Path:
        if not is_built(name):
            skip_by_name(f"the oracle environment {name}")
        return interpreter(name)

    return find
