"""Judges: the replay gives the published number, and failures are counted, never scored."""

from __future__ import annotations

import http.server
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loom.errors import LoomError
from loom.evals.judges import Comparison, Endpoint, LocalModel, Replay, find_judge, win_rate
from loom.evals.subject import Subject
from loom.model.transformer import Transformer
from loom.tokens.tokenizer import Tokenizer

PAIR = Comparison("Say hello.", "Go away.", "Hello!")


def test_replaying_gpt4_gives_the_leaderboards_number(shared_data: Path) -> None:
    """tulu-2-dpo-7b against text-davinci-003: 678 of 805, 84.22360248447205 on the leaderboard."""
    judge = Replay(shared_data / "chat" / "alpaca_eval.annotations.jsonl.gz")
    found = win_rate(judge.prefer(judge.comparisons()))
    assert found.win_rate == pytest.approx(84.22360248447205, abs=1e-10)
    assert found.stderr == pytest.approx(1.2856, abs=5e-5)
    assert (found.n, found.unjudged) == (805, 0)


def test_an_answer_that_was_not_annotated_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"instruction": "Say hello.", "output_1": "x", "output_2": "Hi", "preference": 2})
    )
    assert Replay(path).prefer([PAIR]) == [None]


@pytest.mark.parametrize("preference", [3, -1, 0.5, "x", [2]])
def test_a_preference_that_is_none_is_named_with_its_line(tmp_path: Path, preference: object) -> None:
    row = {"instruction": "Say hello.", "output_1": "x", "output_2": "Hi", "preference": 2}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "preference": preference}))
    with pytest.raises(LoomError, match=r"a\.jsonl:2: the preference is"):
        Replay(path)


def test_win_rate_by_hand() -> None:
    found = win_rate([2, 1, 1.5, 0, None, 2])
    assert found.win_rate == found.discrete == pytest.approx(100 * 3 / 5)
    assert found.stderr == pytest.approx(100 * math.sqrt(0.7 / 4 / 5))
    assert (found.n, found.unjudged) == (5, 1)
    assert win_rate([1.6]).discrete == 100
    assert math.isnan(win_rate([None]).win_rate)
    with pytest.raises(ValueError, match="between 1"):
        win_rate([3])


def test_a_local_judge_does_not_care_for_the_order(model: Transformer, tokenizer: Tokenizer) -> None:
    judge = LocalModel(Subject(model, tokenizer, 512, Path("."), "d", "float32", "cpu"))
    swapped = Comparison(PAIR.instruction, PAIR.answer, PAIR.baseline)
    one, two = judge.prefer([PAIR, swapped])
    assert one is not None
    assert two is not None
    assert one + two == pytest.approx(3)
    assert 1 < one < 2


def test_what_a_local_judge_cannot_read_whole_it_does_not_judge(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    judge = LocalModel(Subject(model, tokenizer, 300, Path("."), "d", "float32", "cpu"))
    long = Comparison("Tell a story.", "Once upon a time. " * 40, "No.")
    first, second = judge.prefer([long, PAIR])
    assert first is None and second is not None
    assert judge.describe()["failures"] == {"longer than the judge's context": 1}


class _Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match asked["model"]:
            case "good":
                text = asked["messages"][0]["content"]
                reply = "Answer A." if text.index("Hello!") < text.index("Go away.") else "B"
            case "slow":
                time.sleep(1.5)
                reply = "A"
            case "short":
                self.send_error(400, "longer than the context")
                return
            case "silent":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"choices": [{"message": {"content": null}}]}')
                return
            case "gone":  # the connection ends before an answer
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            case "cut":  # and in the middle of one
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices"')
                self.close_connection = True
                return
            case "broken":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")
                return
            case _:
                reply = "Both answers have their merits."
        body = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(200)
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            return

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def test_an_endpoint_is_asked_in_both_orders(url: str) -> None:
    assert Endpoint(url, "good").prefer([PAIR]) == [2.0]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("vague", "nonsense"),
        ("slow", "timeout"),
        ("broken", "not a chat completion"),
        ("silent", "not a chat completion"),
        ("gone", "unreachable"),
        ("cut", "unreachable"),
        ("short", "HTTP 400"),
    ],
)
def test_a_judge_that_fails_is_counted(url: str, model: str, why: str) -> None:
    judge = Endpoint(url, model, timeout=0.5 if model == "slow" else 60.0, tries=1)
    assert judge.prefer([PAIR]) == [None]
    assert judge.failures == {why: 2}
    assert judge.describe()["failures"] == {why: 2}


def test_spellings(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="There is no judge 'gpt4'"):
        find_judge("gpt4")
    judge = find_judge("endpoint:http://127.0.0.1:1/v1#m")
    assert isinstance(judge, Endpoint)
    judge.tries = 1
    assert judge.prefer([PAIR]) == [None]
    assert judge.failures == {"unreachable": 2}
