"""The doctor passes what is right and names what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loom.machine import doctor
from loom.model.attention import attend
from loom.train.devices import peak_flops
from loom.train.parallel import World

CPU = torch.device("cpu")


def test_this_machines_attention_is_right() -> None:
    found = doctor.attention_findings(CPU)
    assert all(finding.verdict in ("good", "absent") for finding in found)
    good = {finding.what for finding in found if finding.verdict == "good"}
    assert "attention math, float32, causal" in good
    assert "attention loom, for training, bfloat16, documents" in good


def test_a_wrong_backward_is_seen() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, slope):
            return slope * 1.1

    def broken(q, k, v, mask):
        return attend(q, Wrong.apply(k), v, mask)

    assert doctor.check_attention(broken, CPU, torch.float32, False) > 0.05
    assert doctor.check_attention(lambda q, k, v, m: attend(q, k, v, m), CPU, torch.float32, True) < 1e-5


def test_not_a_number_is_infinitely_wrong() -> None:
    good = torch.ones(3, dtype=torch.float64)
    assert doctor.distance([torch.tensor([1.0, torch.nan, 1.0])], [good]) == float("inf")


def test_disk_and_clocks_and_words(tmp_path: Path) -> None:
    found = doctor.examine(World(0, 1, CPU), tmp_path, seconds=0.2, megabytes=2)
    by_name = {finding.what: finding for finding in found}
    assert by_name["disk"].verdict == "good" and (by_name["disk"].value or 0) > 0
    assert "n/a" in by_name["device"].said and "torchrun" in by_name["communication"].said
    assert not list(tmp_path.iterdir())


def test_peaks_follow_the_drivers_names() -> None:
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("AMD Instinct MI250X") == 191.5e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("cpu") is None and peak_flops("NVIDIA GeForce RTX 4090") is None


@pytest.mark.slow
def test_the_command_over_two_ranks(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "loom", "doctor",
        "--seconds", "0.5", "--megabytes", "1", "--out", str(tmp_path), "--json",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    said = {item["what"]: item for item in found["findings"]}
    assert found["ranks"] == 2 and said["communication"]["verdict"] == "good"
    assert "over 2 ranks" in said["communication"]["said"] and said["communication"]["value"] > 0
