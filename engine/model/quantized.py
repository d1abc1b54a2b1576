"""The formats of quantised checkpoints: which tensors store the weight of a linear, and how to dequantise them.

Their shapes follow from that of the weight. `engine.model.quantization` determines the format of a checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.model.checkpoint import FLOATS, Checkpoint
from engine.model.dequantize import WORD_BITS, in_blocks, in_groups, unpacked

_NARROW = ("F8_E4M3", "I8")
AWQ_BITS = 4
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # of each of eight outputs: its place in a word, in 4 bits from the lowest


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors that store one linear."""

    checkpoint: Checkpoint
    linear: str
    device: torch.device

    def __contains__(self, part: str) -> bool:
        return f"{self.linear}.{part}" in self.checkpoint

    def read(self, part: str, shape: Sequence[int], types: Sequence[str] = FLOATS, *, reshaped: bool = False) -> Tensor:
        """As `Checkpoint.tensor`, copied to the device."""
        return self.checkpoint.tensor(f"{self.linear}.{part}", shape, types, reshaped=reshaped).to(self.device)

    def words(self, part: str, *shape: int) -> Tensor:
        """Read a tensor of int32."""
        return self.read(part, shape, ("I32",))

    def group_of(self, part: str, num_inputs: int, size: int) -> Tensor:
        """The group of each input: `size` neighbours form a group, unless the tensor `part` says otherwise."""
        if part not in self:
            return torch.arange(num_inputs, device=self.device) // size
        groups = self.read(part, (num_inputs,), ("I32", "I64")).long()
        num_groups = -(-num_inputs // size)
        if groups.min() < 0 or groups.max() >= num_groups:
            self.checkpoint.refuse(f"{self.linear}.{part}", f"names a group outside the {num_groups} that there are")
        return groups


class Quantized(Protocol):
    """A format of quantised linears."""

    @property
    def part(self) -> str:
        """The tensor whose presence shows that a linear is in this format."""

    @property
    def values_per_word(self) -> int:
        """Weights in an int32."""

    def widened(self, parts: Parts, num_outputs: int, num_inputs: int) -> Tensor:
        """Dequantise to [out, in], fp32 or a type of FLOATS; CheckpointError names file and tensor."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Weights in FP8 or int8; `block` outputs and inputs share a scale (0: all of them)."""

    block: tuple[int, int]
    scales: str = "weight_scale"
    part: str = "weight"
    values_per_word: int = 1

    def widened(self, parts: Parts, num_outputs: int, num_inputs: int) -> Tensor:
        """Dequantise; linears that were not quantised are returned as they are."""
        shape = num_outputs, num_inputs
        weight = parts.read(self.part, shape, (*FLOATS, *_NARROW))
        if weight.element_size() > 1:
            return weight
        block = self.block[0] or num_outputs, self.block[1] or num_inputs
        num_blocks = [-(-size // each) for size, each in zip(shape, block, strict=True)]
        return in_blocks(weight, parts.read(self.scales, num_blocks, reshaped=True), block)


@dataclass(frozen=True, slots=True)
class GPTQ:
    """Words of several inputs; `group_size` inputs share a scale and a zero point (0: all of them)."""

    bits: int
    group_size: int
    zero_offset: int  # subtracted from zero points before they were stored
    part: str = "qweight"

    @property
    def values_per_word(self) -> int:
        """Weights in an int32."""
        return WORD_BITS // self.bits

    def widened(self, parts: Parts, num_outputs: int, num_inputs: int) -> Tensor:
        """Stored as [in, out]."""
        size, per_word = self.group_size or num_inputs, self.values_per_word
        num_groups = -(-num_inputs // size)
        numbers = unpacked(parts.words(self.part, num_inputs // per_word, num_outputs), self.bits, 0)
        stored = unpacked(parts.words("qzeros", num_groups, num_outputs // per_word), self.bits, 1)
        zeros = (stored + self.zero_offset) % 2**self.bits
        scales = parts.read("scales", (num_groups, num_outputs))
        return in_groups(numbers.T, zeros.T, scales.T, parts.group_of("g_idx", num_inputs, size))


@dataclass(frozen=True, slots=True)
class AWQ:
    """Words of eight outputs in the order _AWQ_ORDER; `group_size` inputs share a scale and a zero point."""

    group_size: int
    part: str = "qweight"
    values_per_word: int = WORD_BITS // AWQ_BITS

    def widened(self, parts: Parts, num_outputs: int, num_inputs: int) -> Tensor:
        """Stored as [in, out]."""
        size, num_words = self.group_size or num_inputs, num_outputs // self.values_per_word
        num_groups = -(-num_inputs // size)
        numbers = self._in_order(parts.words(self.part, num_inputs, num_words))
        zeros = self._in_order(parts.words("qzeros", num_groups, num_words))
        scales = parts.read("scales", (num_groups, num_outputs))
        return in_groups(numbers.T, zeros.T, scales.T, parts.group_of("g_idx", num_inputs, size))

    def _in_order(self, words: Tensor) -> Tensor:
        numbers = unpacked(words, AWQ_BITS, 1).view(len(words), -1, self.values_per_word)
        return numbers[:, :, list(_AWQ_ORDER)].flatten(1)


@dataclass(frozen=True, slots=True)
class Packed:
    """compressed-tensors' words of several inputs. Half of the range is added to numbers before they are stored."""

    bits: int
    group_size: int
    symmetric: bool
    part: str = "weight_packed"

    @property
    def values_per_word(self) -> int:
        """Weights in an int32."""
        return WORD_BITS // self.bits

    def widened(self, parts: Parts, num_outputs: int, num_inputs: int) -> Tensor:
        """Stored as [out, in], with padding in the last word."""
        size, half = self.group_size or num_inputs, 2 ** (self.bits - 1)
        num_groups = -(-num_inputs // size)
        words = parts.words(self.part, num_outputs, -(-num_inputs // self.values_per_word))
        numbers = unpacked(words, self.bits, 1)[:, :num_inputs]
        zeros = torch.full((num_outputs, num_groups), half, device=words.device)
        if not self.symmetric:
            stored = parts.words("weight_zero_point", -(-num_outputs // self.values_per_word), num_groups)
            zeros = unpacked(stored, self.bits, 0)[:num_outputs]
        scales = parts.read("weight_scale", (num_outputs, num_groups))
        return in_groups(numbers, zeros, scales, parts.group_of("weight_g_idx", num_inputs, size))
