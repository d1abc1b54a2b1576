"""Inputs of mixtures of experts."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.api import Activation, Kernels
from tests.contract.kernels.backends import Backend


@dataclass(frozen=True)
class Mixture:
    """Weights of some experts, and tokens that are routed to them; no token goes to expert 1."""

    x: Tensor
    expert_ids: Tensor
    weights: Tensor
    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None
    down_bias: Tensor | None

    def run(self, kernels: Kernels, activation: Activation = "silu", bits: int = 16) -> Tensor:
        packed = kernels.pack_experts(self.gate_up, self.down, activation, self.gate_up_bias, self.down_bias, bits)
        return packed(self.x, self.expert_ids, self.weights)


def make_mixture(
    backend: Backend,
    num_tokens: int,
    *,
    num_experts: int = 6,
    per_token: int = 3,
    hidden: int = 64,
    ffn: int = 32,
    bias: bool = False,
) -> Mixture:
    ids = [random.Random(token).sample([0, *range(2, num_experts)], per_token) for token in range(num_tokens)]
    return Mixture(
        x=backend.randn(num_tokens, hidden),
        expert_ids=torch.tensor(ids, dtype=torch.int64).view(num_tokens, per_token).to(backend.device),
        weights=backend.fp32(num_tokens, per_token).softmax(-1),
        gate_up=backend.randn(num_experts, 2 * ffn, hidden) / hidden**0.5,
        down=backend.randn(num_experts, hidden, ffn) / ffn**0.5,
        gate_up_bias=backend.randn(num_experts, 2 * ffn) if bias else None,
        down_bias=backend.randn(num_experts, hidden) if bias else None,
    )
