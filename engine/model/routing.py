"""Routing of tokens to experts: one function for all served mixtures.

A row of the result depends on that row of the logits alone, and nothing waits for the device.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Score = Literal["softmax", "sigmoid", "chosen"]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a mixture routes tokens.

    score: softmax or sigmoid over all experts; or "chosen": softmax over the chosen experts alone.
    A token may be limited to the experts of its best `groups_per_token` groups; the score of a group is the sum of its
    `scores_per_group` best scores (DeepSeek-V2, arXiv:2405.04434; V3, arXiv:2412.19437).
    """

    experts_per_token: int
    score: Score = "softmax"
    normalized: bool = False  # a token's weights sum to 1, before `scale`
    scale: float = 1.0
    num_groups: int = 1
    groups_per_token: int = 1
    scores_per_group: int = 1


def route(logits: Tensor, routing: Routing, correction: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Route by logits [T, E] fp32; returns experts [T, K] int64 and their weights [T, K] fp32.

    `correction` [E] fp32 is added to the scores for choosing experts, but not to the weights.
    """
    if routing.score == "chosen":
        values, experts = logits.topk(routing.experts_per_token, dim=-1)
        return experts, values.softmax(-1)
    scores = logits.softmax(-1) if routing.score == "softmax" else _sigmoid(logits)
    choice = scores if correction is None else scores + correction
    if routing.groups_per_token < routing.num_groups:
        choice = _within_best_groups(choice, routing)
    experts = choice.topk(routing.experts_per_token, dim=-1).indices
    weights = scores.gather(-1, experts)
    if routing.normalized:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * routing.scale


def _sigmoid(x: Tensor) -> Tensor:
    """As a softmax of two, since on a CPU `sigmoid` rounds a tensor's last elements (the SIMD tail) differently."""
    return torch.stack((x, torch.zeros_like(x)), dim=-1).softmax(-1)[..., 0]


def _within_best_groups(choice: Tensor, routing: Routing) -> Tensor:
    """Return `choice` [T, E] with minus infinity outside each token's best groups."""
    groups = choice.view(len(choice), routing.num_groups, -1)  # [T, groups, E / groups]
    group_scores = groups.topk(routing.scores_per_group, dim=-1).values.sum(-1)
    best = group_scores.topk(routing.groups_per_token, dim=-1).indices
    outside = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, best, value=False)
    return groups.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(1)
