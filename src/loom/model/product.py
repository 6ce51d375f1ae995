"""Products with weight matrices: torch's, or on a CPU in float32 those of the oneDNN inside torch.

torch gives float32 products to MKL, which on AMD's processors runs slower than oneDNN does (82 against
106 GFLOP/s on a core of an EPYC with AVX-512). The two round differently, so what must equal
`transformers` to the last bit goes through torch; scoring and reading prompts ask for `quick`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loom.model.transformer import Linear, Transformer


def _is_amd() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in lines)
    except OSError:
        return False


# oneDNN behind a name that torch's own compiler calls; a torch without it goes the other way.
_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available() and _is_amd()  # type: ignore[no-untyped-call]
    else None
)


def quick_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., d_in] times weight [d_out, d_in] transposed, by the faster library.

    Where gradients are asked for, and for all but float32 on a CPU, that is torch's own product.
    """
    plain = torch.is_grad_enabled() or x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel()
    if _ONEDNN is None or plain:
        return F.linear(x, weight)
    product: Tensor = _ONEDNN(x, weight, None, "none", [], "")
    return product


def hasten(model: Transformer) -> None:
    """Let a model that will not be trained multiply by `quick_linear`."""
    for part in model.modules():
        if isinstance(part, Linear):
            part.product = quick_linear
