"""A server in a process of its own, as `loom serve` starts it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Running:
    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and parsed body (text where it is not JSON)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        given = {"content-type": "application/json"} if body is not None else {}
        connection.request(method, path, body, given | (headers or {}))
        response = connection.getresponse()
        content = response.read().decode()
        connection.close()
        try:
            return response.status, json.loads(content)
        except ValueError:
            return response.status, content

    def post(self, path: str, value: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        return self.call("POST", path, json.dumps(value).encode(), headers)

    def metric(self, name: str) -> float:
        """A figure of /metrics."""
        lines = self.call("GET", "/metrics")[1].splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def served(model: Path, options: Sequence[str] = (), env: dict[str, str] | None = None) -> Iterator[Running]:
    """`loom serve MODEL` until the block ends; then SIGTERM, which must end it with 0."""
    port = free_port()
    command = [sys.executable, "-m", "loom", "serve", str(model), "--port", str(port), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    running = Running(port, process)
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise AssertionError(f"the server ended: {process.stdout.read() if process.stdout else ''}")
            try:
                if running.call("GET", "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.2)
        else:
            raise AssertionError("the server did not come up")
        yield running
        if process.poll() is None:  # some tests end it themselves
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, "the server did not end with 0"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
