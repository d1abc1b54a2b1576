# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Gated activations of feed-forward layers."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.api import Activation

BLOCK = 1024


@triton.jit
def gate(g, u, ACTIVATION: tl.constexpr):
    """Apply `Activation` to fp32 g and u."""
    if ACTIVATION == "swiglu_oai":
        g = tl.minimum(g, 7.0)
        gated = g * sigmoid(1.702 * g) * (tl.minimum(tl.maximum(u, -7.0), 7.0) + 1.0)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(x)) / 2 is sigmoid(2 x)
        gated = g * sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g)) * u
    else:
        gated = g * sigmoid(g) * u
    return gated


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)


@triton.jit
def gated_kernel(gate_up_ptr, out_ptr, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row, chunk of `BLOCK` columns); a row is gate | up."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    g = tl.load(gate_up_ptr + row * 2 * size + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gate_up_ptr + row * 2 * size + size + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + column, gate(g, u, ACTIVATION).to(out_ptr.dtype.element_ty), mask=inside)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """Apply the activation to [T, 2F] = gate | up, contiguous; returns [T, F]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, size))
    if rows:
        grid = (rows, triton.cdiv(size, BLOCK))
        gated_kernel[grid](gate_up, out, size, ACTIVATION=activation, BLOCK=BLOCK, num_warps=4)
    return out
