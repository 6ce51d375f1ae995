from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loom.chat.format import DEFAULT, FORMATS
from loom.model.config import ModelConfig
from loom.model.initialize import initialize
from loom.model.transformer import Transformer
from loom.serve.complete import Session, session
from loom.serve.engine import Engine
from loom.tokens.shards import SpecialToken
from loom.tokens.tokenizer import Tokenizer
from loom.train.checkpoint import ModelCard, save_model
from tests.browser import chromium
from tests.serve.parrot import parrot, phrase
from tests.serve.running import Running
from tests.small import make_tokenizer

CONFIG = ModelConfig(48, 2, 4, 128, 1280, 160, tied=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small are slower on several cores, and far slower when those are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


@pytest.fixture(scope="session")
def model() -> Transformer:
    """Random weights, scaled up so that the next token is rarely a near tie."""
    made = Transformer(CONFIG).eval()
    initialize(made, 3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    return made


@pytest.fixture(scope="session")
def opened(model: Transformer, tokenizer: Tokenizer) -> Session:
    return session(model, tokenizer)


@pytest.fixture
def engine(opened: Session) -> Iterator[Engine]:
    with Engine(opened.decoder, opened.tokenizer, places=8) as running:
        yield running


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: Transformer, tokenizer: Tokenizer) -> Path:
    card = ModelCard(
        CONFIG,
        SpecialToken(tokenizer.eos_id, tokenizer.eos_token),
        SpecialToken(tokenizer.pad_id, tokenizer.pad_token),
        tokenizer.vocab_size,
    )
    return save_model(tmp_path_factory.mktemp("served") / "small-model", model, card, Path(tokenizer.name))


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model that says a few words over and over: an answer of it does not end by itself for seconds."""
    after = FORMATS[DEFAULT].assistant.before
    says = phrase(tokenizer, "the keeper of a house by a lake", after)
    return parrot(tmp_path_factory.mktemp("endless") / "model", tokenizer, says, after, 16_384, endless=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The page, loaded; at the end there must have been no error and no request to anywhere else."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda m: problems.append(m.text) if "Content Security" in m.text else None)
    opened.on(
        "request",
        lambda r: problems.append(r.url) if not r.url.startswith((server.url, "data:", "blob:")) else None,
    )
    opened.goto(server.url + "/")
    opened.wait_for_selector("#facts:not(:empty)", state="attached")
    yield opened
    context.close()
    assert problems == []
