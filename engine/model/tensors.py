"""A checkpoint's tensors as the decoder wants them: in its type, on its device, widened where they were quantised.

Which tensors a layer has is the business of the modules that load it.
"""

import torch
from torch import Tensor

from engine.model.checkpoint import FLOATS, Checkpoint
from engine.model.dequantize import fp8

_FP8 = "F8_E4M3"


class TensorReader:
    """All that is read is a copy in memory: a view of the file would fault pages in during the first requests."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        fp8_block: tuple[int, int] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self._fp8_block = fp8_block

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint

    def read(self, name: str, *shape: int) -> Tensor:
        """A tensor of that shape."""
        return self._mapped(name, shape).to(device=self.device, dtype=self.dtype, copy=True)

    def wide(self, name: str, *shape: int) -> Tensor:
        """The same in fp32."""
        return self._mapped(name, shape).to(device=self.device, dtype=torch.float32, copy=True)

    def read_into(self, target: Tensor, name: str) -> None:
        """Fill `target`, which says the shape."""
        target.copy_(self._mapped(name, tuple(target.shape)))

    def empty(self, *shape: int) -> Tensor:
        """Room for parts that are read one by one."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def outputs(self, parts: dict[str, int], fused: str, *rest: int) -> Tensor:
        """The tensors `parts` (with their numbers of rows) under each other; some checkpoints hold that as `fused`."""
        rows = sum(parts.values())
        if fused and not any(name in self for name in parts):
            return self.read(fused, rows, *rest)
        target = self.empty(rows, *rest)
        for part, name in zip(torch.split(target, list(parts.values())), parts, strict=True):
            self.read_into(part, name)
        return target

    def _mapped(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if self._fp8_block is None or len(shape) != 2:
            return self.checkpoint.tensor(name, shape)
        weight = self.checkpoint.tensor(name, shape, (*FLOATS, _FP8))
        if weight.dtype is not torch.float8_e4m3fn:
            return weight
        num_blocks = [-(-size // block) for size, block in zip(shape, self._fp8_block, strict=True)]
        scales = self.checkpoint.tensor(f"{name}_scale_inv", num_blocks)
        wide = fp8(weight.to(self.device), scales.to(self.device), self._fp8_block)
        self.checkpoint.check_finite(name, wide)
        return wide
