# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""A mixture of experts as grouped matrix products: (token, expert) pairs are sorted by expert, then cut into tiles.

All sizes follow from the number of pairs, and the device finds out which tile belongs to which expert. The host never
reads the routing, so a CUDA graph can capture all of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.api import Activation
from kernels.triton.activation import gate
from kernels.triton.linear import Shape
from kernels.triton.product import RUN, product
from kernels.triton.tile import dot_type, find, has_ptx, has_wgmma
from kernels.triton.weights import Weights

CHUNK = 1024  # pairs that a sorting program scans at once
COLUMNS = 1024  # of a row per summing program


@triton.jit
def sort_kernel(ids_ptr, order_ptr, starts_ptr, num_pairs, CHUNK: tl.constexpr):
    """Program e: write where expert e's pairs start in sorted order, and the pairs themselves; the sort is stable."""
    expert = tl.program_id(0)
    start = 0
    for first in range(0, num_pairs, CHUNK):
        pair = first + tl.arange(0, CHUNK)
        ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=1 << 30)
        start += tl.sum((ids < expert).to(tl.int32), 0)
    tl.store(starts_ptr + expert, start)
    end = start
    for first in range(0, num_pairs, CHUNK):
        pair = first + tl.arange(0, CHUNK)
        own = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=1 << 30) == expert
        rank = tl.cumsum(own.to(tl.int32), 0)
        tl.store(order_ptr + end + rank - 1, pair, mask=own)
        end += tl.sum(own.to(tl.int32), 0)
    if expert == tl.num_programs(0) - 1:
        tl.store(starts_ptr + expert + 1, end)


@triton.jit
def experts_kernel(
    x_ptr,  # [T, INPUTS] where gated, else [pairs, INPUTS] in sorted order
    weight_ptr,  # [E, 2 * OUTPUTS, INPUTS] where gated, gates before ups, else [E, OUTPUTS, INPUTS]; or packed
    scales_ptr,
    bias_ptr,  # [E, 2 * OUTPUTS] or [E, OUTPUTS]
    out_ptr,  # [pairs, OUTPUTS]: in sorted order where gated, else as the pairs were given
    order_ptr,
    starts_ptr,
    per_token,
    num_experts,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EXPERTS: tl.constexpr,  # num_experts, rounded up to a power of two
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
    ACTIVATION: tl.constexpr,  # None: not gated
    BITS: tl.constexpr,
    BIAS: tl.constexpr,
    DOT: tl.constexpr,
    PTX: tl.constexpr,
):
    """Program (tile, column): COLS outputs of ROWS pairs of one expert."""
    gated: tl.constexpr = ACTIVATION is not None
    place = tl.arange(0, EXPERTS)
    starts = tl.load(starts_ptr + place, mask=place < num_experts, other=0)
    ends = tl.load(starts_ptr + place + 1, mask=place < num_experts, other=0)
    expert, index = find(tl.cdiv(ends - starts, ROWS), place, tl.program_id(0))
    if expert >= num_experts:
        return
    row = tl.load(starts_ptr + expert) + index * ROWS + tl.arange(0, ROWS)
    present = row < tl.load(starts_ptr + expert + 1)
    pair = tl.load(order_ptr + row, mask=present, other=0)
    source = (pair // per_token if gated else row).to(tl.int64) * INPUTS
    target = (row if gated else pair).to(tl.int64) * OUTPUTS
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    width: tl.constexpr = 2 if gated else 1
    output = tl.program_id(1) * COLS + tl.arange(0, width * COLS) // width
    inside = output < OUTPUTS
    output += tl.arange(0, width * COLS) % width * OUTPUTS  # next to each gate is its up
    acc = product(
        x_ptr,
        source,
        present,
        weight_ptr,
        scales_ptr,
        expert.to(tl.int64),
        output,
        inside,
        0,
        INPUTS,
        INPUTS,
        width * OUTPUTS,
        ROWS,
        width * COLS,
        INNER,
        BITS,
        DOT,
        PTX,
    )
    if BIAS:
        bias = tl.load(bias_ptr + expert * (width * OUTPUTS) + output, mask=inside, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    if gated:
        alone, up = tl.split(tl.reshape(acc, [ROWS, COLS, 2]))
        acc = gate(alone, up, ACTIVATION)
    mask = present[:, None] & (column < OUTPUTS)[None, :]
    tl.store(out_ptr + target[:, None] + column[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sum_kernel(parts_ptr, weights_ptr, out_ptr, size, PER_TOKEN: tl.constexpr, COLUMNS: tl.constexpr):
    """Program (token, column): `sum over k of weights[token, k] * parts[token, k]` in fp32, in order."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for k in tl.static_range(PER_TOKEN):
        pair = token * PER_TOKEN + k
        part = tl.load(parts_ptr + pair * size + column, mask=column < size, other=0.0).to(tl.float32)
        total += part * tl.load(weights_ptr + pair)
    tl.store(out_ptr + token * size + column, total.to(out_ptr.dtype.element_ty), mask=column < size)


class MixtureOfExperts:
    """`Experts`."""

    def __init__(
        self,
        gate_up: Weights,
        down: Weights,
        activation: Activation,
        gate_up_bias: Tensor | None,
        down_bias: Tensor | None,
        *,
        deterministic: bool = False,
    ) -> None:
        """gate_up: [E, 2F, H], gates before ups; down: [E, H, F]. If `deterministic`, a row's bits do not depend on the
        other rows.
        """
        self._gate_up, self._down = gate_up, down
        self._gate_up_bias, self._down_bias = gate_up_bias, down_bias
        self._activation, self._deterministic = activation, deterministic

    def __call__(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """x [T, H], expert_ids and weights [T, K] -> [T, H]."""
        num_tokens, per_token = expert_ids.shape
        if not num_tokens:
            return torch.empty_like(x)
        hidden, ffn = self._down.outputs, self._down.inputs
        num_experts = self._down.num_experts
        num_pairs = num_tokens * per_token
        order = torch.empty(num_pairs, dtype=torch.int32, device=x.device)
        starts = torch.empty(num_experts + 1, dtype=torch.int32, device=x.device)
        sort_kernel[(num_experts,)](expert_ids.contiguous(), order, starts, num_pairs, CHUNK=CHUNK, num_warps=4)

        gated, parts = x.new_empty((num_pairs, ffn)), x.new_empty((num_pairs, hidden))
        pairs = (order, starts, per_token)
        self._multiply(x.contiguous(), self._gate_up, self._gate_up_bias, gated, *pairs, self._activation)
        self._multiply(gated, self._down, self._down_bias, parts, *pairs, None)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        sum_kernel[(num_tokens, triton.cdiv(hidden, COLUMNS))](
            *(parts, weights.contiguous(), out, hidden), PER_TOKEN=per_token, COLUMNS=COLUMNS, num_warps=4
        )
        return out

    def _multiply(
        self,
        x: Tensor,
        weights: Weights,
        bias: Tensor | None,
        out: Tensor,
        order: Tensor,
        starts: Tensor,
        per_token: int,
        activation: Activation | None,
    ) -> None:
        num_experts, num_pairs = weights.num_experts, out.shape[0]
        shape = _shape(num_pairs, weights, x.element_size(), activation, deterministic=self._deterministic)
        num_tiles = min(num_experts, num_pairs) + num_pairs // shape.rows  # an upper bound
        experts_kernel[(num_tiles, triton.cdiv(out.shape[1], shape.cols))](
            *(x, weights.values, weights.scales, bias, out, order, starts, per_token, num_experts),
            INPUTS=x.shape[1],
            OUTPUTS=out.shape[1],
            EXPERTS=triton.next_power_of_2(num_experts),
            ROWS=shape.rows,
            COLS=shape.cols,
            INNER=shape.inner,
            ACTIVATION=activation,
            BITS=weights.bits,
            BIAS=bias is not None,
            DOT=dot_type(x),
            PTX=has_ptx(x),
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
        )


def _shape(
    num_pairs: int, weights: Weights, itemsize: int, activation: Activation | None, *, deterministic: bool
) -> Shape:
    """Small tiles if experts have few rows, large ones to reuse weights.

    If `deterministic`, the number of pairs does not affect the order of sums, nor which instructions compute them.
    """
    if itemsize == 4:
        return Shape(16, 32, 32 if weights.bits == 16 else RUN, 4, 2)
    few = num_pairs <= 16 * weights.num_experts
    if weights.bits < 16:
        return Shape(16 if few else 64, 64 if activation is None else 32, RUN, 4, 4)
    if deterministic:
        return Shape(64, 64, 64, 4, 4)
    if few:
        return Shape(16, 64, 128, 4, 3)
    return Shape(128, 128 if has_wgmma() else 64, 64, 8, 3)
