"""Routing: which experts a token uses, and with which weights, from the router's logits ``z [tokens, experts]``.

    s = softmax(z)  (arXiv:2101.03961)      or  sigmoid(z)  (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)
    chosen = the experts with the largest s + bias, in the groups whose two best experts have the largest sum of s + bias
             (DeepSeek-V2, arXiv:2405.04434, section 2.2.2: whose best expert has the largest s)
    weight = scale * s / sum of s of the chosen experts      (the division only if weights are normalised)

SparseMixer (arXiv:2409.12136, section 2.2) chooses two experts, one after the other, each the one with the largest logit m of those that
are left; its weight is its share of a softmax over those with (m - z) <= 2 jitter max(|z|, m). Phi-3.5-MoE has it.

The bias balances the load of experts in training; it changes which are chosen, and never their weights, so it stays in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...models.config import Experts


def choose(logits: Tensor, config: Experts, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The experts of each token.

    Args:
        logits: float32 ``[tokens, experts]``.
        config: the formula's parameters.
        bias: float32 ``[experts]`` or None.

    Returns:
        Weights, float32, and numbers of experts, int64, both ``[tokens, used]``.
    """
    if config.scoring == "sparsemixer":
        return _one_by_one(logits, config)
    scores = logits.sigmoid() if config.scoring == "sigmoid" else torch.softmax(logits, dim=-1)
    if bias is None and config.groups == 1:
        weights, chosen = scores.topk(config.used, dim=-1)
    else:
        preferred = scores if bias is None else scores + bias
        if config.groups > 1:
            preferred = _within_groups(preferred, config)
        chosen = preferred.topk(config.used, dim=-1).indices
        weights = scores.gather(-1, chosen)
    if config.normalised:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return (weights if config.scale == 1 else weights * config.scale), chosen


def _one_by_one(logits: Tensor, config: Experts) -> tuple[Tensor, Tensor]:
    weights, chosen, left = [], [], logits
    for _ in range(config.used):
        largest, expert = left.max(dim=-1, keepdim=True)
        distance = (largest - logits) / logits.abs().clamp(min=largest)
        near = left.masked_fill(distance > 2 * config.jitter, -math.inf)
        weights.append(torch.softmax(near, dim=-1).gather(-1, expert))
        chosen.append(expert)
        left = left.scatter(-1, expert, -math.inf)
    return torch.cat(weights, dim=-1), torch.cat(chosen, dim=-1)


def _within_groups(preferred: Tensor, config: Experts) -> Tensor:
    """Minus infinity outside the groups that a token may use."""
    grouped = preferred.view(*preferred.shape[:-1], config.groups, -1)
    best = (
        grouped.topk(config.group_best, dim=-1)
        .values.sum(-1)
        .topk(config.groups_used, dim=-1)
        .indices
    )
    allowed = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=preferred.device)
    allowed.scatter_(-1, best, True)
    return grouped.masked_fill(~allowed[..., None], -math.inf).flatten(-2)
