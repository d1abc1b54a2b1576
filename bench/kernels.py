"""How close the CPU kernels are to the limits of the machine.

Paged decode attention is compared with the bandwidth of a plain read from memory (its target is 0.6 of that), and with
a plain read of as many bytes, which for small shapes comes from a cache. Linear layers are compared with
`functional.linear`, a mixture of experts with `functional.linear` for each expert in use. All sides take turns, so
that other work on the machine slows all of them. Each figure is the best of many. Attention is called from a
recording, as in decode steps, because for a single sequence Python would take a third of the time.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from baton.process.bounds import whole
from bench import _command
from bench._machine import processor
from kernels.api import Attention, AttentionMeta, Kernels
from kernels.cpu.kernels import CPUKernels
from kernels.cpu.memory import huge_pages
from kernels.dispatch import load

BLOCK_SIZE = 16
MEMORY_BYTES = 1 << 28  # larger than any cache
DECODE_SHAPES = [  # sequences, tokens of each, KV heads, query heads per KV head, head dimension
    (1, 4096, 4, 3, 64),
    (8, 1024, 8, 4, 128),
    (32, 1024, 4, 3, 64),
]
LINEAR_SHAPES = [(4608, 768), (768, 2304), (384, 384)]  # outputs, inputs
ROWS = [1, 8, 32, 256]
EXPERTS_SHAPES = [(64, 8, 1024, 512)]  # experts, of a token, hidden size, feed-forward size


def main(argv: Sequence[str]) -> int:
    parser = _command.parser("kernels", __doc__)
    parser.add_argument("--threads", type=whole(1, 1024), default=torch.get_num_threads(), help="compute threads")
    dtypes = ["bfloat16", "float16", "float32"]
    parser.add_argument("--dtype", choices=dtypes, default="bfloat16", help="type of the tensors")
    parser.add_argument("--repeats", type=whole(), default=30, help="runs of each kernel, of which the best counts")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    kernels = load(torch.device("cpu"), dtype)
    print(_command.line("kernels", argv))
    print(f"{processor()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}, {args.dtype}")
    level = getattr(kernels, "level", None)
    print(f"kernels: {kernels.name} {level.name if level else ''}\n")
    num_lines = 3 + len(DECODE_SHAPES) + (len(LINEAR_SHAPES) + len(EXPERTS_SHAPES)) * len(ROWS)
    with _command.progress() as progress:
        for lines in (decode_attention, linears, experts):
            for line in progress.track(lines(kernels, dtype, args.repeats), total=num_lines):
                print(line)
    return 0


def decode_attention(kernels: Kernels, dtype: torch.dtype, repeats: int) -> Iterator[str]:
    """Yield shares of the read bandwidth: from memory, and of a plain read of as many bytes."""
    memory = huge_pages(MEMORY_BYTES).view(torch.float32).fill_(1)
    yield "paged decode attention       GB/s   of memory   of a plain read of as much"
    for num_seqs, seq_len, num_kv_heads, group, head_dim in DECODE_SHAPES:
        q, kv, meta = paged(num_seqs, seq_len, num_kv_heads, group, head_dim, dtype)
        num_bytes = 2 * num_seqs * seq_len * num_kv_heads * head_dim * dtype.itemsize
        plain = huge_pages(num_bytes).view(torch.float32).fill_(1)
        attend: Callable[[], Sequence[Tensor]] = partial(_attended, kernels, q, kv, meta)
        if isinstance(kernels, CPUKernels):
            attend = kernels.recorder(num_seqs)(attend)
        memory_s, read_s, attention_s = compare(repeats, memory.sum, plain.sum, attend)
        of_memory = num_bytes / attention_s / (MEMORY_BYTES / memory_s)
        shape = f"{num_seqs} x {seq_len}, {num_kv_heads} x {group} heads of {head_dim}"
        yield f"{shape:27} {num_bytes / attention_s / 1e9:5.1f}   {of_memory:.2f}x       {read_s / attention_s:.2f}x"


def _attended(kernels: Kernels, q: Tensor, kv: Tensor, meta: AttentionMeta) -> Sequence[Tensor]:
    return [kernels.paged_attention(q, kv, meta, Attention(0.1))]


def linears(kernels: Kernels, dtype: torch.dtype, repeats: int) -> Iterator[str]:
    """Yield speedups over functional.linear, which lays the weight out at each call."""
    yield "\nlinear        rows   GFLOP/s    GB/s   of functional.linear   int8    int4"
    for outputs, inputs in LINEAR_SHAPES:
        weight = torch.randn(outputs, inputs).to(dtype)
        packed = [kernels.pack_linear(weight, None, bits) for bits in (16, 8, 4)]
        for rows in ROWS:
            x = torch.randn(rows, inputs).to(dtype)
            sides: list[Callable[[], object]] = [partial(functional.linear, x, weight)]
            sides += [partial(linear, x) for linear in packed]
            plain_s, packed_s, *rounded_s = compare(repeats, *sides)
            rates = f"{2 * rows * outputs * inputs / packed_s / 1e9:8.0f} {weight.nbytes / packed_s / 1e9:7.1f}"
            others = "  ".join(f"{plain_s / seconds:5.2f}x" for seconds in rounded_s)
            yield f"{outputs:5} x {inputs:5} {rows:5} {rates}   {plain_s / packed_s:5.2f}x             {others}"


def experts(kernels: Kernels, dtype: torch.dtype, repeats: int) -> Iterator[str]:
    """Yield speedups over two calls of functional.linear for each expert that some row chose."""
    yield "\nexperts                      rows   GFLOP/s   of functional.linear   int8    int4"
    for num_experts, per_token, hidden, ffn in EXPERTS_SHAPES:
        gate_up = torch.randn(num_experts, 2 * ffn, hidden).to(dtype)
        down = torch.randn(num_experts, hidden, ffn).to(dtype)
        packed = [kernels.pack_experts(gate_up, down, "silu", bits=bits) for bits in (16, 8, 4)]
        for rows in ROWS:
            x, ids = torch.randn(rows, hidden).to(dtype), torch.rand(rows, num_experts).topk(per_token).indices
            weights = torch.rand(rows, per_token)
            sides: list[Callable[[], object]] = [partial(one_by_one, x, ids, gate_up, down)]
            sides += [partial(run, x, ids, weights) for run in packed]
            plain_s, packed_s, *rounded_s = compare(repeats, *sides)
            flops = 6 * rows * per_token * hidden * ffn
            others = "  ".join(f"{plain_s / seconds:5.2f}x" for seconds in rounded_s)
            shape = f"{per_token} of {num_experts}, {hidden} x {ffn}"
            yield f"{shape:27} {rows:5} {flops / packed_s / 1e9:9.0f}   {plain_s / packed_s:5.2f}x             {others}"


def one_by_one(x: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> None:
    """Run the mixture expert by expert in torch, as without our compiled grouping."""
    for expert in set(ids.flatten().tolist()):
        tokens = (ids == expert).any(1).nonzero().flatten()
        gate, up = functional.linear(x[tokens], gate_up[expert]).chunk(2, -1)
        functional.linear(functional.silu(gate) * up, down[expert])


def paged(
    num_seqs: int, seq_len: int, num_kv_heads: int, group: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, AttentionMeta]:
    """Return a batch with one query per sequence, and blocks in random order in a pool of four layers."""
    blocks_per_seq = -(-seq_len // BLOCK_SIZE)
    num_blocks = num_seqs * blocks_per_seq
    shape = (num_blocks, 4, 2, num_kv_heads, BLOCK_SIZE, head_dim)
    pool = huge_pages(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)  # as the engine allocates it
    pool.normal_()
    meta = AttentionMeta(
        query_start=torch.arange(num_seqs + 1, dtype=torch.int32),
        seq_lens=torch.full((num_seqs,), seq_len, dtype=torch.int32),
        block_tables=torch.randperm(num_blocks).int().view(num_seqs, blocks_per_seq),
        max_query_len=1,
        max_seq_len=seq_len,
    )
    return torch.randn(num_seqs, num_kv_heads * group, head_dim).to(dtype), pool[:, 1], meta


def compare(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Return the best time of each side, measured in turns."""
    best = [float("inf")] * len(sides)
    for _ in range(repeats):
        for i, side in enumerate(sides):
            started = time.perf_counter()
            side()
            best[i] = min(best[i], time.perf_counter() - started)
    return best
