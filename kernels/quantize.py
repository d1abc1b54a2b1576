"""Weight-only quantisation to 8 or 4 bits: symmetric, round to nearest, no calibration.

int8: one scale per output, `max|row| / 127`. int4: one scale per GROUP inputs of an output, `max|group| / 7`.
Backends may pack the integers in any layout; their products use the values that `dequantized` returns.
"""

import torch
from torch import Tensor

GROUP = 32  # inputs that share a scale in int4
_LARGEST = {8: 127, 4: 7}


def quantized(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantise `weight` [..., out, in]; returns int8 integers of that shape and scales [..., out, groups] fp32.

    Raises ValueError if `bits` is neither 8 nor 4, or if a 4-bit weight's inputs are not a multiple of GROUP.
    """
    if bits not in _LARGEST:
        raise ValueError(f"weights are quantised to 8 or 4 bits, not {bits}")
    size = weight.shape[-1] if bits == 8 else GROUP
    if weight.shape[-1] % size:
        raise ValueError(f"int4 weights need inputs in multiples of {GROUP}, not {weight.shape[-1]}")
    groups = weight.float().reshape(*weight.shape[:-1], -1, size)
    scales = (groups.abs().amax(-1) / _LARGEST[bits]).clamp(min=torch.finfo(torch.float32).tiny)
    return (groups / scales.unsqueeze(-1)).round().flatten(-2).to(torch.int8), scales


def dequantized(integers: Tensor, scales: Tensor) -> Tensor:
    """Multiply each integer by the scale of its group; returns fp32 [..., out, in]."""
    groups = integers.float().reshape(*scales.shape, -1)
    return (groups * scales.unsqueeze(-1)).flatten(-2)


def bytes_per_weight(bits: int, num_inputs: int) -> float:
    """Bytes of an integer and its share of a scale."""
    return bits / 8 + 4 / (num_inputs if bits == 8 else GROUP)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Quantise `weight` to `bits` and back, in its own dtype; with 16 bits return it unchanged."""
    return weight if bits == 16 else dequantized(*quantized(weight, bits)).to(weight.dtype)
