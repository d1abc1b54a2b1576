"""Random weights in the formats of quantised checkpoints, number by number, and what they stand for."""

import torch
from torch import Tensor

Stored = tuple[dict[str, Tensor], Tensor]  # a linear's tensors by the last part of their names; [out, in] fp32
AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # the outputs, of eight, that a word holds from its lowest bits on
INT32 = 2**32


def gptq(num_outputs: int, num_inputs: int, *, bits=4, size=16, offset=1, shuffled=False) -> Stored:
    """Format 1 has `offset` 1, format 2 has 0; `shuffled` inputs have groups in any order."""
    numbers, zeros, scales = _random(num_outputs, num_inputs, bits, size)
    group_of = torch.arange(num_inputs) // size
    if shuffled:
        group_of = group_of[torch.randperm(num_inputs)]
    lowered = (zeros - offset) % 2**bits
    tensors = {
        "qweight": _words(numbers, bits).T.contiguous(),  # along the inputs
        "qzeros": _words(lowered.T, bits),  # along the outputs
        "scales": scales.T.contiguous(),
        "g_idx": group_of.int(),
    }
    return tensors, _wide(numbers, zeros, scales, group_of)


def awq(num_outputs: int, num_inputs: int, *, size=16) -> Stored:
    numbers, zeros, scales = _random(num_outputs, num_inputs, 4, size)
    tensors = {
        "qweight": _words(_reordered(numbers.T), 4),
        "qzeros": _words(_reordered(zeros.T), 4),
        "scales": scales.T.contiguous(),
    }
    return tensors, _wide(numbers, zeros, scales, torch.arange(num_inputs) // size)


def packed(num_outputs: int, num_inputs: int, *, bits=4, size=16, symmetric=True) -> Stored:
    """compressed-tensors, pack-quantized."""
    numbers, zeros, scales = _random(num_outputs, num_inputs, bits, size)
    if symmetric:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    tensors = {
        "weight_packed": _words(numbers, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([num_outputs, num_inputs]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = _words(zeros.T, bits).T.contiguous()
    return tensors, _wide(numbers, zeros, scales, torch.arange(num_inputs) // size)


def scaled(num_outputs: int, num_inputs: int, *, dtype: torch.dtype, scale_shape: tuple[int, ...]) -> Stored:
    """FP8 or int8 with one scale, or one for each output."""
    weight = (20 * torch.randn(num_outputs, num_inputs)).to(dtype)
    scales = torch.rand(scale_shape) / 50
    return {"weight": weight, "weight_scale": scales}, weight.float() * scales.view(-1, 1)


def _random(num_outputs: int, num_inputs: int, bits: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers [out, in], zeros [out, groups] and scales [out, groups]."""
    num_groups = -(-num_inputs // size)
    numbers = torch.randint(0, 2**bits, (num_outputs, num_inputs))
    zeros = torch.randint(0, 2**bits, (num_outputs, num_groups))
    return numbers, zeros, torch.rand(num_outputs, num_groups) / 2**bits


def _wide(numbers: Tensor, zeros: Tensor, scales: Tensor, group_of: Tensor) -> Tensor:
    rows = [
        [
            (int(numbers[row, at]) - int(zeros[row, group])) * float(scales[row, group])
            for at, group in enumerate(group_of.tolist())
        ]
        for row in range(len(numbers))
    ]
    return torch.tensor(rows)


def _words(numbers: Tensor, bits: int) -> Tensor:
    """[rows, n] -> [rows, n * bits / 32] int32, the last word filled up with zeros."""
    per_word, rows = 32 // bits, []
    for row in numbers.tolist():
        words = [row[at : at + per_word] for at in range(0, len(row), per_word)]
        sums = [sum(number << bits * place for place, number in enumerate(word)) for word in words]
        rows.append([word - INT32 if word >= INT32 // 2 else word for word in sums])
    return torch.tensor(rows, dtype=torch.int32)


def _reordered(numbers: Tensor) -> Tensor:
    return numbers.reshape(len(numbers), -1, 8)[:, :, list(AWQ_NIBBLES)].flatten(1)
