"""What a push does on the Hub, call by call, and what it says when the Hub does not take it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from loom import artifact
from loom.cli import app
from loom.errors import LoomError
from loom.release.export import export
from loom.release.push import plan_push, push
from tests.release.conftest import TIED, Make


class FakeHub:
    """`HfApi` as far as a push calls it; every call is written down."""

    endpoint = "https://hub.example"
    calls: list[tuple[Any, ...]]

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(("repo", repository, private))

    def create_branch(self, repository: str, *, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(("branch", repository, branch))

    def create_commit(self, repository: str, operations: Any, *, commit_message: str, revision: str) -> None:
        assert revision in commit_message
        sent = {add.path_in_repo: Path(add.path_or_fileobj).read_bytes() for add in operations}
        self.calls.append(("commit", repository, revision, sent))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    FakeHub.calls = []
    return FakeHub


def test_a_release_is_one_commit_of_the_files_that_were_listed(
    make_checkpoint: Make, tmp_path: Path, hub: type[FakeHub]
) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    done = CliRunner().invoke(app, ["push", str(made.path), "me/model", "--public"])
    assert done.exit_code == 0, done.output
    (repo, (kind, repository, revision, sent)) = hub.calls
    assert repo == ("repo", "me/model", False)
    assert (kind, repository, revision) == ("commit", "me/model", "main")
    assert sent == {p.name: p.read_bytes() for p in made.path.iterdir() if p.name != "run.json"}


def test_each_checkpoint_has_its_branch_before_its_commit(
    make_checkpoint: Make, tmp_path: Path, hub: type[FakeHub]
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for step in (1, 2):
        make_checkpoint(TIED, seed=step, name=f"s{step}").rename(run / "checkpoints" / f"step-{step:08d}")
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "recipe.yaml").write_text("seed: 1\n")
    uploads = plan_push(run, every_checkpoint=True)
    assert hub.calls == [], "a plan sends nothing"
    push("me/model", uploads)
    revision = uploads[0].revision
    assert [call[0] for call in hub.calls] == ["repo", "branch", "commit"]
    assert hub.calls[0] == ("repo", "me/model", True), "private unless it is asked for"
    sent = hub.calls[2][3]
    assert hub.calls[1][2] == hub.calls[2][2] == revision
    assert sent["recipe.yaml"] == b"seed: 1\n"
    assert sent["metrics.jsonl"] == b"{}\n"
    assert json.loads(sent["reading-order.json"])["step"] == 0


@pytest.fixture
def refusing() -> Iterator[str]:
    """A Hub that forbids everything."""

    class Forbid(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(403)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Forbid)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("how", ["forbidden", "no network"])
def test_a_hub_that_does_not_take_it_is_a_sentence(
    refusing: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Through the Hub's real client, which would else raise its own kinds of errors."""
    address = refusing if how == "forbidden" else "http://127.0.0.1:9"
    real = huggingface_hub.HfApi
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint=address, token="hf_x"))
    with pytest.raises(LoomError, match=f"The Hub at {address} did not take me/model"):
        push("me/model", [])


def test_a_card_made_afterwards_is_sent(make_checkpoint: Make, tmp_path: Path, hub: type[FakeHub]) -> None:
    """`loom card` with evaluations as the export's README: the manifest follows, the push takes it."""
    source = make_checkpoint(TIED)
    made = export(source, tmp_path / "export")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "results.json").write_text(
        json.dumps({"results": {"docs": {"accuracy": 0.4321, "n": 4}}, "tasks": {}})
    )
    card = made.path / "README.md"
    assert "loom card` adds" in card.read_text()
    words = [
        "card",
        str(made.path),
        "--eval",
        str(tmp_path / "eval"),
        "--licence",
        "apache-2.0",
        "--kwh",
        "2",
    ]
    assert CliRunner().invoke(app, [*words, "--out", str(card)]).exit_code == 0
    push("me/model", plan_push(made.path))
    sent = hub.calls[-1][3]
    assert b"| docs | accuracy | 0.4321 | 4 |" in sent["README.md"]
    assert b"| all | 2 | measured |" in sent["README.md"]
    listed = {item["path"]: item["digest"] for item in json.loads(sent["manifest.json"])["outputs"]}
    assert listed["README.md"] == artifact.digest_bytes(sent["README.md"])
    again = artifact.load(made.path)
    assert (again.recipe, again.inputs, again.facts) == (made.recipe, made.inputs, made.facts)
    assert export(source, made.path).digest == again.digest, "a finished export stays, its card too"


def test_a_card_does_not_cover_up_other_changes(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    (made.path / "generation_config.json").write_text("{}")
    done = CliRunner().invoke(app, ["card", str(made.path), "--out", str(made.path / "README.md")])
    assert isinstance(done.exception, LoomError)
    assert "generation_config.json" in str(done.exception)
