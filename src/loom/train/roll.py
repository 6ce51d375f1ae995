"""Who trains into a folder: one run at a time, and a rank that died is named, not a socket.

Every rank holds a lock on a file of its own in the run's folder. The kernel lets go of it when the process
ends, however it ends, so the others can tell who is gone; a rank that stops with an error writes it there.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from loom.errors import LoomError

PATIENCE = 10.0
"""Seconds that a rank which broke a connection may take to be gone."""


MARK = "A rank died and the others stopped:"


class Roll:
    """The ranks of a run by their files in `folder`, which all of them see.

    Raises `LoomError` where another process trains into that folder. On a file system without locks
    nobody can be named, and errors stay what they are.
    """

    def __init__(self, folder: Path, rank: int, size: int) -> None:
        self.folder, self.rank, self.size = folder, rank, size
        until = time.monotonic() + PATIENCE
        while not self._taken():
            if time.monotonic() > until:
                raise LoomError(
                    f"Another process trains into {folder.parent}: {self._held()}. Let it end, end it, or choose "
                    f"another --out."
                )
            time.sleep(0.1)
        self.stream.truncate(0)
        self.stream.write(f"{os.uname().nodename}, process {os.getpid()}\n")
        self.stream.flush()

    def _taken(self) -> bool:
        """Whether the lock is this process's now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stream = open(self._file(self.rank), "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it before may have removed the file meanwhile: then another process can lock a new one.
            if os.path.samestat(os.fstat(self.stream.fileno()), os.stat(self._file(self.rank))):
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:  # a file system without locks
            return True
        self.stream.close()
        return False

    def _held(self) -> str:
        try:
            return self._file(self.rank).read_text(encoding="utf-8").strip() or "it has just begun"
        except OSError:
            return "it has just ended"

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}"

    def close(self) -> None:
        """This rank ends well."""
        self._file(self.rank).unlink(missing_ok=True)
        self.stream.close()
        try:
            self.folder.rmdir()  # by whoever is last
        except OSError:
            return

    def leave(self, error: BaseException) -> None:
        """This rank ends by an error of its own; the lock goes with the process."""
        words = f"{type(error).__name__}: {error}"
        self.stream.write(words.replace("\n", " ") + "\n")
        self.stream.flush()

    def gone(self) -> dict[int, str]:
        """Ranks whose process has ended, and what is known of each: where it ran, its last words."""
        found = {}
        for rank in range(self.size):
            if rank == self.rank or not self._file(rank).exists():
                continue
            with open(self._file(rank), encoding="utf-8") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    continue
                place, _, words = stream.read().partition("\n")
            found[rank] = f"{place}; " + (words.strip() or "killed, without a word")
        return found

    def blame(self, error: Exception, newest: str) -> Exception:
        """What to raise for `error`: the ranks that are gone, if that is why, else `error` itself.

        `newest` says what the last whole checkpoint is; the first of the ranks that are left says it.
        """
        broken = error.__cause__ if isinstance(error, LoomError) else error
        if not isinstance(broken, RuntimeError):
            self.leave(error)
            return error
        until = time.monotonic() + PATIENCE
        while not (gone := self.gone()) and time.monotonic() < until:
            time.sleep(0.05)
        # Those that stopped because of another are not the ones to be named.
        guilty = {rank: known for rank, known in gone.items() if MARK not in known}
        if not guilty:
            self.leave(error)
            return error
        named = "; ".join(f"rank {rank} of {self.size} ({known})" for rank, known in guilty.items())
        mend = (
            f" {newest} See why it died (the kernel's log tells of memory that ran out), then run the same command "
            f"again, on as many ranks as there are."
        )
        first = min(set(range(self.size)) - set(gone))
        lost = LoomError(f"{MARK} {named}.{mend if self.rank == first else ''}")
        self.leave(lost)
        return lost
