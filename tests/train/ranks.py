"""Run `train` on several gloo ranks, each a process of its own, as torchrun would."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch.multiprocessing as mp

from loom.train.config import RunConfig
from loom.train.loop import train


def set_rank(rank: int, ranks: int, port: int) -> None:
    """What torchrun tells a rank."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _rank(rank: int, ranks: int, port: int, config: RunConfig, out: Path) -> None:
    set_rank(rank, ranks, port)
    train(config, out)


def launch(ranks: int, config: RunConfig, out: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (ranks, port, config, out), nprocs=ranks)
