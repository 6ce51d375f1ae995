"""A run in a process of its own, for tests that kill it.

python -m tests.train.killed PICKLE OUT [STEPS SECONDS]

The pickle holds the recipe, or the recipe and the table of its SFT or DPO folder. With STEPS and SECONDS
the process kills itself so long after so many steps, whatever it is doing then.
"""

import os
import pickle
import signal
import sys
import threading
from pathlib import Path

from loom.train.callbacks import Callback
from loom.train.loop import train


class KillAfter(Callback):
    def __init__(self, steps: int, seconds: float) -> None:
        self.left, self.seconds = steps, seconds

    def on_start(self, run) -> None:
        self.on_step({})

    def on_step(self, record) -> None:
        if self.left == 0:
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        self.left -= 1


if __name__ == "__main__":
    given = pickle.loads(Path(sys.argv[1]).read_bytes())
    config, table = given if isinstance(given, tuple) else (given, None)
    killers = [KillAfter(int(sys.argv[3]), float(sys.argv[4]))] if len(sys.argv) > 3 else []
    train(config, Path(sys.argv[2]), documents=table, callbacks=killers)
