"""The doctor passes what is right and names what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loom.errors import LoomError
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
    assert {f"attention {name}, float32, grouped" for name in ("math", "loom, for training")} <= good


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

    assert doctor.attention_case(CPU, torch.float32, False).distance(broken) > 0.05
    assert doctor.attention_case(CPU, torch.float32, True).distance(attend) < 1e-5


def test_heads_that_read_the_wrong_group_are_seen() -> None:
    def rolled(q, k, v, mask):
        return attend(q, k.roll(1, 1), v, mask)

    assert doctor.attention_case(CPU, torch.float32, False, groups=2).distance(rolled) > 0.05


def test_a_disk_that_gives_back_something_else_is_named_with_its_mend(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_same", lambda *_: False)
    disk, _ = doctor.disk_findings(tmp_path, 1)
    assert disk.verdict == "bad" and "choose another --out" in disk.mend
    monkeypatch.undo()
    block = os.urandom(doctor.MIB - 8)
    file = tmp_path / "file"
    parts = [number.to_bytes(8) + block for number in range(3)]
    for changed, same in ((parts, True), (parts[::-1], False), (parts[:2], False)):
        file.write_bytes(b"".join(changed))
        assert doctor._same(file, block, 3, 0) is same


def test_the_command_says_what_to_do_about_each_finding(tmp_path: Path, monkeypatch) -> None:
    from loom.cli.doctor import run

    found = [
        doctor.Finding("attention flash, bfloat16, causal", "bad", "off", 0.3, doctor.ATTENTION),
        doctor.Finding("attention flash, bfloat16, grouped", "bad", "off", 0.3, doctor.ATTENTION),
        doctor.Finding("disk", "bad", "READ BACK CHANGED", 1.0, "choose another disk"),
        doctor.Finding("clocks", "good", "ran", 1.0),
    ]
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: found)
    with pytest.raises(LoomError) as refused:
        run(tmp_path, 0.5, 1)
    said = str(refused.value)
    assert "flash, bfloat16, causal, attention flash, bfloat16, grouped: update torch" in said
    assert said.endswith("for disk: choose another disk.")


def test_not_a_number_is_infinitely_wrong() -> None:
    good = torch.ones(3, dtype=torch.float64)
    assert doctor.distance([torch.tensor([1.0, torch.nan, 1.0])], [good]) == float("inf")


def test_disk_and_clocks_and_words(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "attention_findings", lambda device: [])  # tried above
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
