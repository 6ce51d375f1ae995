"""A run in a process of its own, for tests that kill it.

python -m tests.train.killed PICKLE OUT

The pickle holds the recipe, or the recipe and the table of its SFT or DPO folder.
"""

import pickle
import sys
from pathlib import Path

from loom.train.loop import train

if __name__ == "__main__":
    given = pickle.loads(Path(sys.argv[1]).read_bytes())
    config, table = given if isinstance(given, tuple) else (given, None)
    train(config, Path(sys.argv[2]), documents=table)
