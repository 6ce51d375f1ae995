"""Peaks of devices: dense bf16 operations a second, from their makers' data sheets."""

from __future__ import annotations

import torch

# The first name that a device's own holds; one that is not here has no known peak, and no utilisation.
PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A10G", 70e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("MI250X", 191.5e12),  # one of its two dies, which is what torch sees
    ("MI300X", 1307e12),
    ("MI325X", 1307e12),
    ("MI355X", 2500e12),
)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(name: str) -> float | None:
    """Of a device by the name its driver gives; None where it is not known."""
    words = f" {name.replace('-', ' ')} "
    return next((peak for known, peak in PEAKS if f" {known} " in words), None)
