"""A run that is sent to a real tracker, and what the tracker's own files then hold, printed as JSON.

python -m tests.train.tracked wandb|trackio SITE_PACKAGES TOKENS OUT
"""

import json
import os
import site
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def logged(data: bytes) -> Iterator[bytes]:
    """Records of a log of LevelDB's kind: blocks of 32 KiB, in them (checksum, length, type) and a part."""
    record, at = b"", 7  # after wandb's own mark
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or a last part
            yield record
            record = b""


def wandb_records(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of an offline run's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in logged(next(folder.rglob("run-*.wandb")).read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            values = {key: json.loads(value) for key, value in items.items()}
            found.append((int(values["step"]), values))
    return found


def trackio_records(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of the local data base."""
    with sqlite3.connect(next(folder.rglob("loom*.db"))) as base:
        rows = base.execute("select step, metrics from metrics order by step, id").fetchall()
    return [(step, json.loads(values)) for step, values in rows]


def main(name: str, packages: str, tokens: Path, out: Path) -> None:
    site.addsitedir(packages)  # behind this environment's own
    os.environ |= {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(out / "trackio"),
        "TRACKIO_SHOW_DASHBOARD": "0",
        "HF_HUB_OFFLINE": "1",
    }
    from loom.road.tracking import trackers
    from loom.train.loop import train
    from tests.train.test_loop import recipe

    def evaluate(model: Any, step: int) -> dict[str, float]:
        return {"heldout/loss": 2.5 + step}

    train(recipe(tokens, steps=6), out / "run", callbacks=trackers([name]), evaluate=evaluate)
    read = wandb_records if name == "wandb" else trackio_records
    print(json.dumps(read(out)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
