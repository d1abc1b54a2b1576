"""Mixtures of experts against their specification."""

import pytest

from kernels.api import Activation
from tests.contract.kernels.backends import ACTIVATIONS, REFERENCE, Backend
from tests.contract.kernels.mixtures import make_mixture


@pytest.mark.parametrize(
    ("num_tokens", "activation", "bias"),
    [
        (tokens, activation, (i + j) % 2 == 0)
        for i, tokens in enumerate((37, 1, 0))
        for j, activation in enumerate(ACTIVATIONS)
    ],
)
def test_experts(backend: Backend, num_tokens: int, activation: Activation, bias: bool) -> None:
    mixture = make_mixture(backend, num_tokens, bias=bias)
    backend.check(mixture.run(backend.kernels, activation), mixture.run(REFERENCE, activation))


@pytest.mark.parametrize(
    ("num_experts", "per_token", "hidden", "ffn"), [(2, 1, 33, 18), (12, 10, 96, 40), (4, 2, 128, 7)]
)
def test_shapes_of_experts(backend: Backend, num_experts: int, per_token: int, hidden: int, ffn: int) -> None:
    mixture = make_mixture(backend, 9, num_experts=num_experts, per_token=per_token, hidden=hidden, ffn=ffn)
    backend.check(mixture.run(backend.kernels), mixture.run(REFERENCE))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_experts(backend: Backend, bits: int) -> None:
    mixture = make_mixture(backend, 11, bias=True)
    backend.check(mixture.run(backend.kernels, "silu", bits), mixture.run(REFERENCE, "silu", bits))
