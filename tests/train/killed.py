"""A run in a process of its own, for tests that kill it.

python -m tests.train.killed CONFIG.pickle OUT
"""

import pickle
import sys
from pathlib import Path

from loom.train.loop import train

if __name__ == "__main__":
    train(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))
