# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""One tile of attention: some query rows of one KV head against a range of keys, read from the blocks they lie in."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@triton.jit
def attend(
    q,  # [ROWS, DIM]
    kv_ptr,
    table_ptr,
    position,  # [ROWS], that of the row's query
    low,  # keys [low, high) are looked at
    high,
    kv_head,
    scale,  # times log2(e)
    window,
    block_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    DOT: tl.constexpr,
):
    """Online softmax over [low, high): maximum (base 2), sum, and weighted sum of values, of each row."""
    dim = tl.arange(0, DIM)
    in_head = dim < HEAD_DIM
    plane: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(low, high, KEYS):
        key = start + tl.arange(0, KEYS)
        present = key < high
        block = tl.load(table_ptr + key // BLOCK_SIZE, mask=present, other=0).to(tl.int64)
        at = block * block_stride + kv_head * plane + key % BLOCK_SIZE * HEAD_DIM
        mask = present[:, None] & in_head[None, :]
        k = tl.load(kv_ptr + at[:, None] + dim[None, :], mask=mask, other=0.0).to(DOT)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        visible = present[None, :] & (key[None, :] <= position[:, None])
        if window > 0:
            visible = visible & (key[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))

        new_max = tl.maximum(row_max, tl.max(scores, 1))
        safe = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores - safe[:, None])
        keep = tl.exp2(row_max - safe)
        row_sum = row_sum * keep + tl.sum(weights, 1)
        v = tl.load(kv_ptr + NUM_KV_HEADS * plane + at[:, None] + dim[None, :], mask=mask, other=0.0).to(DOT)
        acc = acc * keep[:, None] + tl.dot(weights.to(DOT), v, input_precision="ieee")
        row_max = new_max
    return row_max, row_sum, acc


def dot_type(x: Tensor) -> tl.dtype:
    """What products are taken in: x's type, but fp32 where the interpreter would get bf16 wrong."""
    if triton.knobs.runtime.interpret and x.dtype == torch.bfloat16:
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[x.dtype]
