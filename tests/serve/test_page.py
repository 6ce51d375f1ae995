"""The chat page in a browser, by typing and clicking, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.running import Running, served

PAGE = Path(__file__).resolve().parents[2] / "src" / "loom" / "serve" / "page"


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Running]:
    with served(checkpoint) as running:
        yield running


def few_tokens(page: Any, count: int = 12, temperature: float = 0, seed: str = "") -> None:
    page.click("#settings-open")
    page.fill("#max_tokens", str(count))
    page.fill("#seed", seed)
    page.evaluate(
        "t => { const n = document.getElementById('temperature'); n.value = t;"
        " n.dispatchEvent(new Event('input')); }",
        temperature,
    )
    page.click("#settings-open")


def ask(page: Any, text: str) -> str:
    """Type, send, wait for the whole answer; its text."""
    page.fill("#input", text)
    page.press("#input", "Enter")
    page.wait_for_selector(".message.assistant:last-child .stats")
    return str(page.locator(".message.assistant .text").last.text_content())


def test_page_holds_no_other_address() -> None:
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert "https://" not in text.replace("https://www.w3.org", "")
        assert "http://" not in text.replace("http://www.w3.org", "")
        for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"):
            assert dangerous not in text


def test_a_conversation(page: Any, server: Running) -> None:
    few_tokens(page)
    first = ask(page, "What is this?")
    status, answer = server.post(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "What is this?"}], "temperature": 0, "max_tokens": 12},
    )
    assert status == 200
    assert first == answer["choices"][0]["message"]["content"]
    ask(page, "And then?")
    assert page.locator(".message").count() == 4
    assert "tokens" in page.locator(".stats").last.text_content()


def test_regenerate_edit_new_and_history(page: Any) -> None:
    sent: list[Any] = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.method == "POST" else None)
    few_tokens(page, seed="7")
    before = ask(page, "First question")
    page.evaluate("current.messages[1].content = 'old'; current.messages[1].stats = ''; draw()")
    page.locator(".message.assistant").last.get_by_text("Regenerate").click()
    page.wait_for_selector(".message.assistant:last-child .stats")
    assert page.locator(".message.assistant .text").last.text_content() == before, "greedy answers are equal"
    assert [row["messages"] for row in sent] == [[{"role": "user", "content": "First question"}]] * 2
    assert (sent[0]["seed"], "seed" in sent[1]) == (7, False), "another answer needs another seed"
    page.locator(".message.user").first.get_by_text("Edit").click()
    page.fill(".edit textarea", "Another question")
    for composing in (True, False):  # the Enter that ends the writing of a character sends nothing
        page.dispatch_event(
            ".edit textarea", "keydown", {"key": "Enter", "isComposing": composing, "bubbles": True}
        )
        assert page.locator(".edit textarea").count() == int(composing)
    page.wait_for_selector(".message.assistant:last-child .stats")
    assert page.locator(".message.user .text").text_content() == "Another question"
    page.click("#new")
    assert page.locator(".message").count() == 0
    ask(page, "Second conversation")
    assert page.locator("#chats li").count() == 2
    page.reload()
    page.wait_for_selector("#chats li")
    page.locator("#chats li").nth(1).locator("button").first.click()
    assert page.locator(".message.user .text").text_content() == "Another question"
    page.locator("#chats li").nth(1).hover()
    page.locator("#chats li").nth(1).get_by_role("button").last.click()
    assert page.locator("#chats li").count() == 1


ESCAPE_AT_FIRST_WORDS = """
window.hidden = [];
new MutationObserver(() => {
  const text = document.querySelector(".message.streaming .text");
  if (!text || !text.textContent || window.hidden.length) return;
  window.hidden.push(document.getElementById("stop").hidden);
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
}).observe(document.getElementById("messages"), { childList: true, subtree: true, characterData: true });
"""


def test_stop_keeps_what_was_written(page: Any, server: Running) -> None:
    few_tokens(page, 140, temperature=2, seed="1")  # one that does not end at once
    page.evaluate(ESCAPE_AT_FIRST_WORDS)  # from within: a key from outside comes when the small model is done
    page.fill("#input", "Write for long")
    page.press("#input", "Enter")
    page.wait_for_selector(".message.assistant .stats")
    assert page.evaluate("window.hidden") == [False], "the stop button has to be there while words come"
    assert page.locator(".message.assistant .stats").text_content() == "stopped"
    assert page.locator(".message.assistant .text").text_content()
    assert page.locator("#stop").is_hidden()
    for _ in range(100):
        if server.call("GET", "/health")[1]["running"] == 0:
            break
        page.wait_for_timeout(100)
    assert server.call("GET", "/health")[1]["running"] == 0
    assert page.locator("#banner").is_hidden()


AT_FIRST_WORDS = """
window.hidden = [];
let acted = false;
new MutationObserver(() => {
  const node = document.querySelector(".message.streaming:last-child");
  if (!node || !node.querySelector(".text")?.textContent) return;
  if (acted && node !== window.first) window.hidden.push(document.getElementById("stop").hidden);
  if (acted) return;
  acted = true;
  window.first = node;
  %s;
}).observe(document.getElementById("messages"), { childList: true, subtree: true, characterData: true });
"""
CLICK = "[...document.querySelectorAll('%s button')].find((b) => b.textContent === '%s').click()"
STOPPED = "JSON.parse(localStorage['loom.chats.v1'] || '{}').chats?.[0].messages.at(-1).stats === 'stopped'"


def until(page: Any, said: str) -> None:
    """Wait until an expression holds; the page's own policy forbids it to evaluate one."""
    for _ in range(600):
        if page.evaluate(said):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {said}")


def test_editing_while_an_answer_comes_keeps_the_box(page: Any) -> None:
    few_tokens(page, 140, temperature=2, seed="1")
    page.evaluate(AT_FIRST_WORDS % (CLICK % (".message.user", "Edit")))
    page.fill("#input", "Write for long")
    page.press("#input", "Enter")
    until(page, STOPPED)  # the answer's own end has been dealt with
    assert page.locator(".edit textarea").input_value() == "Write for long"
    assert page.locator("#stop").is_hidden()
    few_tokens(page, 8)
    page.fill(".edit textarea", "Shorter")
    page.press(".edit textarea", "Enter")
    page.wait_for_selector(".message.assistant:last-child .stats")
    assert page.locator(".message.user .text").text_content() == "Shorter"
    assert page.locator(".message").count() == 2


def test_regenerating_while_an_answer_comes_leaves_one_answer_and_its_stop_button(page: Any) -> None:
    few_tokens(page, 140, temperature=2, seed="1")
    page.evaluate(AT_FIRST_WORDS % (CLICK % (".message.streaming", "Regenerate")))
    page.fill("#input", "Write for long")
    page.press("#input", "Enter")
    until(page, "window.hidden.length > 0")
    page.wait_for_selector(".message.assistant:last-child .stats")
    assert page.evaluate("new Set(window.hidden).size === 1 && !window.hidden[0]"), "Stop is there throughout"
    assert page.locator(".message").count() == 2
    assert page.locator("#stop").is_hidden()
    assert page.locator("#send").is_visible()


def test_leaving_while_an_answer_comes_keeps_its_words(page: Any) -> None:
    few_tokens(page, 140, temperature=2, seed="1")
    page.evaluate(AT_FIRST_WORDS % "document.getElementById('new').click()")
    page.fill("#input", "Write for long")
    page.press("#input", "Enter")
    until(page, STOPPED)
    assert page.locator(".message").count() == 0
    page.reload()
    page.locator("#chats li button").first.click()
    assert page.locator(".message.assistant .text").text_content()


def test_every_control_reaches_the_server_and_is_kept(page: Any) -> None:
    sent: list[Any] = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.method == "POST" else None)
    values = {"temperature": "0.5", "top_p": "0.8", "min_p": "0.1", "repetition_penalty": "1.2"}
    numbers = {"top_k": "5", "max_tokens": "6", "seed": "3"}

    def set_all() -> None:
        for name, value in (values | numbers).items():
            page.evaluate(
                "([n, v]) => { const e = document.getElementById(n); e.value = v; e.dispatchEvent(new Event('input')); }",
                [name, value],
            )

    set_all()
    ask(page, "Hello")
    page.reload()
    page.wait_for_selector("#facts:not(:empty)", state="attached")
    ask(page, "Hello")
    assert len(sent) == 2
    for row in sent:
        assert {name: row[name] for name in values} == {name: float(value) for name, value in values.items()}
        assert {name: row[name] for name in numbers} == {name: int(value) for name, value in numbers.items()}
        assert row["reserve"] == 6, "no more room is kept than the answer may take"
    page.click("#settings-open")
    page.click("#defaults")
    assert page.locator("#temperature-value").text_content() == "0.7"
    assert page.locator("#seed").input_value() == ""


def test_keys_and_copying(page: Any) -> None:
    few_tokens(page)
    answer = ask(page, "Before")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".message.assistant").get_by_text("Copy").click()
    page.get_by_text("Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == answer
    page.press("#input", "ArrowUp")
    assert page.locator(".edit textarea").input_value() == "Before"
    page.press(".edit textarea", "Escape")
    assert page.locator(".edit").count() == 0
    assert page.locator(".message").count() == 2
    page.keyboard.press("Control+Shift+O")
    assert page.locator(".message").count() == 0


def test_room_is_kept_for_an_answer(page: Any, server: Running) -> None:
    """Older turns go before an answer is cut; a message that fills the context alone is still answered."""
    info = server.call("GET", "/loom/info")[1]
    assert info["reserve"] == 64
    few_tokens(page, 64)
    sent: list[Any] = []
    page.on("response", lambda r: sent.append((r.status, r.request.post_data_json)))
    for number in range(3):
        ask(page, f"Question {number} of some words")
        used = int(page.locator(".stats").last.text_content().partition(" of ")[0].rpartition(" ")[2])
        answered = int(page.locator(".stats").last.text_content().partition(" tokens")[0])
        assert used - answered <= info["context"] - info["reserve"]
    assert "no longer fit" in page.locator("#banner").text_content()
    page.click("#new")
    ask(page, "import " * 90)
    assert page.locator("#banner").is_hidden()
    tried = [(status, row.get("reserve")) for status, row in sent if row and "import import" in str(row)]
    assert tried == [(400, 64), (200, None)]


def test_dark_and_light(browser: Any, server: Running) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(server.url + "/")
        shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(int(part) for part in shown.removeprefix("rgb(").rstrip(")").split(","))
        context.close()
    assert shades["light"] > 600 > 200 > shades["dark"]


def test_hostile_text_stays_text(page: Any) -> None:
    hostile = "<img src=x onerror='window.stolen=1'><script>window.stolen=2</script>\n```html\n<b>x</b>\n```"
    few_tokens(page)
    ask(page, hostile)
    assert page.evaluate("window.stolen") is None
    assert page.locator("#messages img, #messages script, #messages b").count() == 0
    assert "<img src=x" in page.locator(".message.user .text").text_content()
    assert page.locator(".message.user pre").text_content() == "<b>x</b>"


def test_system_prompt_reaches_the_model(page: Any, server: Running) -> None:
    few_tokens(page)
    page.click("#settings-open")
    page.fill("#system", "Answer in French.")
    page.click("#settings-open")
    got = ask(page, "Hello")
    messages = [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "Hello"}]
    answer = server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 12})[
        1
    ]
    assert got == answer["choices"][0]["message"]["content"]


def test_history_over_the_context_is_dropped_and_said(page: Any) -> None:
    few_tokens(page)
    for number in range(6):
        ask(page, f"Question {number} " + "with some more words in it " * 4)
    assert "no longer fit" in page.locator("#banner").text_content()


def test_export_is_the_conversation(page: Any) -> None:
    few_tokens(page)
    answer = ask(page, "Save me")
    with page.expect_download() as download:
        page.click("#export")
    saved = json.loads(Path(download.value.path()).read_text())
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"]
    assert saved["messages"][1]["content"] == answer


def test_phone(browser: Any, server: Running) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 780}, color_scheme="dark")
    page = context.new_page()
    page.goto(server.url + "/")
    page.wait_for_selector("#facts:not(:empty)", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not page.locator("#history").is_visible()
    page.click("#menu")
    assert page.locator("#history").is_visible()
    page.click("#new")
    few_tokens(page)
    ask(page, "On a phone")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    context.close()


THREAD = {
    "spans": [
        {
            "start": 0,
            "end": 5,
            "text": "",
            "count": 3,
            "documents": [
                {
                    "id": "doc-1 <b>",
                    "source": "library",
                    "origin": "documents/library/0.jsonl:4",
                    "passage": {"before": "before ", "match": "match", "after": " after", "cut_before": True},
                    "passage_steps": [3, 1200],
                }
            ],
        }
    ]
}


def test_a_click_on_an_answer_shows_its_documents(browser: Any, server: Running) -> None:
    """The panel, with the index's answer put in the server's place (the trace room tests the real one)."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    info = server.call("GET", "/loom/info")[1] | {"trace": True}
    asked: list[Any] = []
    page.route("**/loom/info", lambda route: route.fulfill(json=info))

    def answer(route: Any) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(json=THREAD)

    page.route("**/loom/trace", answer)
    page.goto(server.url + "/")
    page.wait_for_selector("#facts:not(:empty)", state="attached")
    few_tokens(page)
    text = ask(page, "Where from?")
    page.locator(".message.assistant .text").click()
    page.wait_for_selector(".document")
    assert asked == [{"text": text, "prompt": "Where from?"}]
    assert page.locator(".message.assistant mark").text_content() == "".join(list(text)[:5])
    panel = page.locator("#thread-body").text_content()
    for part in ("doc-1 <b>", "library", "before match after", "Read at steps 3, 1,200"):
        assert part in panel
    page.keyboard.press("Escape")
    assert page.locator("#thread").is_hidden()
    assert page.locator(".message.assistant mark").count() == 0
    context.close()
