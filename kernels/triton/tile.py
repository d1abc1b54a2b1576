# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803, SIM108
"""One tile of attention: some query rows of one KV head against a range of keys, which are read in place.

A head dimension that is not a power of two is split into DIM + REST, so that 576 becomes 512 + 64 and not 1024.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@triton.jit
def attend(
    q,  # [ROWS, DIM]
    q_rest,  # [ROWS, REST]
    row_max,  # [ROWS], base 2, and row_sum [ROWS]: the state of the softmax before the first key
    row_sum,
    kv_ptr,  # the KV head's first key in block 0
    table_ptr,
    position,  # of the row's query: [ROWS], or one for all rows
    low,  # keys [low, high) are visited
    whole,  # every row sees all keys in [low, whole); a multiple of KEYS
    high,
    scale,
    cap,
    window,
    block_stride,
    plane,  # offset from a key to its value
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    REST: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    ONE_QUERY: tl.constexpr,  # all rows have the same query, so a key is visible to all or to none
    DETERMINISTIC: tl.constexpr,
    DOT: tl.constexpr,
):
    """Online softmax: return each row's maximum, sum, and weighted sum of values (DIM and REST dimensions).

    A tile of keys of which a row sees none leaves that row unchanged, to the bit. If `DETERMINISTIC`, one loop with
    masks computes all tiles, since which tiles could do without a mask depends on the other rows.

    For `scale` and `cap` see `score_factors`.
    """
    acc = tl.zeros([ROWS, DIM], tl.float32)
    acc_rest = tl.zeros([ROWS, REST if REST > 0 else 16], tl.float32)
    # Large tiles have no registers to spare, neither for a second loop nor for masked loads: key indices are clamped.
    clamped: tl.constexpr = DIM >= 512
    all_masked: tl.constexpr = DETERMINISTIC or WINDOW or clamped
    row = tl.arange(0, KEYS)
    for masked in tl.static_range(1 if all_masked else 0, 2):
        begin = low if all_masked or not masked else whole
        end = high if masked else whole
        block = find_blocks(table_ptr, begin, row, end, masked, clamped, KEYS, BLOCK_SIZE)
        for start in range(begin, end, KEYS):
            key = start + row
            present = key < end
            if clamped:
                key = tl.minimum(key, end - 1)
            offset = (row if KEYS % BLOCK_SIZE == 0 and not clamped else key) % BLOCK_SIZE * HEAD_DIM
            at = kv_ptr + offset + block.to(tl.int64) * block_stride
            # The block table is read one step ahead, so that loads of keys need not wait for it.
            block = find_blocks(table_ptr, start + KEYS, row, end, masked, clamped, KEYS, BLOCK_SIZE)
            k = load_rows(at, present, 0, DIM, HEAD_DIM, masked and not clamped).to(DOT)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            if REST > 0:
                k_rest = load_rows(at, present, DIM, REST, HEAD_DIM, masked and not clamped).to(DOT)
                scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
            factor = scale  # applied below: scaling and subtracting the maximum are one instruction
            if SOFTCAP:
                scores = cap - 2 * cap / (1 + tl.exp2(scores * scale))
                factor = 1.0
            if masked:
                if ONE_QUERY:
                    visible = present[None, :]
                    if WINDOW:
                        visible = (present & (key > position - window))[None, :]
                else:
                    visible = present[None, :] & (key[None, :] <= position[:, None])
                    if WINDOW:
                        visible = visible & (key[None, :] > position[:, None] - window)
                scores = tl.where(visible, scores, float("-inf"))

            new_max = tl.maximum(row_max, tl.max(scores, 1) * factor)
            safe = new_max
            if masked and (WINDOW or not ONE_QUERY):  # otherwise each tile has a visible key
                safe = tl.where(new_max == float("-inf"), 0.0, new_max)
            weights = tl.exp2(scores * factor - safe[:, None])
            keep = tl.exp2(row_max - safe)
            row_sum = row_sum * keep + tl.sum(weights, 1)
            row_max = new_max
            if PLANES == 1:
                v = k
            else:
                v = load_rows(at + plane, present, 0, DIM, HEAD_DIM, masked and not clamped).to(DOT)
            acc = tl.dot(weights.to(DOT), v, acc * keep[:, None], input_precision="ieee")
            if REST > 0:
                if PLANES == 1:
                    v_rest = k_rest
                else:
                    v_rest = load_rows(at + plane, present, DIM, REST, HEAD_DIM, masked and not clamped).to(DOT)
                acc_rest = tl.dot(weights.to(DOT), v_rest, acc_rest * keep[:, None], input_precision="ieee")
    return row_max, row_sum, acc, acc_rest


@triton.jit
def find_blocks(
    table_ptr,
    start,
    row,
    end,
    MASKED: tl.constexpr,
    CLAMPED: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Look up the blocks [KEYS] of keys [start, start + KEYS) that are below `end`; unless MASKED, all of them or none.

    If CLAMPED, keys from `end` on get the block of the last key. `start` is a multiple of KEYS, `row` is
    `tl.arange(0, KEYS)`. Terms that do not change from tile to tile are kept apart, so that they leave the loop.
    """
    if CLAMPED:
        return tl.load(table_ptr + tl.minimum(start + row, end - 1) // BLOCK_SIZE)
    if KEYS % BLOCK_SIZE == 0:
        place = start // BLOCK_SIZE + row // BLOCK_SIZE
    else:
        place = (start + row) // BLOCK_SIZE
    first = start if not MASKED else start + row
    return tl.load(table_ptr + place, mask=row * 0 + first < end, other=0)


@triton.jit
def load_rows(
    at,  # [N], where each row begins
    present,  # [N]
    FIRST: tl.constexpr,
    SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Load dimensions [FIRST, FIRST + SIZE) of rows; [N, SIZE], zero past HEAD_DIM and, if MASKED, in absent rows."""
    dim = FIRST + tl.arange(0, SIZE)
    where = at[:, None] + dim[None, :]
    if FIRST + SIZE > HEAD_DIM:
        rows = tl.load(where, mask=present[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
    elif MASKED:
        rows = tl.load(where, mask=present[:, None], other=0.0)
    else:
        rows = tl.load(where)
    return rows


@triton.jit
def store_rows(at, rows, present, FIRST: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Store dimensions [FIRST, FIRST + SIZE) of rows, except past HEAD_DIM and in absent rows."""
    dim = FIRST + tl.arange(0, SIZE)
    mask = present[:, None] & (dim < HEAD_DIM)[None, :]
    tl.store(at[:, None] + dim[None, :], rows.to(at.dtype.element_ty), mask=mask)


@triton.jit
def find(counts, place, item):
    """Return the entry that work item `item` belongs to, and the item's index there; entry i has `counts[i]` items.

    `counts` is [N], `place` is `tl.arange(0, N)`. So a grid of fixed size finds its work without help from the host.
    """
    entry = tl.sum((tl.cumsum(counts, 0) <= item).to(tl.int32), 0)
    return entry, item - tl.sum(tl.where(place < entry, counts, 0), 0)


def head_tiles(head_dim: int) -> tuple[int, int]:
    """(DIM, REST): powers of two, at least 16 (REST may be 0), that cover `head_dim` with the least padding."""
    one = max(16, triton.next_power_of_2(head_dim))
    if one in (head_dim, 16):
        return one, 0
    rest = max(16, triton.next_power_of_2(head_dim - one // 2))
    return (one // 2, rest) if one // 2 + rest < one else (one, 0)


def score_factors(scale: float, softcap: float) -> tuple[float, float]:
    """(scale, cap) for `attend`, which computes scores in base 2.

    With a soft cap, `cap * tanh(x)` is computed as `cap - 2 cap / (1 + exp2(2 x log2(e)))`.
    """
    return (2 * scale * LOG2_E / softcap, softcap * LOG2_E) if softcap else (scale * LOG2_E, 0.0)


def dot_type(x: Tensor) -> tl.dtype:
    """The dtype in which products are taken: that of x, but fp32 where the interpreter would get bf16 wrong."""
    if triton.knobs.runtime.interpret and x.dtype == torch.bfloat16:
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[x.dtype]


def has_ptx(x: Tensor) -> bool:
    """Whether packed weights are widened to x's dtype in PTX, which the interpreter does not run."""
    return x.element_size() == 2 and not triton.knobs.runtime.interpret


@cache
def has_wgmma() -> bool:
    """Whether products use Hopper's wgmma instructions, which read tiles of 64 or more rows from shared memory."""
    return bool(triton.knobs.runtime.interpret or triton.runtime.driver.active.get_current_target().arch >= 90)
