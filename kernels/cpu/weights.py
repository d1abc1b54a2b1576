"""Weights of linear layers in the layout of weights.h: packed once into panels, in their own dtype or 8 or 4 bits."""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu.library import DTYPES, Library, WeightsStruct
from kernels.quantize import quantized

_STORAGE = {8: 3, 4: 4}  # kernels.cpp's numbers for 8 and 4 bits, which follow those of DTYPES


class PackedWeights:
    """`weight` [E, out, in] and `bias` [E, out] of E experts, packed; a plain linear layer has E = 1."""

    def __init__(self, library: Library, weight: Tensor, bias: Tensor | None, bits: int) -> None:
        """Raises ValueError if the weight cannot be quantised to `bits`."""
        num_experts, self.outputs, self.inputs = weight.shape
        self.num_experts, self.dtype = num_experts, weight.dtype
        panel = 2 * library.num_lanes
        num_panels = -(-self.outputs // panel)
        group, storage, scales = self.inputs, DTYPES[weight.dtype], None
        if bits != 16:
            weight, scales = quantized(weight, bits)
            group, storage = self.inputs // scales.shape[-1], _STORAGE[bits]
            scales = functional.pad(scales, (0, 0, 0, num_panels * panel - self.outputs))
            scales = scales.view(num_experts, num_panels, panel, -1).transpose(2, 3).contiguous()
        bytes_of_expert = library.weight_bytes(storage, self.outputs, self.inputs)
        self._panels = library.arena.take(num_experts * bytes_of_expert).view(num_experts, bytes_of_expert)
        for of_expert, packed in zip(weight.contiguous(), self._panels, strict=True):
            library.pack_weight(storage, of_expert.data_ptr(), packed.data_ptr(), self.outputs, self.inputs)
        self._scales = scales  # kept alive: the struct points to it
        self._bias = torch.zeros(num_experts, num_panels * panel)
        if bias is not None:
            self._bias[:, : self.outputs] = bias
        self._struct = WeightsStruct(
            panels=self._panels.data_ptr(),
            scales=None if scales is None else scales.data_ptr(),
            bias=self._bias.data_ptr(),
            outputs=self.outputs,
            inputs=self.inputs,
            group=group,
            storage=storage,
        )
        self.address = ctypes.addressof(self._struct)
