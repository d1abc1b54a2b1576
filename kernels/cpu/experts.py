"""A mixture of experts on the compiled kernels: weights are packed once; each call groups its tokens by expert."""

import torch
from torch import Tensor

from kernels.api import Activation
from kernels.cpu.library import ACTIVATIONS, DTYPES, Library
from kernels.cpu.weights import PackedWeights


class PackedExperts:
    """See `Kernels.pack_experts`."""

    def __init__(self, library: Library, gate_up: PackedWeights, down: PackedWeights, activation: Activation) -> None:
        self._library = library
        self._gate_up, self._down = gate_up, down
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """x [T, H], expert_ids [T, K] int64 within [0, E), weights [T, K] fp32 -> [T, H]."""
        if x.dtype is not self._gate_up.dtype or x.shape[1] != self._gate_up.inputs:
            raise TypeError(f"expected {self._gate_up.dtype} of {self._gate_up.inputs} inputs, not {x.dtype} {x.shape}")
        x, expert_ids, weights = x.contiguous(), expert_ids.long().contiguous(), weights.float().contiguous()
        out = self._library.result(*x.shape, dtype=x.dtype)
        self._library.experts(
            *(DTYPES[x.dtype], self._gate_up.address, self._down.address, self._activation, self._gate_up.num_experts),
            *(x.data_ptr(), expert_ids.data_ptr(), weights.data_ptr(), out.data_ptr()),
            *(*expert_ids.shape, torch.get_num_threads()),
        )
        return out
