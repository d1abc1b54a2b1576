# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Sampling from whole rows of logits, greedy or by temperature with Gumbel noise; and their log-sum-exp.

The noise is that of `engine.sampling.noise`, a function of (seed, position, token): the engine makes keys from seeds
and positions, and the kernel mixes them with the tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096  # logits of a row that one program looks at


@triton.jit
def gumbel(low, high, token):
    """Standard Gumbel noise of tokens for a key of two uint32 words."""
    x = token * 0x7FEB352D
    x = (x ^ (x >> 16)) * 0x846CA68B
    x = (x ^ low) * 0x9E3779B1
    x = (x ^ (x >> 15)) + high
    x = x * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    signed = (x.to(tl.int32, bitcast=True) >> 9).to(tl.float32)
    uniform = signed * 1.1920928955078125e-07 + 0.500000059604644775  # odd multiples of 2^-24 within (0, 1)
    return -tl.log(-tl.log(uniform))


@triton.jit
def draw_kernel(
    logits_ptr,
    temperature_ptr,
    keys_ptr,
    best_ptr,  # [S, num_chunks]: the largest value of each chunk; in place_ptr, its token
    place_ptr,
    vocab_size,
    row_stride,
    num_chunks,
    CHUNK: tl.constexpr,
):
    """Program (row, chunk): find the token with the largest value of a chunk, noise included; of equals the first."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = token < vocab_size
    values = tl.load(logits_ptr + row.to(tl.int64) * row_stride + token, mask=inside, other=float("-inf"))
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:
        low = tl.load(keys_ptr + 2 * row).to(tl.uint32, bitcast=True)
        high = tl.load(keys_ptr + 2 * row + 1).to(tl.uint32, bitcast=True)
        values = tl.div_rn(values, temperature) + gumbel(low, high, token.to(tl.uint32))
    values = tl.where(values == values, values, float("-inf"))  # NaN is never the largest
    best = tl.max(values, 0)
    tl.store(best_ptr + row * num_chunks + chunk, best)
    tl.store(place_ptr + row * num_chunks + chunk, tl.min(tl.where(values == best, token, vocab_size - 1), 0))


@triton.jit
def choose_kernel(best_ptr, place_ptr, out_ptr, num_chunks, CHUNKS: tl.constexpr):
    """Program row: find the token with the largest value of all chunks; of equals the first."""
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    inside = chunk < num_chunks
    values = tl.load(best_ptr + row * num_chunks + chunk, mask=inside, other=float("-inf"))
    places = tl.load(place_ptr + row * num_chunks + chunk, mask=inside, other=0)
    first = tl.min(tl.where((values == tl.max(values, 0)) & inside, chunk, CHUNKS), 0)
    tl.store(out_ptr + row, tl.sum(tl.where(chunk == first, places, 0), 0).to(tl.int64))


def draw(logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
    """For each row of logits [S, V] fp32, return the token with the largest `logits / temperature + noise`; [S] int64.

    temperature: [S] fp32; where it is 0, the token with the largest logit is returned. keys: [S, 2] int32, from seed
    and position. NaN counts as -inf.
    """
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    best = torch.empty((num_rows, num_chunks), dtype=torch.float32, device=logits.device)
    place = torch.empty((num_rows, num_chunks), dtype=torch.int32, device=logits.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        draw_kernel[(num_rows, num_chunks)](
            *(logits, temperature, keys, best, place, vocab_size, logits.stride(0), num_chunks),
            CHUNK=CHUNK,
            num_warps=8,
        )
        chunks = triton.next_power_of_2(num_chunks)
        choose_kernel[(num_rows,)](best, place, out, num_chunks, CHUNKS=chunks, num_warps=1)
    return out


@triton.jit
def log_total_kernel(logits_ptr, out_ptr, vocab_size, row_stride, CHUNK: tl.constexpr):
    """Program row: `log(sum(exp(logits)))`, rescaled online from chunk to chunk."""
    row = tl.program_id(0)
    largest = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, vocab_size, CHUNK):
        token = start + tl.arange(0, CHUNK)
        at = logits_ptr + row.to(tl.int64) * row_stride + token
        values = tl.load(at, mask=token < vocab_size, other=float("-inf"))
        new = tl.maximum(largest, tl.max(values, 0))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - safe) + tl.sum(tl.exp(values - safe), 0)
        largest = new
    tl.store(out_ptr + row, largest + tl.log(total))


def log_total(logits: Tensor) -> Tensor:
    """Log-sum-exp of each row of [S, V] fp32; returns [S] fp32. A row's bits do not depend on the other rows."""
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    if num_rows:
        log_total_kernel[(num_rows,)](logits, out, vocab_size, logits.stride(0), CHUNK=CHUNK, num_warps=8)
    return out
