"""What a machine could do at most: how fast it reads, and how fast it multiplies."""

import time
from collections.abc import Callable
from functools import partial

import torch

from kernels.cpu.memory import huge_pages
from kernels.dispatch import load


def best_of(function: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start_s)
    return min(times)


def read_bandwidth(device: str) -> float:
    """Bytes per second of the fastest way to read 512 MiB, which on a CPU lie in huge pages as weights and KV do.

    A sum, or a product with one row: some processors' own prefetchers do better by the latter.
    """
    num_bytes = 2**29
    data = huge_pages(num_bytes) if device == "cpu" else torch.empty(num_bytes, dtype=torch.uint8, device=device)
    floats = data.view(torch.float32).view(-1, 2**11).fill_(1.0)
    multiply = partial(load(torch.device(device), torch.float32).pack_linear(floats, None), floats[:1])
    return num_bytes / min(best_of(floats.sum, device), best_of(multiply, device))


def gemm_flops(device: str, dtype: torch.dtype) -> float:
    """The fastest that this machine multiplies in a type no narrower than `dtype`, whoever does it."""
    size = 2048
    rates = []
    for each in {dtype, torch.float32}:
        a, b = (torch.randn(size, size, dtype=each, device=device) for _ in range(2))
        multiplications = [partial(load(torch.device(device), each).pack_linear(b, None), a)]
        if each == torch_dtype(device, dtype):
            multiplications.append(partial(torch.matmul, a, b))
        rates += [2 * size**3 / best_of(multiply, device) for multiply in multiplications]
    return max(rates)


def torch_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 where torch multiplies that faster: without bf16 instructions by two orders."""
    types = {dtype, torch.float32}
    squares = {each: torch.randn(512, 512, device=device).to(each) for each in types}
    return min(types, key=lambda each: best_of(partial(torch.matmul, squares[each], squares[each]), device))
