"""Run by the oracle's own Python: Dolma's Rust mixer and deduper on configurations, one a line of input.

    python dolma_run.py < configurations.jsonl

A line is {"verb": "mix" or "dedupe", "config": {...}}. A configuration that fails ends the process.
"""

import contextlib
import json
import os
import sys


def main() -> None:
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null), contextlib.redirect_stdout(null):
        import dolma
    for line in sys.stdin:
        job = json.loads(line)
        for folder in job["config"]["work_dir"].values():
            os.makedirs(folder, exist_ok=True)
        try:
            (dolma.mixer if job["verb"] == "mix" else dolma.deduper)(job["config"])
        except dolma.DolmaRustPipelineError as error:
            sys.exit(f"{job['config']}: {error}")


if __name__ == "__main__":
    main()
