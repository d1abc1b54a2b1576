"""Noise for sampling that is a function of (seed, position, token) and nothing else.

So a draw depends neither on its batch nor on earlier draws: a request that is resumed elsewhere draws the same token,
and almost always does so even if its logits differ by rounding.

A 64-bit key made from seed and position (SplitMix64) is mixed with each token id by multiplications and xor-shifts, as
in the finaliser of MurmurHash3. The statistics are tested; the noise need not be secure.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Return standard Gumbel noise, [S, V] fp32. keys: [S, 2] int32 of `make_keys`; token_ids: [V] or [S, V] int32."""
    low, high = keys[:, :1], keys[:, 1:]
    x = _mixed(token_ids).bitwise_xor(low).mul_(_signed(0x9E3779B1))  # [S, V]; int32 products wrap
    x = _xor_shift(x, 15).add_(high).mul_(_signed(0x85EBCA6B))
    x = _xor_shift(x, 13).mul_(_signed(0xC2B2AE35))
    return uniform(x).log_().neg_().log_().neg_()


def uniform(x: Tensor) -> Tensor:
    """Map int32 to odd multiples of 2^-24 within (0, 1). These are exact in fp32, so 0 and 1 never occur."""
    return (x >> 9).to(torch.float32).mul_(2.0**-23).add_(0.5 + 2.0**-24)


def _mixed(token_ids: Tensor) -> Tensor:
    """Spread neighbouring ids over all 32 bits."""
    x = token_ids * _signed(0x7FEB352D)
    return _xor_shift(x, 16).mul_(_signed(0x846CA68B))


def make_keys(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """Hash seeds [S] and positions [S] to keys, [S, 2] int32."""
    with np.errstate(over="ignore"):
        z = _split_mix(seeds + _GOLDEN) + positions.astype(np.uint64) * _GOLDEN
        return np.ascontiguousarray(_split_mix(z)).view(np.int32).reshape(-1, 2)


def _split_mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _xor_shift(x: Tensor, bits: int) -> Tensor:
    """`x ^= x >> bits` with zeros shifted in."""
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
