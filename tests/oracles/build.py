"""Builds the environments of the systems Loom must agree with, each in a folder of its own.

Run by `make test` and `make bench`. An environment that is already built is left alone; one that
cannot be had is named and skipped, and the tests that need it skip by name (with CI=true they fail).
"""

from __future__ import annotations

import subprocess
import sys
import time
import venv
from pathlib import Path

PEERS = Path(__file__).resolve().parents[2] / ".peers"
TORCH = "torch>=2.9,<2.14"

# name -> what pip is asked for, in turn. Without pins pip searches for minutes.
ORACLES: dict[str, list[list[str]]] = {
    "dolma": [
        [TORCH],
        ["dolma==1.2.1", "boto3==1.26.76", "botocore==1.29.76"],
        ["detect-secrets==1.5.0", "beautifulsoup4==4.15.0", "pygments==2.21.0", "regex==2026.11.15"],
        [
            "fastwarc==2.0.1",
            "resiliparse==2.0.1",
            "w3lib==2.5.0",
            "url-normalize==3.1.0",
            "dateparser==1.5.0",
        ],
    ],
    "datatrove": [["datatrove==0.10.1", "nltk", "orjson", "regex", "spacy>=3.8,<4", "tokenizers", "xxhash"]],
    # OLMo imports `datasets` without asking for it.
    "ai2-olmo": [[TORCH], ["ai2-olmo==0.6.0", "numpy<2", "datasets==4.4.1", "pyarrow==21.0.0", "pandas<3"]],
    "infini-gram": [["infini-gram==2.6.0", "numpy", "tqdm"]],
    # Tokenizer files and templates need no torch.
    "transformers-4": [["transformers==4.46.3", "tokenizers==0.20.3", "jinja2==3.1.6"]],
    "trackers": [["wandb==0.31.0", "trackio==0.43.0"]],
}


def interpreter(name: str) -> Path:
    """The Python of a peer's environment; it exists only when the environment is complete."""
    return PEERS / name / "bin" / "python"


def is_built(name: str) -> bool:
    stamp = PEERS / name / ".built"
    return stamp.is_file() and stamp.read_text() == repr(ORACLES[name])


def build(name: str) -> None:
    folder = PEERS / name
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    for requirements in ORACLES[name]:
        command = [str(interpreter(name)), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*command, *requirements], check=True, timeout=1200)
    (folder / ".built").write_text(repr(ORACLES[name]))


def main(names: list[str]) -> None:
    for name in names or list(ORACLES):
        if is_built(name):
            continue
        started = time.monotonic()
        print(f"building the oracle environment {name} ...", flush=True)
        try:
            build(name)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"the oracle {name} cannot be had here, its tests will skip: {error}", file=sys.stderr)
        else:
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
