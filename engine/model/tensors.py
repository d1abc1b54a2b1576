"""Reads a checkpoint's tensors as the decoder needs them: in its dtype, on its device, dequantised.

The modules that load layers know which tensors these have.
"""

import math

import torch
from torch import Tensor

from engine.model.checkpoint import Checkpoint
from engine.model.quantized import Parts, Quantized

_WEIGHT = ".weight"


class TensorReader:
    """Reads copies into memory: with a view of the file, the first requests would have to wait for page faults."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        quantized: Quantized | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self._quantized = quantized
        self._num_values = checkpoint.num_values(quantized.values_per_word if quantized else 1)

    def __contains__(self, name: str) -> bool:
        if name in self.checkpoint or self._quantized is None:
            return name in self.checkpoint
        return f"{name.removesuffix(_WEIGHT)}.{self._quantized.part}" in self.checkpoint

    def read(self, name: str, *shape: int) -> Tensor:
        """Read a tensor of that shape, in the decoder's dtype."""
        return self._mapped(name, shape).to(device=self.device, dtype=self.dtype, copy=True)

    def wide(self, name: str, *shape: int) -> Tensor:
        """Read a tensor of that shape in fp32."""
        return self._mapped(name, shape).to(device=self.device, dtype=torch.float32, copy=True)

    def read_into(self, target: Tensor, name: str) -> None:
        """Read a tensor of the shape of `target` into `target`."""
        target.copy_(self._mapped(name, tuple(target.shape)))

    def room(self, name: str, *shape: int) -> Tensor:
        """Allocate memory for parts of `name` that are read one by one; CheckpointError if the files hold less."""
        if math.prod(shape) > self._num_values:
            self.checkpoint.refuse_size(name, shape)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def outputs(self, parts: dict[str, int], fused: str, *rest: int) -> Tensor:
        """Read the tensors `parts` (name: number of rows), concatenated; some checkpoints store them as `fused`."""
        rows = sum(parts.values())
        if fused and not any(name in self for name in parts):
            if not self.checkpoint.has_linear(fused.split(".")[-2]):
                self.checkpoint.refuse_missing(next(iter(parts)))
            return self.read(fused, rows, *rest)
        target = self.room(next(iter(parts)), rows, *rest)
        for part, name in zip(torch.split(target, list(parts.values())), parts, strict=True):
            self.read_into(part, name)
        return target

    def _mapped(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if self._quantized is None or len(shape) != 2 or not name.endswith(_WEIGHT):
            return self.checkpoint.tensor(name, shape)
        parts = Parts(self.checkpoint, name.removesuffix(_WEIGHT), self.device)
        if self._quantized.part not in parts:
            return self.checkpoint.tensor(name, shape)
        weight = self._quantized.widened(parts, *shape)
        self.checkpoint.check_finite(f"{parts.linear}.{self._quantized.part}", weight)
        return weight
