"""An endpoint as judge: asked in both orders, and every way in which it fails is named, counted and bounded."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loom.errors import LoomError
from loom.evals.judge.answers import find_judge, judge_comparisons
from loom.evals.judge.endpoint import GIVE_UP, Endpoint, verdict
from loom.evals.judge.judges import Comparison
from loom.evals.judge.post import LARGEST

PAIR = Comparison("Say hello.", "Go away.", "Hello!")
SEEN: list[tuple[str, str | None]] = []
"""Path and key of each request."""


def answer(server: http.server.BaseHTTPRequestHandler, text: str) -> None:
    send(server, json.dumps({"choices": [{"message": {"content": text}}]}).encode())


def send(server: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    server.send_response(200)
    server.end_headers()
    server.wfile.write(body)


def drip(server: http.server.BaseHTTPRequestHandler, first: bytes) -> None:
    """A byte every now and then, so that a socket never times out."""
    server.wfile.write(first)
    for _ in range(60):
        time.sleep(0.05)
        server.wfile.write(b" ")
        server.wfile.flush()


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        SEEN.append((self.path, self.headers["Authorization"]))
        answer(self, "A")

    def do_POST(self) -> None:
        SEEN.append((self.path, self.headers["Authorization"]))
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self.reply(asked["model"], asked["messages"][0]["content"])
        except (BrokenPipeError, ConnectionResetError):
            return

    def reply(self, model: str, text: str) -> None:
        match model:
            case "good":
                answer(self, "Answer A." if text.index("Hello!") < text.index("Go away.") else "B")
            case "first":
                answer(self, "A")
            case "slow":
                time.sleep(1.5)
                answer(self, "A")
            case "drips":
                drip(self, b"HTTP/1.1 200 OK\r\n\r\n")
            case "drips headers":
                drip(self, b"HTTP/1.1 200 OK\r\nX: ")
            case "endless":
                send(self, b" " * (LARGEST + 1))
            case "nested":
                send(self, b"[" * 100_000)
            case "short":
                self.send_error(400, "longer than the context")
            case "elsewhere":
                self.send_response(302)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
            case "busy":
                self.send_error(503)
            case "limited":  # once, and says when to come again
                SEEN.append(("limited", None))
                if sum(path == "limited" for path, _ in SEEN) % 2:
                    self.send_response(429)
                    self.send_header("Retry-After", "1")
                    self.end_headers()
                else:
                    answer(self, "Answer A." if text.index("Hello!") < text.index("Go away.") else "B")
            case "silent":
                send(self, b'{"choices": [{"message": {"content": null}}]}')
            case "gone":  # the connection ends before an answer
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            case "cut":  # and in the middle of one
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices"')
                self.close_connection = True
            case "broken":
                send(self, b"{}")
            case _:
                answer(self, "Both answers have their merits.")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def test_an_endpoint_is_asked_in_both_orders(url: str) -> None:
    assert Endpoint(url, "good").prefer([PAIR]) == [2.0]
    assert Endpoint(url, "good").prefer([Comparison("Say hello.", "Hello!", "Go away.")]) == [1.0]


def test_one_that_always_says_a_is_counted(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = judge_comparisons(Endpoint(url, "first"), [PAIR] * 3)
    assert found.figures["alpaca_win[endpoint]"] == 50 and found.figures["orders_disagree"] == 3
    assert "goes by their place" in capsys.readouterr().err
    assert judge_comparisons(Endpoint(url, "good"), [PAIR] * 3).figures["orders_disagree"] == 0


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("vague", "nonsense"),
        ("slow", "timeout"),
        ("drips", "timeout"),
        ("drips headers", "timeout"),
        ("endless", f"longer than {LARGEST:,} bytes"),
        ("nested", "not a chat completion"),
        ("broken", "not a chat completion"),
        ("silent", "not a chat completion"),
        ("gone", "unreachable"),
        ("cut", "unreachable"),
        ("short", "HTTP 400"),
        ("elsewhere", "HTTP 302"),
        ("busy", "HTTP 503"),
    ],
)
def test_a_judge_that_fails_is_counted(url: str, model: str, why: str) -> None:
    """Within its time, whatever it does: two requests of half a second each."""
    judge = Endpoint(url, model, timeout=0.5 if why == "timeout" else 60.0, tries=1)
    before = time.monotonic()
    assert judge.prefer([PAIR]) == [None]
    assert judge.failures == {why: 2}
    assert judge.describe()["failures"] == {why: 2}
    assert why != "timeout" or time.monotonic() - before < 2.5
    with pytest.raises(LoomError, match=f"none of the 1 answers was judged .*{why}: 4"):
        judge_comparisons(judge, [PAIR])


def test_the_key_goes_nowhere_else(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_JUDGE_KEY", "secret\n")
    SEEN.clear()
    Endpoint(url, "elsewhere").prefer([PAIR])
    assert SEEN == [("/v1/chat/completions", "Bearer secret")] * 2


def test_an_endpoint_that_only_fails_is_given_up(url: str) -> None:
    """805 comparisons that each time out would take days. Nonsense is an answer."""
    SEEN.clear()
    judge = Endpoint(url, "busy", tries=1)
    with pytest.raises(LoomError, match=f"failed {GIVE_UP} requests in a row, the last with 'HTTP 503'"):
        judge.prefer([PAIR] * GIVE_UP)
    assert len(SEEN) == GIVE_UP
    assert Endpoint(url, "vague", tries=1).prefer([PAIR] * GIVE_UP) == [None] * GIVE_UP


def test_failures_in_a_row_are_forgotten_at_an_answer(url: str) -> None:
    judge = Endpoint(url, "broken", tries=1)
    for _ in range(3):
        judge.model = "broken"
        judge.prefer([PAIR] * (GIVE_UP // 2 - 1))
        judge.model = "good"
        assert judge.prefer([PAIR]) == [2.0]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[
            (text, "A")
            for text in ("A", "a", " A.\n", "(A)", "Answer A.", "**Answer A**", "Answer: A", "**A**")
        ],
        *[
            (text, "B")
            for text in ("The better answer is B.", "B is better.", "Answer B is the better answer")
        ],
        ('{"answer": "B"}', "B"),
        ("The better answer is Answer B", "B"),
        *[(text, None) for text in ("A and B", "A/B", "AB", "Answer A or Answer B", "", "C", "neither")],
        *[(text, None) for text in ("A better answer is", "It is a matter of taste", "B because", "A" * 200)],
        ("A, B", None),
        ("*" * 90 + "x", None),
    ],
)
def test_a_verdict_is_one_letter_in_words_that_say_no_more(text: str, letter: str | None) -> None:
    assert verdict(text) == letter


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("http://[::1/v1#m", "is no address"),
        ("http://127.0.0.1:99999/v1#m", "is no address"),
        ("http://127.0.0.1:x/v1#m", "is no address"),
        ("http:///v1#m", "it names no server"),
        ("ftp://h/v1#m", "neither http:// nor https://"),
        ("localhost#m", "neither http:// nor https://"),
        ("http://h h/v1#m", "characters that an address cannot have"),
        ("http://me:secret@h/v1#m", "a key stands in LOOM_JUDGE_KEY"),
        ("http://h/v1#", "names no model"),
        ("http://h/v1# ", "names no model"),
        ("http://h/v1", "is no address"),
    ],
)
def test_an_address_is_checked_before_anything_is_asked(rest: str, why: str) -> None:
    with pytest.raises(LoomError, match=why):
        find_judge(f"endpoint:{rest}")


def test_what_was_answered_is_not_asked_again_and_what_failed_is(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path))
    for model, requests in (("good", [2, 0]), ("vague", [2, 2])):
        judge = find_judge(f"endpoint:{url}#{model}", cached=True)
        for wanted in requests:
            SEEN.clear()
            judge.prefer([PAIR])
            assert len(SEEN) == wanted


def test_nothing_is_there() -> None:
    judge = Endpoint("http://127.0.0.1:1/v1", "m", tries=1)
    assert judge.prefer([PAIR]) == [None]
    assert judge.failures == {"unreachable": 2}


def test_a_server_that_is_busy_is_asked_again_when_it_says(url: str) -> None:
    judge = Endpoint(url, "limited", timeout=5)
    began = time.monotonic()
    assert judge.prefer([PAIR]) == [2.0]
    assert judge.failures == {}
    assert time.monotonic() - began > 1.8  # two requests, each told to come again in a second


def test_a_server_that_refuses_everything_is_given_up(url: str) -> None:
    """One that answered before may refuse as often as it likes: those questions are too long."""
    with pytest.raises(LoomError, match=f"refused all of the first {GIVE_UP} requests"):
        Endpoint(url, "short").prefer([PAIR] * GIVE_UP)
    judge = Endpoint(url, "good")
    judge.prefer([PAIR])
    judge.model = "short"
    assert judge.prefer([PAIR] * GIVE_UP) == [None] * GIVE_UP


def test_an_address_with_a_question_is_refused() -> None:
    with pytest.raises(LoomError, match="question mark"):
        find_judge("endpoint:http://127.0.0.1/v1?key=secret#m")
