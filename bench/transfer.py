"""KV transfers between two processes of this machine, compared with memcpy, a blocking socket and ucx_perftest.

    baton bench transfer [--megabytes 256] [--rounds 3] [--device cuda]

A round moves the same bytes in messages of one size. Baton's figures are for whole transfers: grant, messages, digests
on both sides, commit. All ways of one size take turns, and the best round of each counts, so that other work on the
machine affects all of them. CPU seconds are those of both processes together. With `--device cuda` both pools are on
the GPU, and transfers are compared with a copy within its memory.
"""

import os
import platform
from collections.abc import Callable, Iterator, Sequence

import torch
from rich.progress import Progress

from baton.process.bounds import whole
from bench import _command
from bench._transfer.nodes import transfers
from bench._transfer.ways import (
    PERFTESTS,
    Child,
    Round,
    blocking_socket,
    device_copy,
    memcpy,
    ucx_perftest,
    why_no_perftest,
)
from kv_transfer.choose import choose
from kv_transfer.ucx.transport import why_unavailable

SIZES = [2**16, 2**18, 2**20, 2**22, 2**24, 2**26]
RATIOS = [("shm", "memcpy"), ("tcp", "socket"), ("ucx", "socket"), ("cuda", "copy"), ("cuda", "shm")]


def ways(child: Child, total: int, size: int, device: str) -> dict[str, Callable[[], Round]]:
    """Return a call for one round of each way that this machine supports."""
    missing = {"ucx"} if why_unavailable() else set()
    names = [name for name in choose("auto", on_gpu=device == "cuda") if name not in missing]
    of_baton = {name: lambda name=name: min(transfers(child, name, total, size, 2, device)) for name in names}
    if device == "cuda":
        return {"copy": lambda: device_copy(total, size), **of_baton}
    baselines: dict[str, Callable[[], Round]] = {
        "memcpy": lambda: memcpy(total, size),
        "socket": lambda: blocking_socket(child, total, size),
    }
    if not why_no_perftest():
        baselines |= {way: lambda way=way: ucx_perftest(way, total, size) for way in PERFTESTS}  # type: ignore[misc]
    return baselines | of_baton


def line(size: int, total: int, best: dict[str, Round]) -> str:
    """Return a row: GB/s (and CPU seconds per GB) of each way, then the ratios."""
    cells = [f"{total / 1e9 / r.wall_s:.2f} ({r.cpu_s / (total / 1e9):.2f})" for r in best.values()]
    ratios = [f"{best[b].wall_s / best[a].wall_s:.2f}" for a, b in RATIOS if a in best and b in best]
    return " | ".join([f"{size // 1024} KiB", *cells, *ratios])


def report(total: int, rounds: int, sizes: Sequence[int], device: str, progress: Progress) -> Iterator[str]:
    """Yield the lines of the report as they are measured."""
    load = os.getloadavg()[0]
    yield f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"
    on_gpu = f" --device cuda, on {torch.cuda.get_device_name()}" if device == "cuda" else ""
    yield f"baton bench transfer --megabytes {total // 2**20} --rounds {rounds}{on_gpu}\n"
    yield from filter(None, [why_no_perftest(), why_unavailable()])
    child = Child()
    names = list(ways(child, total, sizes[0], device))
    ratios = [f"{a}/{b}" for a, b in RATIOS if a in names and b in names]
    yield " | ".join(["GB/s (CPU s/GB)", *names, *ratios])
    yield "|".join(["---"] * (1 + len(names) + len(ratios)))
    task = progress.add_task("", total=len(sizes) * rounds * len(names))
    for size in sizes:
        best: dict[str, Round] = {}
        for _ in range(rounds):
            for name, measure in ways(child, total, size, device).items():
                progress.update(task, description=f"{size // 1024} KiB {name}")
                best[name] = min(measure(), best.get(name, Round(float("inf"), 0.0)))
                progress.advance(task)
        yield line(size, total, best)
    child.close()


def main(argv: Sequence[str]) -> int:
    """Print one row per message size."""
    parser = _command.parser("transfer", __doc__)
    parser.add_argument("--megabytes", type=whole(1, 65_536), default=256, help="megabytes moved per round")
    parser.add_argument("--rounds", type=whole(), default=3, help="rounds of each way, of which the best counts")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="device of both pools")
    args = parser.parse_args(argv)
    total = args.megabytes * 2**20
    sizes = [size for size in (SIZES if args.device == "cpu" else SIZES[2:]) if size <= total]
    with _command.progress() as progress:
        for text in report(total, args.rounds, sizes, args.device, progress):
            print(text)
    return 0
