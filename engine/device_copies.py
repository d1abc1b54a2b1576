"""Copies to the device and back that do not make the launch of a step wait for the device.

On a CPU nothing is copied. On a GPU both directions use pinned memory, since a copy from pageable memory would wait for
everything that was launched before it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return the array itself on a CPU; on a GPU a copy, which is made in launch order."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Returning:
    """Tensors that are being copied to the host, after everything that has been launched so far."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Launch the copies. Kernels that are launched afterwards may overwrite the tensors."""
        self._tensors = [_to_host(tensor) for tensor in tensors]
        self._arrival: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record()

    def wait(self) -> list[Tensor]:
        """Return the tensors on the host. Does not wait for anything that was launched after the copies."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._tensors


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
