"""AdamW with OLMo's groups, clipping and a guard that skips a bad step without asking the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from loom.train.config import OptimizerConfig

WINDOW = 128


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Matrices decay; the embedding (hence a tied output matrix) and gains do not, unless asked."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        embedding = name.removeprefix("module.") == "embed.weight"
        matrix = parameter.ndim == 2 and (not embedding or config.decay_embeddings)
        gain = parameter.ndim == 1 and config.decay_embeddings
        (decayed if matrix or gain else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """L2 norm of all gradients [scalar]; they are scaled by min(1, limit / (norm + 1e-6)) in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


class StepGuard:
    """Skips a step whose loss or gradient norm is not finite or, with `deviations`, a spike.

    A spike lies above the mean of the last 128 by more than that many standard deviations (OLMo-core's
    SkipStepOptimizer). All of it is tensors on the device: the optimizer reads a flag there, the host
    only when it logs.
    """

    def __init__(self, deviations: float | None, device: torch.device) -> None:
        self.deviations = deviations
        self.history = torch.full((2, WINDOW), torch.nan, dtype=torch.float32, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.not_finite = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def check(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 where this step must not be taken, else 0: float32 scalar."""
        values = torch.stack((loss.float(), norm.float()))
        finite = values.isfinite().all()
        bad = ~finite
        if self.deviations is not None:
            known = ~self.history.isnan()
            number = known.sum(1).clamp(min=2)
            past = self.history.nan_to_num()
            mean = past.sum(1) / number
            spread = (((past - mean[:, None]) * known).square().sum(1) / (number - 1)).sqrt()
            bad |= (self.count >= WINDOW) & (values > mean + self.deviations * spread).any()
            slot = (self.count % WINDOW).view(1)
            kept = torch.where(bad, self.history.index_select(1, slot), values[:, None])
            self.history.index_copy_(1, slot, kept)
            self.count += ~bad
        self.skipped += bad
        self.not_finite += ~finite
        return bad.float()

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "history": self.history,
            "count": self.count,
            "skipped": self.skipped,
            "not_finite": self.not_finite,
        }
