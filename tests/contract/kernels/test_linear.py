"""Linear layers against exact products, also with quantised weights."""

import pytest
import torch

from kernels import quantize
from kernels.api import Activation
from tests.contract.kernels.backends import ACTIVATIONS, REFERENCE, Backend


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(1, 96, 64), (5, 50, 33), (27, 333, 100), (400, 64, 96), (0, 8, 8)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(backend: Backend, rows: int, outputs: int, inputs: int, bias: bool) -> None:
    x, weight = backend.randn(rows, inputs), backend.randn(outputs, inputs) / inputs**0.5
    added = backend.randn(outputs) if bias else None
    exact = x.double() @ weight.double().T + (0 if added is None else added.double())
    backend.check(backend.kernels.pack_linear(weight, added)(x), exact.to(backend.dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "outputs", "inputs", "bits"), [(1, 48, 64, 16), (40, 50, 33, 16), (7, 9, 96, 4)])
@pytest.mark.parametrize("bias", [False, True])
def test_gated_linear(
    backend: Backend, rows: int, outputs: int, inputs: int, bits: int, activation: Activation, bias: bool
) -> None:
    x, weight = backend.randn(rows, inputs), backend.randn(2 * outputs, inputs) / inputs**0.5
    added = backend.randn(2 * outputs) if bias else None
    exact = x.double() @ quantize.rounded(weight, bits).double().T + (0 if added is None else added.double())
    expected = REFERENCE.gated(exact.float(), activation).to(backend.dtype)
    backend.check(backend.kernels.pack_gated(weight, added, activation, bits)(x), expected)


@pytest.mark.parametrize(("rows", "heads", "outputs", "inputs"), [(1, 3, 40, 24), (70, 2, 33, 20), (0, 2, 8, 8)])
def test_linear_per_head(backend: Backend, rows: int, heads: int, outputs: int, inputs: int) -> None:
    x, weight = backend.randn(rows, heads * inputs), backend.randn(heads, outputs, inputs) / inputs**0.5
    exact = torch.einsum("thi,hoi->tho", x.double().view(rows, heads, inputs), weight.double()).flatten(1)
    backend.check(backend.kernels.pack_heads(weight)(x), exact.to(backend.dtype))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(1, 96, 64), (5, 50, 32), (27, 333, 96), (3, 50, 1056), (300, 70, 160)]
)
def test_quantized_linear(backend: Backend, rows: int, outputs: int, inputs: int, bits: int) -> None:
    x, weight = backend.randn(rows, inputs), backend.randn(outputs, inputs) / inputs**0.5
    bias = backend.randn(outputs)
    stands_for = quantize.dequantized(*quantize.quantized(weight, bits)).double()
    assert (stands_for - weight).abs().max() > 1e-4
    exact = x.double() @ stands_for.T + bias.double()
    backend.check(backend.kernels.pack_linear(weight, bias, bits)(x), exact.to(backend.dtype))


def test_weights_that_cannot_be_quantized(backend: Backend) -> None:
    with pytest.raises(ValueError, match="multiples of 32, not 40"):
        backend.kernels.pack_linear(backend.randn(8, 40), None, 4)
    with pytest.raises(ValueError, match="8 or 4 bits, not 3"):
        backend.kernels.pack_linear(backend.randn(8, 32), None, 3)
