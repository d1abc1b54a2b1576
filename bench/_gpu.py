"""Limits of a GPU, and timings on it, as medians over CUDA events."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

DEVICE = "cuda"
CALLS = 8  # calls per graph
MATMUL = 8192


def randn(*shape: int) -> Tensor:
    """Return random bf16 numbers on the GPU."""
    return torch.randn(*shape, dtype=torch.bfloat16, device=DEVICE)


def copy_bandwidth(repeats: int) -> float:
    """Measure the bandwidth of a copy: bytes read plus bytes written per second."""
    source = torch.randint(256, (1 << 30,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    took_s = _median_s(lambda: target.copy_(source), repeats)  # a graph would use another, slower kind of copy
    return 2 * source.nbytes / took_s


def matmul_flops(repeats: int) -> float:
    """Measure the FLOP/s of torch's product of large matrices."""
    a, b = randn(MATMUL, MATMUL), randn(MATMUL, MATMUL)
    return 2 * MATMUL**3 / seconds(lambda: a @ b, repeats)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of one call on the device, replayed from a graph."""
    run()  # compiles
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            run()
    return _median_s(graph.replay, repeats) / CALLS


def _median_s(run: Callable[[], object], repeats: int) -> float:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]  # type: ignore[no-untyped-call]
    run()
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    took_ms: list[float] = [start.elapsed_time(end) for start, end in events]
    return statistics.median(took_ms) / 1e3
