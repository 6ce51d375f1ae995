"""The one place that prints: progress, tables, the closing JSON object.

Everything a person reads goes to standard output, or to standard error under `--json`, so that the
last line of standard output is then the JSON object and nothing else is on it. On a terminal,
progress is a live bar; elsewhere it is a plain line every few seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PLAIN_INTERVAL = 10.0  # seconds between progress lines where there is no terminal


@dataclass
class Console:
    json_mode: bool = False
    quiet: bool = False
    _rich: Any = field(default=None, repr=False)

    @property
    def rich(self) -> Any:
        """The underlying rich console, made on first use (importing rich costs time)."""
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(
                stderr=self.json_mode,
                highlight=False,
                width=None if self._terminal() else 120,
                soft_wrap=not self._terminal(),
            )
        return self._rich

    def set_json(self, on: bool) -> None:
        self.json_mode = on
        self._rich = None

    def _terminal(self) -> bool:
        return (sys.stderr if self.json_mode else sys.stdout).isatty()

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print one line of text exactly as it is (no markup is interpreted)."""
        if not self.quiet:
            self.rich.print(text, style=style, markup=False)

    def heading(self, text: str) -> None:
        self.say()
        self.say(text, style="bold")

    def warn(self, text: str) -> None:
        """A warning goes to standard error, also in quiet mode."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1
    ) -> None:
        """Print a table. The first `left` columns are aligned left, the others right."""
        if self.quiet:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
        for index, name in enumerate(columns):
            table.add_column(name, justify="left" if index < left else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(format_value(value)) for value in row))
        self.rich.print(table)

    @contextmanager
    def progress(self, description: str, total: float | None = None) -> Iterator[Progress]:
        """A progress display; call `.advance(n)` or `.update(done, note)` on what is yielded."""
        live = self._terminal() and not self.quiet
        bar = _LiveProgress(self, description, total) if live else _PlainProgress(self, description, total)
        try:
            yield bar
        finally:
            bar.close()

    def result(self, value: Any) -> None:
        """Print `value` as one JSON object, the last line of standard output."""
        sys.stdout.flush()
        sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str) + "\n")
        sys.stdout.flush()


class Progress:
    """What `Console.progress` yields."""

    def __init__(self, console: Console, description: str, total: float | None) -> None:
        self.console, self.description, self.total = console, description, total
        self.done = 0.0
        self.note = ""

    def advance(self, amount: float = 1) -> None:
        self.update(self.done + amount)

    def update(self, done: float, note: str | None = None) -> None:
        self.done = done
        if note is not None:
            self.note = note
        self.draw()

    def draw(self) -> None: ...

    def close(self) -> None: ...


class _PlainProgress(Progress):
    def __init__(self, console: Console, description: str, total: float | None) -> None:
        super().__init__(console, description, total)
        self._next = time.monotonic() + PLAIN_INTERVAL
        self._shown = False
        self._since: tuple[float, float] | None = None  # where and when the work at hand began

    def draw(self) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = (self.done, now)
        if now < self._next:
            return
        self._next = now + PLAIN_INTERVAL
        self._shown = True
        of = f"/{format_value(self.total)}" if self.total else ""
        done, began = self._since
        left = ""
        if self.total and self.done > done:
            left = f"  {(self.total - self.done) * (now - began) / (self.done - done):.0f} s left"
        self.console.say(f"{self.description}: {format_value(self.done)}{of}{left}  {self.note}".rstrip())

    def close(self) -> None:
        if self._shown:
            self.console.say(f"{self.description}: {format_value(self.done)} done  {self.note}".rstrip())


class _LiveProgress(Progress):
    def __init__(self, console: Console, description: str, total: float | None) -> None:
        super().__init__(console, description, total)
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
        ]
        columns += [TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
        self._bar = RichProgress(*columns, console=console.rich, transient=True)
        self._task = self._bar.add_task(description, total=total, count="", note="")
        self._bar.start()

    def draw(self) -> None:
        of = f"/{format_value(self.total)}" if self.total else ""
        count = f"{format_value(self.done)}{of}"
        self._bar.update(self._task, completed=self.done, count=count, note=self.note)

    def close(self) -> None:
        self._bar.stop()


def format_value(value: Any) -> str:
    """A cell as people read it: thousands separated, floats to four significant digits, None as a dash."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            if value != value:
                return "n/a"
            if value == int(value) and abs(value) < 1e15:
                return f"{int(value):,}"
            return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
        case _:
            return str(value)


def format_bytes(count: float) -> str:
    """Bytes in decimal units: 15_300_000 is '15.3 MB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


console = Console()
