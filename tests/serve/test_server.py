"""The server through the real OpenAI client and raw sockets: shapes, refusals, load, leaving, draining."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from loom.chat.format import DEFAULT, FORMATS, Message, Renderer
from loom.chat.prompts import conversation
from loom.model.sampling import Sampling
from loom.serve.complete import Session, complete, encode_prompt
from loom.serve.engine import Engine
from loom.serve.limits import Limits
from tests.serve.running import Running, served

NAME = "small-model"
QUESTION = [{"role": "user", "content": "What does `textwrap.dedent` do?"}]


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Running]:
    with served(checkpoint, ["--body-limit", "1000000", "--places", "8"]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120)


def expected(opened: Session, question: str, most: int, **settings: Any) -> Any:
    """What the library answers to the same question."""
    renderer = Renderer(FORMATS[DEFAULT], opened.tokenizer)
    prompt = renderer.render([Message("user", question)], generation_prompt=True).ids.tolist()
    return complete(opened, prompt, replace(Sampling(most, temperature=0.0), **settings))


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).object == "model"


def test_chat_answers_as_the_library_does(client: Any, opened: Session) -> None:
    answer = client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=20)
    mine = expected(opened, QUESTION[0]["content"], 20)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role) == (mine.text, "assistant")
    assert choice.finish_reason == mine.finish
    assert answer.usage.completion_tokens == len(mine.tokens)
    assert answer.usage.prompt_tokens == mine.prompt_tokens
    assert answer.usage.total_tokens == mine.prompt_tokens + len(mine.tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stream_equals_the_whole(client: Any, temperature: float) -> None:
    asked: dict[str, Any] = {
        "model": NAME,
        "messages": QUESTION,
        "temperature": temperature,
        "max_completion_tokens": 30,
        "seed": 7,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_text_completions_and_logprobs(client: Any, opened: Session) -> None:
    answer = client.completions.create(
        model=NAME, prompt=["def main", "import"], temperature=0, max_tokens=12, logprobs=3
    )
    for choice, prompt in zip(answer.choices, ("def main", "import"), strict=True):
        mine = complete(opened, encode_prompt(opened.tokenizer, prompt), Sampling(12, temperature=0.0))
        assert choice.text == mine.text
        assert choice.logprobs.token_logprobs == pytest.approx(mine.logprobs, abs=1e-4)
        for shown, best in zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True):
            assert max(best.values()) == pytest.approx(shown, abs=1e-4), "greedy takes the most likely"


def test_chat_logprobs(client: Any) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=QUESTION, temperature=0, max_tokens=8, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert (
        b"".join(bytes(t.bytes) for t in content).decode(errors="replace")
        == answer.choices[0].message.content
    )
    assert all(
        len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob >= t.top_logprobs[1].logprob for t in content
    )


def test_equal_seeds_give_equal_answers_and_others_do_not(client: Any) -> None:
    def ask(seed: int) -> str:
        answer = client.chat.completions.create(
            model=NAME, messages=QUESTION, temperature=1.5, max_tokens=30, seed=seed
        )
        return str(answer.choices[0].message.content)

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(5)}) > 1


def test_stop_strings(client: Any, opened: Session) -> None:
    mine = expected(opened, QUESTION[0]["content"], 30)
    stop = mine.text[5:7]
    answer = client.chat.completions.create(
        model=NAME, messages=QUESTION, temperature=0, max_tokens=30, stop=[stop]
    )
    assert answer.choices[0].message.content == mine.text[: mine.text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


BAD: list[tuple[str, str, Any, int, str]] = [
    (
        "chat over the context",
        "chat",
        {"messages": [{"role": "user", "content": "word " * 500}]},
        400,
        "context",
    ),
    ("negative temperature", "chat", {"messages": QUESTION, "temperature": -1}, 400, "temperature"),
    ("temperature is text", "chat", {"messages": QUESTION, "temperature": "hot"}, 400, "temperature"),
    ("top_p over 1", "chat", {"messages": QUESTION, "top_p": 1.5}, 400, "top_p"),
    ("unknown field", "chat", {"messages": QUESTION, "temprature": 1}, 400, "temprature"),
    ("several answers", "chat", {"messages": QUESTION, "n": 3}, 400, "n"),
    ("tools", "chat", {"messages": QUESTION, "tools": []}, 400, "tools"),
    ("no messages", "chat", {"messages": []}, 400, "messages"),
    ("messages are text", "chat", {"messages": "hello"}, 400, "messages"),
    ("role", "chat", {"messages": [{"role": "wizard", "content": "x"}]}, 400, "wizard"),
    ("image", "chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "not text"),
    ("another model", "chat", {"messages": QUESTION, "model": "gpt-4"}, 404, "gpt-4"),
    ("a path as model", "chat", {"messages": QUESTION, "model": "../../etc/passwd"}, 404, "passwd"),
    ("a token that is none", "text", {"prompt": [999_999]}, 400, "1,280"),
    ("negative token", "text", {"prompt": [-1]}, 400, "1,280"),
    ("too many prompts", "text", {"prompt": ["a"] * 99}, 400, "16 prompts"),
    ("no prompts", "text", {"prompt": []}, 400, "empty"),
    ("no whole number", "chat", {"messages": QUESTION, "max_tokens": 1.5}, 400, "max_tokens"),
    ("empty stop", "chat", {"messages": QUESTION, "stop": [""]}, 400, "stop"),
]


@pytest.mark.parametrize(("what", "kind", "body", "status", "named"), BAD, ids=[row[0] for row in BAD])
def test_bad_requests_get_a_sentence(
    server: Running, what: str, kind: str, body: Any, status: int, named: str
) -> None:
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    got, answer = server.post(path, body)
    assert got == status
    assert named in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert server.call("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe{}", 400, "UTF-8"),
        (b"[1]", 400, "object"),
        (b"[" * 200_000, 400, "JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, ""),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', 400, "temperature"),
        (b'"' + b"a" * 10_000_000 + b'"', 413, "1,000,000"),
    ],
    ids=["cut", "latin", "list", "deep", "surrogate", "infinity", "huge"],
)
def test_bad_bodies(server: Running, body: bytes, status: int, named: str) -> None:
    try:
        got, answer = server.call("POST", "/v1/chat/completions", body)
    except OSError:  # the server closes while the client is still sending: also an answer to 10 MB
        assert status == 413
    else:
        assert got == status
        assert named in answer["error"]["message"]
    assert server.call("GET", "/health")[0] == 200


def test_other_paths_and_methods(server: Running) -> None:
    assert server.call("GET", "/v1/nothing")[0] == 404
    assert server.call("GET", "/page/../api.py")[0] == 404
    assert server.call("DELETE", "/v1/models")[0] == 405
    assert server.call("GET", "/v1/models/../../etc")[0] == 404


def test_pages_of_other_origins_are_kept_out(server: Running) -> None:
    body = json.dumps({"messages": QUESTION}).encode()
    assert server.call("POST", "/v1/chat/completions", body, {"content-type": "text/plain"})[0] == 415
    assert server.call("GET", "/v1/models", headers={"host": "evil.example:80"})[0] == 403
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("OPTIONS", "/v1/models", headers={"origin": "https://evil.example"})
    assert connection.getresponse().getheader("access-control-allow-origin") is None


def test_many_clients_each_get_their_own_answer(server: Running, client: Any, opened: Session) -> None:
    questions = [f"What is {number}?" for number in range(48)]
    wanted = {q: expected(opened, q, 20).text for q in questions}

    def ask(number: int) -> tuple[str, str]:
        question = questions[number % len(questions)]
        stream = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=20,
            stream=True,
        )
        return question, "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(64) as pool:
        for question, text in pool.map(ask, range(128)):
            assert text == wanted[question]
    assert server.call("GET", "/health")[1] == {"status": "ok", "running": 0, "waiting": 0}


def test_room_that_is_asked_for_is_kept(server: Running) -> None:
    asked = {"prompt": [5] * 100, "max_tokens": 2, "temperature": 0}
    assert server.post("/v1/completions", asked | {"reserve": 60})[0] == 200
    status, answer = server.post("/v1/completions", asked | {"reserve": 61})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "61 of them kept" in answer["error"]["message"]


def test_an_answer_over_its_time_is_a_sentence(checkpoint: Path) -> None:
    with served(checkpoint, ["--time-limit", "0"]) as running:
        status, answer = running.post("/v1/completions", {"prompt": "x", "max_tokens": 100})
        assert (status, answer["error"]["code"]) == (504, "timeout")
        assert running.call("GET", "/health")[0] == 200


def test_a_full_queue_is_said(checkpoint: Path) -> None:
    with served(checkpoint, ["--places", "1", "--queue", "0"]) as running:
        status, answer = running.post("/v1/completions", {"prompt": "x", "max_tokens": 2})
        assert (status, answer["error"]["code"]) == (503, "overloaded")


def test_a_template_that_fails_is_400(checkpoint: Path, opened: Session) -> None:
    """A foreign template that raises, or reaches for Python, is a sentence and not a crash."""
    from fastapi.testclient import TestClient

    from loom.chat.template import Template
    from loom.serve.api import Served, create_app

    for template in ("{{ nothing.at.all }}", "{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}"):
        with Engine(opened.decoder, opened.tokenizer, places=1) as engine:
            served_model = Served(NAME, engine, conversation(opened.tokenizer, Template(template)), Limits())
            client = TestClient(create_app(served_model))
            answer = client.post("/v1/chat/completions", json={"messages": QUESTION})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "messages"


def test_metrics_count_what_was_done(server: Running) -> None:
    before = {name: server.metric(f"loom_{name}_total") for name in ("requests", "finished", "tokens")}
    _, answer = server.post("/v1/completions", {"prompt": "def", "max_tokens": 7, "temperature": 0})
    after = {name: server.metric(f"loom_{name}_total") for name in before}
    made = answer["usage"]["completion_tokens"]
    assert {name: after[name] - before[name] for name in before} == {
        "requests": 1,
        "finished": 1,
        "tokens": made,
    }
    assert server.metric("loom_running") == 0


def test_a_key_is_needed_where_one_is_set(checkpoint: Path) -> None:
    with served(checkpoint, ["--name", "secret"], {"LOOM_API_KEY": "k-123"}) as running:
        assert running.call("GET", "/v1/models")[0] == 401
        assert running.call("GET", "/v1/models", headers={"authorization": "Bearer k-124"})[0] == 401
        assert running.call("GET", "/v1/models", headers={"authorization": "Bearer k-123"})[0] == 200
        assert running.call("GET", "/health")[0] == 200
        assert running.call("GET", "/")[0] == 200
        wrong = openai.OpenAI(base_url=f"{running.url}/v1", api_key="no", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()


def test_termination_answers_what_was_taken_in(checkpoint: Path) -> None:
    answers: list[tuple[int, Any]] = []
    with served(checkpoint) as running:
        asked = {"prompt": [5], "max_tokens": 150, "temperature": 2, "seed": 1}
        waiting = [
            threading.Thread(target=lambda: answers.append(running.post("/v1/completions", asked)))
            for _ in range(6)
        ]
        for thread in waiting:
            thread.start()
        for _ in range(200):
            if running.metric("loom_requests_total") == 6:
                break
            time.sleep(0.02)
        running.process.send_signal(signal.SIGTERM)
        for thread in waiting:
            thread.join(60)
        assert running.process.wait(60) == 0
    assert [status for status, _ in answers] == [200] * 6
    assert len({answer["choices"][0]["text"] for _, answer in answers}) == 1


def test_another_address_needs_a_key(checkpoint: Path) -> None:
    from loom.errors import LoomError
    from loom.serve.server import Serve, serve

    with pytest.raises(LoomError, match="LOOM_API_KEY"):
        serve(Serve(checkpoint, host="0.0.0.0"))


@pytest.mark.slow
def test_a_minute_of_64_streams(server: Running, client: Any, opened: Session) -> None:
    """At least 64 streams at once for a minute: nothing lost, nothing mixed."""
    questions = [f"Say {number} again" for number in range(40)]
    wanted = {q: expected(opened, q, 40).text for q in questions}
    until = time.monotonic() + 60
    wrong: list[str] = []
    count = [0] * 64

    def keep_asking(who: int) -> None:
        while time.monotonic() < until:
            question = questions[(who + count[who]) % len(questions)]
            stream = client.chat.completions.create(
                model=NAME,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=40,
                stream=True,
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            if text != wanted[question]:
                wrong.append(question)
            count[who] += 1

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(keep_asking, range(64)))
    assert not wrong
    assert min(count) > 0
