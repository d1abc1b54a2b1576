"""The roofline of a machine: how fast it reads memory, and how fast it multiplies."""

import time
from collections.abc import Callable
from functools import partial

import torch

from kernels.cpu.memory import huge_pages
from kernels.dispatch import load

_SQUARE = 2048


def best_of(function: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Return the seconds of the fastest run."""
    times = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start_s)
    return min(times)


class Roofline:
    """The limits of a device for one dtype. Measure them repeatedly, because a machine's speed varies."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._device = device
        num_bytes = 2**29
        data = huge_pages(num_bytes) if device == "cpu" else torch.empty(num_bytes, dtype=torch.uint8, device=device)
        floats = data.view(torch.float32).view(-1, 2**11).fill_(1.0)
        kernels = {each: load(torch.device(device), each) for each in {dtype, torch.float32}}
        row = partial(kernels[torch.float32].pack_linear(floats, None), floats[:1])
        self._reads: list[Callable[[], object]] = [floats.sum, row]
        self._num_bytes = num_bytes
        self._products: list[Callable[[], object]] = []
        for each, backend in kernels.items():
            a, b = (torch.randn(_SQUARE, _SQUARE, dtype=each, device=device) for _ in range(2))
            self._products.append(partial(backend.pack_linear(b, None), a))
            if each == torch_dtype(device, dtype):
                self._products.append(partial(torch.matmul, a, b))

    def bytes_per_s(self) -> float:
        """Measure the fastest way to read 512 MiB, on a CPU in huge pages like weights and KV.

        This is a sum, or a product with one row, which suits some processors' prefetchers better.
        """
        return self._num_bytes / min(best_of(read, self._device) for read in self._reads)

    def flops(self) -> float:
        """Measure FLOP/s in a dtype no narrower than `dtype`, with the fastest available multiplication."""
        return 2 * _SQUARE**3 / min(best_of(multiply, self._device) for multiply in self._products)


def torch_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """Return `dtype`, or float32 if torch multiplies that faster (by a factor of 100 without bf16 instructions)."""
    types = {dtype, torch.float32}
    squares = {each: torch.randn(512, 512, device=device).to(each) for each in types}
    return min(types, key=lambda each: best_of(partial(torch.matmul, squares[each], squares[each]), device))
