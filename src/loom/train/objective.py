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

from loom.train.branches import branch_mask
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
            flat = [hidden.flatten(0, 1), labels.flatten(), weights.flatten()]
            if batch.targets is not None:
                flat = [values[batch.targets] for values in flat]
            return weighted_loss(flat[0], matrix, flat[1], flat[2], self.z_loss)

        total, z_total = model(
            batch.input_ids,
            position_ids=batch.position_ids,
            document_ids=batch.document_ids,
            attn_mask=batch.attn_mask,
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
    assert batch.labels is not None and batch.segments is not None and batch.targets is not None
    assert batch.document_ids is not None and batch.branches is not None and batch.pairs is not None
    targets = batch.targets
    labels = batch.labels.flatten()[targets]

    def readout(hidden: Tensor, matrix: Tensor) -> Tensor:
        return token_logprobs(hidden.flatten(0, 1)[targets], matrix, labels)

    tokens = model(
        batch.input_ids,
        position_ids=batch.position_ids,
        attn_mask=branch_mask(batch.document_ids, batch.branches),
        readout=readout,
    )
    answers = 2 * len(batch.pairs)
    slots = batch.segments.flatten()[targets]
    sums = torch.zeros(answers, dtype=torch.float32, device=labels.device).index_add(0, slots, tokens)
    counts = torch.zeros_like(sums).index_add(0, slots, torch.ones_like(tokens))
    return sums.view(-1, 2), counts.view(-1, 2)


def dpo_loss(margin: Tensor, config: DpoConfig) -> Tensor:
    """Loss of each pair [P] from h = (log pi(c) - log pi(r)) - (log ref(c) - log ref(r)).

    sigmoid: -log sigmoid(beta h) (Rafailov et al. 2023, eq. 7); norm: the same on per-token averages;
    ipo: (h - 1 / (2 beta))² on per-token averages (Azar et al. 2023, eq. 17). With label smoothing s,
    sigmoid and norm become (1 - s) loss(h) + s loss(-h) (Mitchell 2023, conservative DPO).
    """
    if config.loss == "ipo":
        return (margin - 1 / (2 * config.beta)).square()
    scaled, smoothing = config.beta * margin, config.label_smoothing
    if smoothing:
        return -(1 - smoothing) * F.logsigmoid(scaled) - smoothing * F.logsigmoid(-scaled)
    return -F.logsigmoid(scaled)


@dataclass(frozen=True)
class Preference:
    """dpo. `reference` [pairs, 2] float32: what the reference model gives chosen and rejected.

    Logged besides rewards: `kl_estimate`, half the squared log-ratio of policy and reference over the
    pairs' answers, in nats an answer (Schulman 2020, k2; the answers are the data's, not the policy's);
    `favoured_longer`, by how many tokens the answer that the policy has come to favour is the longer one.
    """

    config: DpoConfig
    reference: Tensor

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        assert batch.pairs is not None
        policy, counts = answer_logprobs(model, batch)
        gain = policy - self.reference[batch.pairs.cpu()].to(policy.device)
        drift = gain.detach().square().sum() / 4
        if self.config.loss != "sigmoid":
            gain = gain / counts
        margin = gain[:, 0] - gain[:, 1]
        total = dpo_loss(margin, self.config).sum()
        rewards = self.config.beta * gain.detach()
        longer = (counts[:, 0] - counts[:, 1]) * margin.detach().sign()
        return total, {
            "loss": total.detach(),
            "reward_chosen": rewards[:, 0].sum(),
            "reward_rejected": rewards[:, 1].sum(),
            "reward_margin": (rewards[:, 0] - rewards[:, 1]).sum(),
            "reward_accuracy": (margin.detach() > 0).float().sum(),
            "kl_estimate": drift,
            "favoured_longer": longer.sum(),
        }


def build_objective(config: RunConfig, reference: Tensor | None) -> Objective:
    if config.train.objective != "dpo":
        return LanguageModel(config.train.z_loss)
    assert reference is not None
    return Preference(config.dpo, reference)
