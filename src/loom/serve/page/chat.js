"use strict";
// The chat page. Text from people and from the model is only ever put in as text.

const $ = (id) => document.getElementById(id);
const DEFAULTS = { system: "", temperature: 0.7, top_p: 0.95, min_p: 0, repetition_penalty: 1, top_k: "", max_tokens: "", seed: "" };
const RANGES = ["temperature", "top_p", "min_p", "repetition_penalty"];
const STORE = "loom.chats.v1";

let info = { model: "", trace: false, context: 0 };
let chats = [];
let current = null;
let settings = { ...DEFAULTS };
let running = null; // the AbortController of the answer being written

// --- keeping ---------------------------------------------------------------------------------

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) || "{}");
    chats = Array.isArray(kept.chats) ? kept.chats : [];
    settings = { ...DEFAULTS, ...kept.settings };
  } catch { chats = []; }
}
function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify({ chats: chats.slice(0, 200), settings }));
  } catch { banner("This browser keeps no more conversations; export or delete some.", true); }
}

// --- small parts -----------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
function banner(text, note = false) {
  $("banner").hidden = !text;
  $("banner").className = note ? "note" : "";
  $("banner").firstElementChild.textContent = text;
}
function formatted(text) {
  // Fenced code in <pre>, the rest as it is.
  const out = document.createDocumentFragment();
  text.split(/^```[^\n]*\n?/m).forEach((part, i) => {
    if (i % 2) out.append(make("pre", {}, part.replace(/\n$/, "")));
    else if (part) out.append(part);
  });
  return out;
}
const codePoints = (text) => Array.from(text);

// --- conversations ---------------------------------------------------------------------------

function fresh() {
  stop();
  current = { id: String(Date.now()) + Math.random().toString(36).slice(2, 7), title: "", messages: [] };
  closeThread();
  draw();
  document.body.classList.remove("menu");
  $("input").focus();
}
function open(id) {
  stop();
  current = chats.find((chat) => chat.id === id) || current;
  closeThread();
  draw();
  document.body.classList.remove("menu");
}
function remember() {
  if (!current.messages.length) return;
  current.title ||= current.messages[0].content.slice(0, 60);
  chats = [current, ...chats.filter((chat) => chat.id !== current.id)];
  keep();
  drawHistory();
}
function forget(id) {
  chats = chats.filter((chat) => chat.id !== id);
  keep();
  if (current.id === id) fresh(); else drawHistory();
}
function drawHistory() {
  $("chats").replaceChildren(...chats.map((chat) => make("li", { class: chat.id === current.id ? "current" : "" },
    make("button", { onclick: () => open(chat.id) }, chat.title),
    make("button", { class: "icon", "aria-label": "Delete " + chat.title, onclick: () => forget(chat.id) }, "×"))));
}
function draw() {
  const box = $("messages");
  box.replaceChildren($("empty"), ...current.messages.map(drawMessage));
  $("empty").hidden = current.messages.length > 0;
  drawHistory();
  box.scrollTop = box.scrollHeight;
}
function drawMessage(message, index) {
  const text = make("div", { class: "text" });
  const tools = make("div", { class: "tools" });
  const node = make("article", { class: "message " + message.role, "aria-label": message.role }, text, tools);
  node.message = message;
  if (message.role === "assistant") text.addEventListener("click", () => {
    if (info.trace && !running && !String(getSelection())) thread(message, node, index);
  });
  fill(node);
  const tool = (name, act, title = "") => tools.append(make("button", { class: "quiet", title, onclick: act }, name));
  tool("Copy", () => navigator.clipboard.writeText(message.content).then(() => banner("Copied.", true), () => banner("The browser did not allow copying.")));
  if (message.role === "user") tool("Edit", () => edit(node, index));
  else {
    tool("Regenerate", () => regenerate(index));
    if (info.trace) tool("Thread", () => thread(message, node, index), "The training documents this answer echoes");
  }
  if (message.stats) tools.append(make("span", { class: "stats" }, message.stats));
  return node;
}
function fill(node) {
  node.querySelector(".text").replaceChildren(formatted(node.message.content));
}
function edit(node, index) {
  stop(true);
  const area = make("textarea", { rows: "3", "aria-label": "Edit message" });
  area.value = current.messages[index].content;
  const done = () => {
    const text = area.value.trim();
    if (!text) return;
    current.messages.splice(index);
    say(text);
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); done(); }
    if (event.key === "Escape") { event.stopPropagation(); draw(); }
  });
  node.replaceChildren(make("div", { class: "edit" }, area,
    make("div", { class: "tools" }, make("button", { class: "quiet", onclick: done }, "Send"),
      make("button", { class: "quiet", onclick: draw }, "Cancel"))));
  area.focus();
}
function regenerate(index) {
  stop(true);
  current.messages.splice(index);
  draw();
  answer(true);
}
function say(text) {
  current.messages.push({ role: "user", content: text });
  remember();
  draw();
  answer(false);
}

// --- answers ---------------------------------------------------------------------------------

function body(messages, again, reserve) {
  const asked = { model: info.model, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of RANGES) asked[name] = Number(settings[name]);
  for (const name of ["top_k", "max_tokens", "seed"]) if (settings[name] !== "") asked[name] = Number(settings[name]);
  if (again) delete asked.seed;
  if (reserve) asked.reserve = asked.max_tokens ? Math.min(asked.max_tokens, reserve) : reserve;
  return JSON.stringify(asked);
}
async function post(path, content, signal) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem("loom.key");
  if (key) headers.authorization = "Bearer " + key;
  const response = await fetch(path, { method: "POST", headers, body: content, signal });
  if (response.ok) return response;
  let error = {};
  try { error = (await response.json()).error; } catch { /* the status says it */ }
  throw Object.assign(new Error(error.message || "The server answered " + response.status + "."), { code: error.code });
}
async function begin(again, signal) {
  // Whole turns are dropped, oldest first, until the conversation fits and leaves room for an answer; the last
  // turn alone may take that room too.
  let kept = current.messages.filter((m) => m.content).map(({ role, content }) => ({ role, content }));
  const head = settings.system.trim() ? [{ role: "system", content: settings.system.trim() }] : [];
  for (let dropped = 0, reserve = info.reserve; ;) {
    try {
      const response = await post("v1/chat/completions", body([...head, ...kept], again, reserve), signal);
      if (dropped) banner(dropped + " older messages no longer fit the context and were left out.", true);
      return response;
    } catch (error) {
      const next = kept.findIndex((m, i) => i > 0 && m.role === "user");
      if (error.code !== "context_length_exceeded" || (next < 0 && !reserve)) throw error;
      if (next < 0) reserve = 0;
      else { dropped += next; kept = kept.slice(next); }
    }
  }
}
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
    if (done) return;
  }
}
async function answer(again) {
  if (running) return;
  banner("");
  closeThread();
  const mine = (running = new AbortController());
  const chat = current;
  const message = { role: "assistant", content: "" };
  const begun = performance.now();
  let node = null;
  let reason = "", usage = null, first = 0;
  busy(true);
  try {
    const response = await begin(again, mine.signal);
    chat.messages.push(message);
    node = drawMessage(message, chat.messages.length - 1);
    node.classList.add("streaming");
    $("messages").append(node);
    for await (const event of events(response)) {
      if (mine.signal.aborted) { reason = "stopped"; break; } // what had come already is not shown either
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const choice = event.choices[0];
      if (!choice) continue;
      if (choice.delta.content) {
        first ||= performance.now();
        message.content += choice.delta.content;
        const box = $("messages");
        const below = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
        fill(node);
        if (below) box.scrollTop = box.scrollHeight;
      }
      reason = choice.finish_reason || reason;
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else banner(error.message === "Failed to fetch" ? "The server cannot be reached." : error.message);
  }
  if (node) {
    const seconds = (performance.now() - (first || begun)) / 1000;
    const parts = [];
    if (usage) parts.push(usage.completion_tokens + " tokens", (usage.completion_tokens / Math.max(seconds, 0.001)).toFixed(1) + "/s",
      usage.total_tokens + " of " + info.context + " in the context");
    if (reason === "length") parts.push("cut at the limit");
    if (reason === "stopped") parts.push("stopped");
    message.stats = parts.join(" · ");
  }
  if (running === mine) running = null;
  if (!running) busy(false);
  if (chat === current) { remember(); if (!mine.left) draw(); } else keep();
}
function busy(on) {
  $("stop").hidden = !on;
  $("send").hidden = on;
  $("messages").setAttribute("aria-busy", String(on));
}
function stop(left = false) {
  // `left`: the page goes on to something else, which a stopped answer must not draw over.
  if (running) { running.left = left; running.abort(); running = null; busy(false); }
}

// --- the thread ------------------------------------------------------------------------------

function closeThread() {
  $("thread").hidden = true;
  document.body.classList.remove("traced");
  for (const node of document.querySelectorAll(".message.assistant")) if (node.querySelector("mark")) fill(node);
}
async function thread(message, node, index) {
  closeThread();
  $("thread").hidden = false;
  document.body.classList.add("traced");
  const panel = $("thread-body");
  panel.replaceChildren(make("p", {}, "Looking this answer up in the training data…"));
  const question = current.messages.slice(0, index).reverse().find((m) => m.role === "user");
  try {
    const response = await post("loom/trace", JSON.stringify({ text: message.content, prompt: question ? question.content : "" }));
    const found = await response.json();
    if (!$("thread").hidden) showThread(found, message, node, panel);
  } catch (error) {
    panel.replaceChildren(make("p", {}, error.message));
  }
}
function showThread(found, message, node, panel) {
  const spans = [...found.spans].sort((a, b) => a.start - b.start);
  if (!spans.length) {
    panel.replaceChildren(make("p", {}, "No longer passage of this answer occurs word for word in the training data."));
    return;
  }
  const points = codePoints(message.content);
  const text = document.createDocumentFragment();
  const marks = [];
  let at = 0;
  for (const span of spans) {
    const start = Math.max(span.start, at);
    text.append(points.slice(at, start).join(""));
    const mark = make("mark", { tabindex: "0", title: span.count.toLocaleString("en") + " occurrences" }, points.slice(start, span.end).join(""));
    const choose = (event) => { event.stopPropagation(); list(span, mark); };
    mark.addEventListener("click", choose);
    mark.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(event); });
    text.append(mark);
    marks.push(mark);
    at = Math.max(at, span.end);
  }
  text.append(points.slice(at).join(""));
  node.querySelector(".text").replaceChildren(text);
  const list = (span, mark) => {
    for (const other of marks) other.classList.toggle("chosen", other === mark);
    const times = span.count.toLocaleString("en") + (span.count === 1 ? " place" : " places");
    panel.replaceChildren(
      make("p", {}, "“" + span.text.trim() + "” stands word for word in " + times + " of the training data."),
      ...span.documents.map(documentCard));
    panel.scrollTop = 0;
  };
  const longest = spans.reduce((a, b) => (b.end - b.start > a.end - a.start ? b : a));
  list(longest, marks[spans.indexOf(longest)]);
}
function documentCard(item) {
  const { before = "", match = "", after = "" } = item.passage || {};
  const card = make("article", { class: "document" },
    make("h3", {}, item.id),
    make("p", { class: "where" }, [item.source, item.origin].filter(Boolean).join(" · ")),
    make("blockquote", {}, (item.passage?.cut_before ? "…" : "") + nearest(before, -LINES), make("mark", {}, match), nearest(after, 0, LINES) + (item.passage?.cut_after ? "…" : "")));
  const about = item.metadata || {};
  for (const [name, value] of Object.entries({ URL: about.url, licence: about.licence || about.license, rules: (item.rules || []).join(", ") }))
    if (value) card.append(make("p", { class: "where" }, name + ": " + value));
  const own = item.passage_steps, whole = item.steps;
  if (own?.length) card.append(stepsLine("Read at", own));
  else if (whole?.length) card.append(stepsLine(own ? "Other parts of it were read at" : "Read at", whole));
  else if (own || whole) card.append(make("p", { class: "steps" }, "Not read by this run."));
  return card;
}

// The lines of a passage nearest to its match, so that the match is in sight.
const LINES = 4;
function nearest(text, ...lines) {
  return text.replace(/\n(?:[^\S\n]*\n){2,}/g, "\n\n").split("\n").slice(...lines).join("\n");
}
function stepsLine(what, steps) {
  const shown = steps.slice(0, 12).map((step) => step.toLocaleString("en")).join(", ");
  const more = steps.length > 12 ? " and " + (steps.length - 12) + " more" : "";
  return make("p", { class: "steps" }, what + (steps.length === 1 ? " step " : " steps ") + shown + more);
}

// --- settings and events ---------------------------------------------------------------------

function showSettings() {
  for (const name of Object.keys(DEFAULTS)) {
    $(name).value = settings[name];
    if (RANGES.includes(name)) $(name + "-value").textContent = settings[name];
  }
}
for (const name of Object.keys(DEFAULTS)) $(name).addEventListener("input", () => {
  settings[name] = $(name).value;
  if (RANGES.includes(name)) $(name + "-value").textContent = $(name).value;
  keep();
});
$("key").addEventListener("input", () => sessionStorage.setItem("loom.key", $("key").value));
$("defaults").addEventListener("click", () => { settings = { ...DEFAULTS }; keep(); showSettings(); });
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings-open").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("settings-open").setAttribute("aria-expanded", String(!$("settings").hidden));
});
$("menu").addEventListener("click", () => {
  const on = document.body.classList.toggle("menu");
  $("menu").setAttribute("aria-expanded", String(on));
});
$("messages").addEventListener("click", () => document.body.classList.remove("menu"));
$("banner").lastElementChild.addEventListener("click", () => banner(""));
$("new").addEventListener("click", fresh);
$("stop").addEventListener("click", () => stop());
$("thread-close").addEventListener("click", closeThread);
$("export").addEventListener("click", () => {
  const data = { model: info.model, exported: new Date().toISOString(), settings, messages: current.messages };
  const url = URL.createObjectURL(new Blob([JSON.stringify(data, null, 2)], { type: "application/json" }));
  const link = make("a", { href: url, download: "conversation.json" });
  link.click();
  URL.revokeObjectURL(url);
});
function grow() {
  $("input").style.height = "auto";
  $("input").style.height = $("input").scrollHeight + 2 + "px";
}
$("input").addEventListener("input", grow);
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("input").value.trim();
  if (!text || running) return;
  $("input").value = "";
  grow();
  say(text);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
  if (event.key === "ArrowUp" && !$("input").value) {
    const nodes = [...document.querySelectorAll(".message")];
    for (let i = nodes.length - 1; i >= 0; i--) if (nodes[i].message.role === "user") { event.preventDefault(); edit(nodes[i], i); break; }
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { if (running) stop(); else { closeThread(); document.body.classList.remove("menu"); } }
  if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); fresh(); }
});
async function start() {
  load();
  showSettings();
  fresh();
  try {
    const headers = {};
    const key = sessionStorage.getItem("loom.key");
    if (key) headers.authorization = "Bearer " + key;
    const response = await fetch("loom/info", { headers });
    if (response.status === 401) { banner("This server needs a key: put it in Settings and load the page again."); return; }
    info = await response.json();
    $("model").textContent = info.model;
    document.title = info.model + " · Loom";
    $("facts").textContent = info.parameters.toLocaleString("en") + " parameters · context " + info.context.toLocaleString("en");
    document.body.classList.toggle("can-trace", info.trace);
  } catch { banner("The server cannot be reached."); }
}
start();
