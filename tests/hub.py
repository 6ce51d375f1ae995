"""A server on this machine that speaks the Hub's protocol as far as reading needs: what a repository is, its tree,
what is known of some paths, and its files, whole or by ranges. The client is always huggingface_hub's own."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1" * 40
Files = Mapping[tuple[str, str], bytes]  # (data set, path in it) -> bytes


class Hub(http.server.BaseHTTPRequestHandler):
    """The data sets `files` at one revision; anything else is not found, with the Hub's own codes."""

    protocol_version = "HTTP/1.1"
    files: Files
    revision: str

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        asked = json.loads(form)["paths"] if form.startswith("{") else parse_qs(form).get("paths", [])
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", self.path)
        if not match or unquote(match[2]) != self.revision:
            return self.missing("RepoNotFound")
        tree = self.tree(match[1], "", recursive=True)
        self.give(json.dumps([entry for entry in tree if entry["path"] in asked]).encode())

    def answer(self) -> None:
        url = urlsplit(self.path)
        owned = {repository for repository, _ in self.files}
        if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
            data = self.files.get((match[1], unquote(match[3])))
            if data is None or unquote(match[2]) != self.revision:
                return self.missing("EntryNotFound")
            return self.give(data, "application/octet-stream")
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(tree|revision)/([^/]+)(?:/(.*))?)?", url.path)
        if not match or match[1] not in owned:
            return self.missing("RepoNotFound")
        if match[3] and unquote(match[3]) != self.revision:
            return self.missing("RevisionNotFound")
        if match[2] == "tree":
            entries = self.tree(match[1], unquote(match[4] or ""), "recursive=true" in url.query.lower())
            return self.give(json.dumps(entries).encode()) if entries else self.missing("EntryNotFound")
        self.give(json.dumps({"id": match[1], "sha": COMMIT, "siblings": []}).encode())

    def tree(self, repository: str, under: str, recursive: bool) -> list[dict[str, object]]:
        """The files and folders below a folder; only its own where it is not `recursive`."""
        prefix = f"{under}/" if under else ""
        found: dict[str, dict[str, object]] = {}
        for (owner, name), data in self.files.items():
            if owner != repository or not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else 1 + (len(parts) > 1)):
                if depth < len(parts):
                    folder = prefix + "/".join(parts[:depth])
                    found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                oid = hashlib.sha1(data).hexdigest()
                found[name] = {"type": "file", "path": name, "size": len(data), "oid": oid}
        return list(found.values())

    def give(self, data: bytes, kind: str = "application/json") -> None:
        total, part = len(data), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part:
            data = data[int(part[1]) : int(part[2]) + 1]
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {part[1]}-{int(part[1]) + len(data) - 1}/{total}")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def hub(files: Files, revision: str = "main") -> Iterator[str]:
    """Serve `files` on loopback; yields the address that HF_ENDPOINT takes."""
    kind = type("These", (Hub,), {"files": files, "revision": revision})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
