"""Arrays to the device and results back, such that neither makes a launching step wait for the device.

On a CPU nothing is copied. On a GPU both ways lead through pinned memory: a copy from memory that is not pinned would
wait for all that was launched before it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """On a CPU the array itself; on a GPU a copy, in the order of what is launched."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Returning:
    """Tensors on their way to the host, behind all that has been launched so far."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """They are copied here: what overwrites them later, launched after this, does no harm."""
        self._tensors = [_to_host(tensor) for tensor in tensors]
        self._arrival: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host; waits for nothing that was launched after them."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._tensors


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
