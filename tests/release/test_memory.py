"""An export holds little more than one tensor at a time, whatever the model's size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loom.model.config import ModelConfig
from tests.release.conftest import Make

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from loom.release.export import Export, export
from loom.release.importing import import_model
torch.set_num_threads(1)
def peak():  # this program's own, which getrusage mixes with that of whoever started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
export(Path(sys.argv[1]), Path(sys.argv[3]))  # what is loaded once is loaded here
before = peak()
export(Path(sys.argv[2]), Path(sys.argv[4]), Export(shard_bytes=40_000_000))
print(json.dumps([before, peak()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_bounded_by_tensors_not_by_the_model(make_checkpoint: Make, tmp_path: Path) -> None:
    config = ModelConfig(512, 24, 8, 1408, 1280, 64, tied=True)
    whole, block = config.parameters * 4, config.parameters * 4 / config.n_layers
    small = make_checkpoint(ModelConfig(512, 1, 8, 1408, 1280, 64, tied=True), name="small")
    large = make_checkpoint(config, name="large")
    arguments = [str(p) for p in (small, large, tmp_path / "out-small", tmp_path / "out-large")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    # The check holds a block of source and export; allocators and file buffers take some.
    assert 0 < after - before < 2 * block + 64e6 < whole / 2
