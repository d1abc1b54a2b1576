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
from kernels.triton.linear import load_tile
from kernels.triton.tile import dot_type, find, has_wgmma

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
    weight_ptr,  # [E, 2 * OUTPUTS, INPUTS] where gated, gate before up; else [E, OUTPUTS, INPUTS]
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
    BIAS: tl.constexpr,
    DOT: tl.constexpr,
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
    inside = column < OUTPUTS
    weight_row = expert.to(tl.int64) * (2 * OUTPUTS if gated else OUTPUTS) + column

    acc = tl.zeros([ROWS, COLS], tl.float32)
    acc_up = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, INPUTS, INNER):
        x = load_tile(x_ptr, source, present, start, INPUTS, INNER).to(DOT)
        weight = load_tile(weight_ptr, weight_row * INPUTS, inside, start, INPUTS, INNER).to(DOT)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
        if gated:
            weight_up = load_tile(weight_ptr, (weight_row + OUTPUTS) * INPUTS, inside, start, INPUTS, INNER).to(DOT)
            acc_up = tl.dot(x, tl.trans(weight_up), acc_up, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias_ptr + weight_row, mask=inside, other=0.0).to(tl.float32)[None, :]
        if gated:
            acc_up += tl.load(bias_ptr + weight_row + OUTPUTS, mask=inside, other=0.0).to(tl.float32)[None, :]
    if gated:
        acc = gate(acc, acc_up, ACTIVATION)
    mask = present[:, None] & inside[None, :]
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
    """`Experts` over weights in their original layout: gate_up [E, 2F, H], down [E, H, F]."""

    def __init__(
        self,
        gate_up: Tensor,
        down: Tensor,
        activation: Activation,
        gate_up_bias: Tensor | None,
        down_bias: Tensor | None,
        deterministic: bool = False,
    ) -> None:
        """If `deterministic`, a row's bits do not depend on the other rows."""
        self._gate_up, self._down = gate_up.contiguous(), down.contiguous()
        self._gate_up_bias, self._down_bias = gate_up_bias, down_bias
        self._activation, self._deterministic = activation, deterministic

    def __call__(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """x [T, H], expert_ids and weights [T, K] -> [T, H]."""
        num_tokens, per_token = expert_ids.shape
        if not num_tokens:
            return torch.empty_like(x)
        num_experts, hidden, ffn = self._down.shape
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
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        order: Tensor,
        starts: Tensor,
        per_token: int,
        activation: Activation | None,
    ) -> None:
        num_experts, num_pairs = weight.shape[0], out.shape[0]
        rows, cols, inner, num_warps, num_stages = _shape(
            num_pairs, num_experts, x.element_size(), deterministic=self._deterministic
        )
        num_tiles = min(num_experts, num_pairs) + num_pairs // rows  # an upper bound
        experts_kernel[(num_tiles, triton.cdiv(out.shape[1], cols))](
            *(x, weight, bias, out, order, starts, per_token, num_experts),
            INPUTS=x.shape[1],
            OUTPUTS=out.shape[1],
            EXPERTS=triton.next_power_of_2(num_experts),
            ROWS=rows,
            COLS=cols,
            INNER=inner,
            ACTIVATION=activation,
            BIAS=bias is not None,
            DOT=dot_type(x),
            num_warps=num_warps,
            num_stages=num_stages,
        )


def _shape(num_pairs: int, num_experts: int, itemsize: int, *, deterministic: bool) -> tuple[int, int, int, int, int]:
    """(ROWS, COLS, INNER, num_warps, num_stages): small tiles if experts have few rows, large ones to reuse weights.

    If `deterministic`, it does not depend on the number of pairs.
    """
    if itemsize == 4:
        return 16, 32, 32, 4, 2
    if deterministic:
        return 64, 64, 64, 4, 4
    if num_pairs <= 16 * num_experts:
        return 16, 64, 128, 4, 3
    return 128, 128 if has_wgmma() else 64, 64, 8, 3
