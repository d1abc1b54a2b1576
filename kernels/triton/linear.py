# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Batch-invariant linear layers: a row has the same bits whatever the other rows.

(Libraries do not promise that, since they choose kernels by the number of rows.) Each result is summed over the inputs
in one order, INNER at a time, without split-K. Tiles have at least 64 rows, so that on Hopper one row uses the same
instructions (wgmma) as thousands do. A tile's numbers of rows and columns do not affect the order of the sum, so they
are chosen for speed.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.api import Linear
from kernels.triton.tile import dot_type

INNER = 64  # inputs of a tile in 16 bits
NUM_MULTIPROCESSORS = 132  # an H100's: with fewer tiles than that some would idle


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x_ptr,  # [num_rows, heads, INPUTS]
    weight_ptr,  # [heads, OUTPUTS, INPUTS]
    bias_ptr,  # [heads, OUTPUTS]
    out_ptr,  # [num_rows, heads, OUTPUTS]
    num_rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
    BIAS: tl.constexpr,
    DOT: tl.constexpr,
):
    """Program (tile of rows, tile of columns, head). Row tiles vary fastest, so weights are read from memory once."""
    head, num_heads = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < num_rows
    part = row.to(tl.int64) * num_heads + head
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = column < OUTPUTS
    weight_row = head * OUTPUTS + column
    acc = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, INPUTS, INNER):
        x = load_tile(x_ptr, part * INPUTS, present, start, INPUTS, INNER).to(DOT)
        weight = load_tile(weight_ptr, weight_row * INPUTS, inside, start, INPUTS, INNER).to(DOT)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias_ptr + weight_row, mask=inside, other=0.0).to(tl.float32)[None, :]
    mask = present[:, None] & inside[None, :]
    out = out_ptr + (part * OUTPUTS)[:, None] + column[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_tile(ptr, at, present, start, SIZE: tl.constexpr, INNER: tl.constexpr):
    """Load columns [start, start + INNER) of the rows of SIZE at `at` [N]; [N, INNER], zero where there are none."""
    column = start + tl.arange(0, INNER)
    mask = present[:, None]
    if SIZE % INNER != 0:
        mask = mask & (column < SIZE)[None, :]
    return tl.load(ptr + at[:, None] + column[None, :], mask=mask, other=0.0)


class FixedOrderLinear:
    """`Linear`, or one per head, each for its own slice of the row: [T, heads * in] -> [T, heads * out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight: [heads, out, in]; bias: [heads, out]."""
        self._weight = weight.contiguous()
        self._bias = None if bias is None else bias.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """[T, heads * in] -> [T, heads * out] in x's dtype; the bias is added before the cast."""
        num_heads, num_outputs, num_inputs = self._weight.shape
        num_rows = x.shape[0]
        out = x.new_empty((num_rows, num_heads * num_outputs))
        if not num_rows:
            return out
        rows, cols, inner, num_warps, num_stages = _shape(num_rows, num_heads, num_outputs, x.element_size())
        linear_kernel[(triton.cdiv(num_rows, rows), triton.cdiv(num_outputs, cols), num_heads)](
            *(x.contiguous(), self._weight, self._bias, out, num_rows),
            INPUTS=num_inputs,
            OUTPUTS=num_outputs,
            ROWS=rows,
            COLS=cols,
            INNER=inner,
            BIAS=self._bias is not None,
            DOT=dot_type(x),
            num_warps=num_warps,
            num_stages=num_stages,
        )
        return out


def pack_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """See `Kernels.pack_linear`; `weight` is in 16 bits or more."""
    return FixedOrderLinear(weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0))


def pack_heads(weight: Tensor) -> Linear:
    """See `Kernels.pack_heads`."""
    return FixedOrderLinear(weight)


def _shape(num_rows: int, num_heads: int, num_outputs: int, itemsize: int) -> tuple[int, int, int, int, int]:
    """(ROWS, COLS, INNER, num_warps, num_stages): the largest tiles (most reuse) that occupy all multiprocessors."""
    if itemsize == 4:
        return 16, 32, 32, 4, 2

    def num_tiles(rows: int, cols: int) -> int:
        return -(-num_rows // rows) * -(-num_outputs // cols) * num_heads

    if num_rows > 64 and num_tiles(128, 128) >= NUM_MULTIPROCESSORS:
        return 128, 128, INNER, 8, 4
    return 64, 64 if num_tiles(64, 64) >= NUM_MULTIPROCESSORS else 32, INNER, 4, 5
