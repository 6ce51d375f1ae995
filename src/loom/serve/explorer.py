"""The explorer: a local page to look into a run. Plain pages from this process, no script, loopback only.

/            the artifacts behind the run, and what can be asked
/step?n=     the documents of a step's batch
/trace?text= where a text stands in the training tokens
/find?q=     documents by phrase
/document?   a document as the model read it, its rules, its steps
/corpus      the corpora behind the run, their files, a page of documents
/look?       a document of a corpus as it came in, what its attributes mark, its fate
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2

import loom
from loom.artifact import MANIFEST, Lineage, lineage, load
from loom.errors import LoomError
from loom.serve.browse import Corpora
from loom.trace.corpus import look_up
from loom.trace.inspect import inspect_step
from loom.trace.page import pieces
from loom.trace.query import Index, open_index
from loom.trace.reading import Reading, newest_checkpoint, open_reading, reading_of
from loom.trace.search import find_documents
from loom.trace.trace import trace
from loom.trace.visible import step_ranges, visible

SHOWN = 8  # instances of a step on a page
LONGEST = 20_000  # characters of a text to trace
HOST = "127.0.0.1"


class Explorer:
    """What the pages show of a run folder; `index` may be absent, then only steps can be looked at."""

    def __init__(self, run: Path, index: Path | None = None) -> None:
        self.run = run
        newest_checkpoint(run)
        found = index or next(
            (p for p in (run / "index", run.parent / "index") if (p / MANIFEST).is_file()), None
        )
        self.index_path = found

    @cached_property
    def index(self) -> Index:
        if self.index_path is None:
            raise LoomError(
                "There is no index beside this run: make one with loom index, and name it with --index."
            )
        return open_index(self.index_path)

    @cached_property
    def corpora(self) -> Corpora:
        return Corpora(lineage(newest_checkpoint(self.run)))

    def corpus(self, query: Mapping[str, str]) -> dict[str, Any]:
        return self.corpora.listing(query)

    def look(self, query: Mapping[str, str]) -> dict[str, Any]:
        return self.corpora.look(query) | {"query": query}

    @cached_property
    def reading(self) -> Reading:
        return open_reading(self.run)

    def home(self, query: Mapping[str, str]) -> dict[str, Any]:
        nodes: list[dict[str, Any]] = []
        _flatten(lineage(newest_checkpoint(self.run)), 0, nodes)
        return {"nodes": nodes, "last_step": self.reading.step}

    def step(self, query: Mapping[str, str]) -> dict[str, Any]:
        number = query.get("n", "1")
        if not number.isdigit():
            raise LoomError(f"{number!r} is no step: write a whole number.")
        return {
            "found": inspect_step(self.run, int(number), text=True, limit=SHOWN),
            "last": self.reading.step,
        }

    def trace(self, query: Mapping[str, str]) -> dict[str, Any]:
        text = query.get("text", "")
        if len(text) > LONGEST:
            raise LoomError(
                f"The text has {len(text):,} characters; up to {LONGEST:,} are traced on this page."
            )
        told = trace(self.index, text, run=self.run) if text.strip() else None
        spans = [{**span, "number": n, "shade": 2} for n, span in enumerate(told["spans"])] if told else []
        return {"asked": text, "spans": spans, "pieces": pieces(text, spans) if told else []}

    def find(self, query: Mapping[str, str]) -> dict[str, Any]:
        asked = query.get("q", "")
        return {
            "asked": asked,
            "found": find_documents(self.index, asked, 50, self.run) if asked.strip() else None,
        }

    def document(self, query: Mapping[str, str]) -> dict[str, Any]:
        wanted = query.get("id", "")
        documents = self.index.documents_with_id([wanted])
        if not documents:
            raise LoomError(f"No document of the index has the id {wanted!r}.")
        document = documents[0]
        ids = self.index.read(document).tolist()
        known: dict[str, Any] = {}
        for corpus in _document_folders(self.index):
            for _, value in look_up(corpus, {(document.id, document.origin)}):
                known = value
        steps: list[int] = []
        if document.token_shard is not None and document.token_start is not None:
            assert self.index.artifact is not None
            reading, source = reading_of(self.run, self.index.artifact.facts["index"]["tokens"])
            end = document.token_start + len(ids)
            steps = reading.steps(source, document.token_shard, document.token_start, end)
        text = self.index.tokenizer.decode([token for token in ids if token != self.index.tokenizer.eos_id])
        return {"document": document, "text": text, "known": known, "steps": steps, "tokens": len(ids)}

    def page(self, target: str) -> tuple[int, str]:
        """(status, HTML) of a request's path and query."""
        parts = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(parts.query, errors="replace").items()}
        views: dict[str, Callable[[Mapping[str, str]], dict[str, Any]]] = {
            "/": self.home,
            "/step": self.step,
            "/trace": self.trace,
            "/find": self.find,
            "/document": self.document,
            "/corpus": self.corpus,
            "/look": self.look,
        }
        view = views.get(parts.path)
        if view is None:
            return 404, self._render("error", message="There is no such page.")
        try:
            return 200, self._render(view.__name__, **view(query))
        except LoomError as error:
            return 400, self._render("error", message=str(error))

    @cached_property
    def _environment(self) -> jinja2.Environment:
        environment = jinja2.Environment(
            autoescape=True, loader=jinja2.FunctionLoader(_asset), undefined=jinja2.StrictUndefined
        )
        environment.filters |= {"visible": visible, "steps": step_ranges, "thousands": lambda n: f"{n:,}"}
        return environment

    def _render(self, view: str, **values: Any) -> str:
        template = self._environment.get_template("explorer.html")
        return template.render(view=view, run=str(self.run), version=loom.__version__, **values)


def _document_folders(index: Index) -> Any:
    from loom.trace.corpus import document_artifacts

    return document_artifacts(index)


def _flatten(node: Lineage, depth: int, out: list[dict[str, Any]]) -> None:
    """The artifacts behind a node, each once, those it was made from below it."""
    if str(node.path) in [item["path"] for item in out]:
        return
    counters = {}
    if node.kind not in ("file", "missing", "folder"):
        counters = {k: v for k, v in load(node.path).counters.items() if isinstance(v, int)}
    files = [item for item in node.parents if item.kind == "file"]
    out.append(
        {
            "kind": node.kind,
            "path": str(node.path),
            "digest": node.digest[:12],
            "depth": depth,
            "counters": counters,
            "files": len(files),
        }
    )
    for parent in node.parents:
        if parent.kind != "file":
            _flatten(parent, depth + 1, out)


def _asset(name: str) -> str:
    return files("loom.serve").joinpath(name).read_text(encoding="utf-8")


def make_server(explorer: Explorer, port: int) -> ThreadingHTTPServer:
    """A server on loopback; port 0 takes a free one. Requests that name another host are refused."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
            if host not in (HOST, "localhost", None):  # a page elsewhere, pointing its name here
                self.send_error(403)
                return
            status, page = explorer.page(self.path)
            body = page.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header(
                "Content-Security-Policy",
                "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
            )
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    return ThreadingHTTPServer((HOST, port), Handler)
