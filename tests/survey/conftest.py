"""Hundreds of small folders are written here; that they survive a power cut is not what is tested."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> object:
    plain = os.fsync
    os.fsync = lambda _: None  # type: ignore[assignment]
    yield
    os.fsync = plain
