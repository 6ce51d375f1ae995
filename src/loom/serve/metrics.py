"""The engine's counts in the text format that Prometheus reads."""

from __future__ import annotations

from dataclasses import asdict

from loom.serve.engine import Engine

HELP = {
    "requests": "Requests taken in.",
    "finished": "Requests answered to their end.",
    "cancelled": "Requests whose client left.",
    "failed": "Requests that failed.",
    "late": "Requests whose time was over before they were answered.",
    "prompt_tokens": "Tokens of prompts.",
    "tokens": "Tokens generated.",
    "steps": "Passes of the batch.",
    "tried": "Tokens tried by lookup.",
    "accepted": "Tried tokens that were kept.",
    "first_token_seconds": "Seconds from arrival to the first token, summed.",
    "busy_seconds": "Seconds in which the model worked.",
}


def prometheus(engine: Engine) -> str:
    """Counters and two gauges."""
    lines = []
    for name, value in asdict(engine.statistics).items():
        lines += [
            f"# HELP loom_{name}_total {HELP[name]}",
            f"# TYPE loom_{name}_total counter",
            f"loom_{name}_total {value}",
        ]
    for name, value, what in (
        ("running", engine.running, "Requests in the batch."),
        ("waiting", engine.waiting, "Requests in the queue."),
    ):
        lines += [f"# HELP loom_{name} {what}", f"# TYPE loom_{name} gauge", f"loom_{name} {value}"]
    return "\n".join(lines) + "\n"
