"""The table of a curation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loom.console import console, format_bytes


def show(counters: Mapping[str, Any]) -> None:
    """Print documents and bytes in, removed by each rule, cut, masked, and out, by source."""
    rows: list[tuple[Any, ...]] = []
    for name, part in counters["sources"].items():
        rows.append((name, "in", part["documents_in"], format_bytes(part["bytes_in"])))
        if part["rejected"]:
            rows.append(("", "set aside: no documents", part["rejected"], None))
        rows += [
            ("", f"removed: {rule}", count, format_bytes(part["removed_bytes"][rule]))
            for rule, count in part["removed"].items()
        ]
        rows += [("", f"cut: {kind}", count, None) for kind, count in sorted(part["cut"].items())]
        rows += [("", f"masked: {kind}", count, None) for kind, count in sorted(part["masked"].items())]
        rows.append(("", "out", part["documents_out"], format_bytes(part["bytes_out"])))
    rows.append(("all", "in", counters["documents_in"], format_bytes(counters["bytes_in"])))
    rows.append(("", "out", counters["documents_out"], format_bytes(counters["bytes_out"])))
    console.table("Curation", ["source", "what", "count", "text"], rows, left=2)
