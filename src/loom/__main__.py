"""The `loom` command, also as `python -m loom`."""

import atexit
import gc


def run() -> None:
    """Run the command line. What a command imports lives until its end, so garbage is looked for seldom."""
    gc.set_threshold(100_000, 20, 100)
    atexit.register(gc.freeze)
    from loom.cli import main

    main()


if __name__ == "__main__":
    run()
