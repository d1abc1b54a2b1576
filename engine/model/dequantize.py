"""The values that numbers in quantised checkpoints represent. `engine.model.quantized` knows how they are stored.

MXFP4, as in OCP's Microscaling Formats (MX) Specification 1.0: 32 values of four bits share a power of two. FP8 and
int8: a block of outputs and inputs shares a scale. Integers of GPTQ, AWQ and compressed-tensors: a group of inputs
shares a scale and a zero point. Activations are not quantised.
"""

import torch
from torch import Tensor
from torch.nn import functional

MXFP4_GROUP = 32
WORD_BITS = 32
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))
_FP4_PAIRS = [(_FP4[byte & 15], _FP4[byte >> 4]) for byte in range(256)]
_BIAS = 127  # of the exponents


def mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """[out, groups, 16] and [out, groups], both uint8 -> [out, 32 * groups] fp32.

    A byte holds two values, the low four bits first, each a sign and an index into 0 to 6; a scale is 2^(byte - 127).
    """
    device = blocks.device
    values = functional.embedding(blocks.int(), torch.tensor(_FP4_PAIRS, device=device))  # [out, groups, 16, 2]
    powers = torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - _BIAS)
    return (values.flatten(-2) * powers.unsqueeze(-1)).flatten(-2)


def in_blocks(weight: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """Dequantise [out, in] fp8 or int8 with a scale per block; blocks at the edges may be cut off. [out, in] fp32."""
    rows, columns = weight.shape
    each = scales.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight.float() * each


def in_groups(numbers: Tensor, zeros: Tensor, scales: Tensor, group_of: Tensor) -> Tensor:
    """(number - zero) * scale: numbers [out, in], zeros and scales [out, groups], group_of [in] -> [out, in] fp32."""
    return (numbers - zeros.index_select(1, group_of)) * scales.float().index_select(1, group_of)


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """Unpack int32 [rows, columns] along `dim` into the unsigned numbers of `bits` bits in a word, low bits first."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    numbers: Tensor = (words.unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (1 - dim))) & (2**bits - 1)
    return numbers.flatten(dim, dim + 1)
