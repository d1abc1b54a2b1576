# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Linear layers with packed weights, and batch-invariant ones: a row has the same bits whatever the other rows.

(Libraries do not promise that, since they choose kernels by the number of rows.) Each result is summed over the inputs
in one order, without splits. On Hopper one row uses the same instructions (wgmma) as thousands do: tiles have at least
64 rows, or 64 columns if the weight is packed (`kernels.triton.product`). A tile's numbers of rows and columns do not
affect the order of the sum, so they are chosen for speed.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.api import Linear
from kernels.triton.product import RUN, product
from kernels.triton.tile import dot_type, has_ptx
from kernels.triton.weights import Weights

INNER = 64  # inputs of a tile in 16 bits
NUM_MULTIPROCESSORS = 132  # an H100's: with fewer tiles than that some would idle
PROGRAMS = 4 * NUM_MULTIPROCESSORS  # wanted of a packed product, so that one loads while others multiply
MAX_SPLITS, MIN_SPLIT = 8, 512  # splits, and inputs of each
MIN_COLS = 32  # of a packed tile
WIDE_ROWS = {8: 512, 4: 256}  # with more rows, libraries make up for widening the weight first


class Shape(NamedTuple):
    """Of a tile, and how it is computed."""

    rows: int
    cols: int
    inner: int
    num_warps: int
    num_stages: int
    splits: int = 1  # programs that share the inputs


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x_ptr,  # [num_rows, heads, INPUTS]
    weight_ptr,  # [heads, OUTPUTS, INPUTS], or packed
    scales_ptr,
    bias_ptr,  # [heads, OUTPUTS]
    out_ptr,  # [num_rows, heads, OUTPUTS]
    sums_ptr,  # [SPLITS, num_rows, heads, OUTPUTS] fp32
    arrived_ptr,  # [tiles of columns, heads] int32, zero before and after
    num_rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
    SPLITS: tl.constexpr,
    BITS: tl.constexpr,
    BIAS: tl.constexpr,
    DOT: tl.constexpr,
    PTX: tl.constexpr,
):
    """Program (tile of rows, tile of columns, head and split). Row tiles vary fastest, so weights are read once."""
    head, num_heads = (tl.program_id(2) // SPLITS).to(tl.int64), tl.num_programs(2) // SPLITS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < num_rows
    part = row.to(tl.int64) * num_heads + head
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = column < OUTPUTS
    length: tl.constexpr = (INPUTS + SPLITS * INNER - 1) // (SPLITS * INNER) * INNER  # of a split
    split = tl.program_id(2) % SPLITS
    begin = split * length if SPLITS > 1 else 0
    end = tl.minimum(begin + length, INPUTS) if SPLITS > 1 else INPUTS
    acc = product(
        x_ptr,
        part * INPUTS,
        present,
        weight_ptr,
        scales_ptr,
        head,
        column,
        inside,
        begin,
        end,
        INPUTS,
        OUTPUTS,
        ROWS,
        COLS,
        INNER,
        BITS,
        DOT,
        PTX,
    )
    at = (part * OUTPUTS)[:, None] + column[None, :]
    mask = present[:, None] & inside[None, :]
    if SPLITS > 1:  # whichever program arrives last adds all sums, in the order of the splits
        size = num_rows.to(tl.int64) * num_heads * OUTPUTS
        tl.store(sums_ptr + split * size + at, acc, mask=mask)
        tl.debug_barrier()  # all threads have stored theirs before one of them says so
        arrived = arrived_ptr + tl.program_id(1) * num_heads + head
        if tl.atomic_add(arrived, 1, sem="acq_rel") != SPLITS - 1:
            return
        tl.store(arrived, 0)
        acc = tl.zeros([ROWS, COLS], tl.float32)
        for index in range(SPLITS):
            acc += tl.load(sums_ptr + index * size + at, mask=mask, other=0.0, cache_modifier=".cg")
    if BIAS:
        bias = tl.load(bias_ptr + head * OUTPUTS + column, mask=inside, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=mask)


class TiledLinear:
    """`Linear`, or one per head, each for its own slice of the row: [T, heads * in] -> [T, heads * out]."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, bits: int = 16, *, deterministic: bool = True
    ) -> None:
        """weight: [heads, out, in]; bias: [heads, out]. Only packed weights need not be `deterministic`."""
        self._weights, self._deterministic = Weights(weight, bits), deterministic
        self._bias = None if bias is None else bias.flatten()
        tiles = triton.cdiv(self._weights.outputs, MIN_COLS)
        self._arrived = torch.zeros(tiles, dtype=torch.int32, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, heads * in] -> [T, heads * out] in x's dtype; the bias is added before the cast."""
        weights, num_rows = self._weights, x.shape[0]
        if not self._deterministic and num_rows > WIDE_ROWS[weights.bits]:
            return functional.linear(x, weights.widened(x.dtype).squeeze(0), self._bias)
        out = x.new_empty((num_rows, weights.num_experts * weights.outputs))
        if not num_rows:
            return out
        shape = _shape(num_rows, weights, x.element_size(), deterministic=self._deterministic)
        sums = None
        if shape.splits > 1:
            sums = torch.empty((shape.splits, *out.shape), dtype=torch.float32, device=x.device)
        grid = (
            triton.cdiv(num_rows, shape.rows),
            triton.cdiv(weights.outputs, shape.cols),
            weights.num_experts * shape.splits,
        )
        linear_kernel[grid](
            *(x.contiguous(), weights.values, weights.scales, self._bias, out, sums, self._arrived, num_rows),
            INPUTS=weights.inputs,
            OUTPUTS=weights.outputs,
            ROWS=shape.rows,
            COLS=shape.cols,
            INNER=shape.inner,
            SPLITS=shape.splits,
            BITS=weights.bits,
            BIAS=self._bias is not None,
            DOT=dot_type(x),
            PTX=has_ptx(x),
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
        )
        return out


def pack_linear(weight: Tensor, bias: Tensor | None, bits: int = 16, *, deterministic: bool = True) -> Linear:
    """See `Kernels.pack_linear`."""
    bias = None if bias is None else bias.unsqueeze(0)
    return TiledLinear(weight.unsqueeze(0), bias, bits, deterministic=deterministic)


def pack_heads(weight: Tensor) -> Linear:
    """See `Kernels.pack_heads`."""
    return TiledLinear(weight)


def _shape(num_rows: int, weights: Weights, itemsize: int, *, deterministic: bool) -> Shape:
    """The largest tiles (most reuse) that occupy all multiprocessors."""

    def num_tiles(rows: int, cols: int) -> int:
        return -(-num_rows // rows) * -(-weights.outputs // cols) * weights.num_experts

    if weights.bits < 16:
        shape = _packed_shape(num_rows, weights.bits, itemsize, many=num_tiles(128, 128) >= NUM_MULTIPROCESSORS)
        if deterministic or num_rows > shape.rows:
            return shape
        wanted = PROGRAMS // num_tiles(shape.rows, shape.cols)
        return shape._replace(splits=max(1, min(wanted, MAX_SPLITS, weights.inputs // MIN_SPLIT)))
    if itemsize == 4:
        return Shape(16, 32, 32, 4, 2)
    if num_rows > 64 and num_tiles(128, 128) >= NUM_MULTIPROCESSORS:
        return Shape(128, 128, INNER, 8, 4)
    return Shape(64, 64 if num_tiles(64, 64) >= NUM_MULTIPROCESSORS else 32, INNER, 4, 5)


def _packed_shape(num_rows: int, bits: int, itemsize: int, *, many: bool) -> Shape:
    """`many`: whether large tiles would occupy all multiprocessors."""
    if itemsize == 4:
        return Shape(16, MIN_COLS, RUN, 4, 2)
    if num_rows > 64 and many:  # sums of groups take as many registers as the sums of all
        return Shape(128, 128, RUN, 8, 3) if bits == 8 else Shape(64, 64, RUN, 4, 3)
    rows = min(64, max(16, triton.next_power_of_2(num_rows)))
    return Shape(rows, 64, RUN, 4, 4)
