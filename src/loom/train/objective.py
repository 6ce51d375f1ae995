"""Objectives: (model, micro-batch) -> a loss sum and sums to log.

The loop divides every sum by the denominator of the whole step, over all micro-batches and ranks, so
that neither the split into micro-batches nor the number of ranks changes the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loom.train.config import DpoConfig, RunConfig
from loom.train.data import IGNORE, Batch
from loom.train.loss import token_logprobs, weighted_loss

Sums = dict[str, Tensor]


class Objective(Protocol):
    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        """The sum to differentiate (float32 scalar) and detached sums; all share the step's denominator."""
        ...


@dataclass(frozen=True)
class LanguageModel:
    """lm and sft: cross-entropy of the next token, weighted."""

    z_loss: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        labels, weights = next_tokens(batch)

        def readout(hidden: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
            return weighted_loss(
                hidden.flatten(0, 1), matrix, labels.flatten(), weights.flatten(), self.z_loss
            )

        total, z_total = model(
            batch.input_ids,
            position_ids=batch.position_ids,
            document_ids=batch.document_ids,
            readout=readout,
        )
        sums = {"loss": total.detach()}
        if self.z_loss:
            sums = {"loss": total.detach() - self.z_loss * z_total, "z_loss": self.z_loss * z_total}
        return total, sums


def next_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """(labels, weights) [B, T]; the last token of a row has no next."""
    if batch.labels is not None and batch.weights is not None:
        return batch.labels, batch.weights
    labels = torch.full_like(batch.input_ids, IGNORE)
    labels[:, :-1] = batch.input_ids[:, 1:]
    weights = (labels != IGNORE).float() if batch.weights is None else batch.weights
    return labels, weights


def answer_logprobs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(sum of log p over an answer's tokens, number of tokens), each [P, 2] for chosen and rejected."""
    assert batch.labels is not None and batch.segments is not None and batch.pairs is not None
    labels = batch.labels.flatten()

    def readout(hidden: Tensor, matrix: Tensor) -> Tensor:
        return token_logprobs(hidden.flatten(0, 1), matrix, labels)

    tokens = model(
        batch.input_ids, position_ids=batch.position_ids, document_ids=batch.document_ids, readout=readout
    )
    answers = 2 * len(batch.pairs)
    slots = batch.segments.flatten().clamp(min=0)
    sums = torch.zeros(answers, dtype=torch.float32, device=labels.device).index_add(0, slots, tokens)
    counts = torch.zeros_like(sums).index_add(0, slots, (labels >= 0).float())
    return sums.view(-1, 2), counts.view(-1, 2)


def dpo_loss(margin: Tensor, config: DpoConfig) -> Tensor:
    """Loss of each pair [P] from h = (log pi(c) - log pi(r)) - (log ref(c) - log ref(r)).

    sigmoid: -log sigmoid(beta h) (Rafailov et al. 2023, eq. 7); norm: the same on per-token averages;
    ipo: (h - 1 / (2 beta))² on per-token averages (Azar et al. 2023, eq. 17).
    """
    if config.loss == "ipo":
        return (margin - 1 / (2 * config.beta)).square()
    return -F.logsigmoid(config.beta * margin)


@dataclass(frozen=True)
class Preference:
    """dpo. `reference` [pairs, 2] float32: what the reference model gives chosen and rejected."""

    config: DpoConfig
    reference: Tensor

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        assert batch.pairs is not None
        policy, counts = answer_logprobs(model, batch)
        gain = policy - self.reference[batch.pairs.cpu()].to(policy.device)
        if self.config.loss != "sigmoid":
            gain = gain / counts
        margin = gain[:, 0] - gain[:, 1]
        total = dpo_loss(margin, self.config).sum()
        rewards = self.config.beta * gain.detach()
        return total, {
            "loss": total.detach(),
            "reward_chosen": rewards[:, 0].sum(),
            "reward_rejected": rewards[:, 1].sum(),
            "reward_margin": (rewards[:, 0] - rewards[:, 1]).sum(),
            "reward_accuracy": (margin.detach() > 0).float().sum(),
        }


def build_objective(config: RunConfig, reference: Tensor | None) -> Objective:
    if config.train.objective != "dpo":
        return LanguageModel(config.train.z_loss)
    assert reference is not None
    return Preference(config.dpo, reference)
