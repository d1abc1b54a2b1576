"""How near attention on a GPU comes to what the GPU can do: `baton bench gpu_kernels`.

Decode attention is held against a plain copy of as many bytes, prefill attention against torch's fastest attention over
the same tokens in one piece. Figures are medians over CUDA events; the decode step as a whole is `gpu_decode`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels.api import Attention, AttentionMeta
from kernels.triton import TritonKernels

BLOCK_SIZE = 16
DECODE_SHAPES = [  # sequences, tokens of each, KV heads, query heads per KV head, head dimension, planes
    (1, 32768, 8, 4, 128, 2),
    (64, 1024, 8, 4, 128, 2),
    (64, 8192, 8, 4, 128, 2),
    (256, 2048, 8, 4, 128, 2),
    (64, 4096, 8, 8, 64, 2),
    (64, 4096, 1, 128, 576, 1),
]
PREFILL_SHAPES = [  # sequences, tokens of each, KV heads, query heads per KV head, head dimension
    (1, 2048, 8, 4, 128),
    (1, 16384, 8, 4, 128),
    (4, 4096, 8, 8, 64),
    (1, 8192, 8, 2, 256),
]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="baton bench gpu_kernels", description="Attention against the GPU.")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("this benchmark needs a GPU, and torch sees none", file=sys.stderr)
        return 1
    print(f"baton bench gpu_kernels {' '.join(argv)}".rstrip())
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16\n")
    for line in (*decode_lines(args.repeats), "", *prefill_lines(args.repeats)):
        print(line)
    return 0


def decode_lines(repeats: int) -> Iterator[str]:
    """Bytes of KV over seconds, as a share of the bytes that a copy reads and writes in a second."""
    copy_rate = copy_bandwidth(repeats)
    yield f"copy {copy_rate / 1e9:.0f} GB/s\ndecode attention                         GB/s   of copy"
    for num_seqs, seq_len, num_kv_heads, group, head_dim, planes in DECODE_SHAPES:
        kv, meta = paged(num_seqs, seq_len, 1, num_kv_heads, head_dim, planes)
        q = randn(num_seqs, num_kv_heads * group, head_dim)
        attend_s = seconds(partial(attend, q, kv, meta), repeats)
        rate = num_seqs * seq_len * planes * num_kv_heads * head_dim * 2 / attend_s
        shape = f"{num_seqs} x {seq_len}, {num_kv_heads} x {group} heads of {head_dim}"
        yield f"{shape:36} {rate / 1e9:8.0f}   {rate / copy_rate:.0%}"


def prefill_lines(repeats: int) -> Iterator[str]:
    """TFLOP/s, and torch's seconds over ours."""
    yield "prefill attention                     TFLOP/s   of torch's attention"
    for num_seqs, seq_len, num_kv_heads, group, head_dim in PREFILL_SHAPES:
        kv, meta = paged(num_seqs, seq_len, seq_len, num_kv_heads, head_dim, 2)
        q = randn(num_seqs * seq_len, num_kv_heads * group, head_dim)
        attend_s = seconds(partial(attend, q, kv, meta), repeats)
        whole = [randn(num_seqs, heads, seq_len, head_dim) for heads in (num_kv_heads * group, *[num_kv_heads] * 2)]
        torch_s = seconds(partial(torch_attention, *whole), repeats)
        flops = 2 * num_seqs * seq_len**2 * num_kv_heads * group * head_dim  # half of the scores are masked
        shape = f"{num_seqs} x {seq_len}, {num_kv_heads} x {group} heads of {head_dim}"
        yield f"{shape:36} {flops / attend_s / 1e12:8.0f}   {torch_s / attend_s:.2f}x"


def attend(q: Tensor, kv: Tensor, meta: AttentionMeta) -> Tensor:
    """Of one layer."""
    return TritonKernels().paged_attention(q, kv, meta, Attention(q.shape[-1] ** -0.5))


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[N, heads, tokens, D]; causal."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def paged(
    num_seqs: int, seq_len: int, num_queries: int, num_kv_heads: int, head_dim: int, planes: int
) -> tuple[Tensor, AttentionMeta]:
    """Blocks in random order in a pool of two layers."""
    num_blocks = num_seqs * -(-seq_len // BLOCK_SIZE)
    pool = randn(num_blocks, 2, planes, num_kv_heads, BLOCK_SIZE, head_dim)
    meta = AttentionMeta(
        query_start=torch.arange(num_seqs + 1, device="cuda").int() * num_queries,
        seq_lens=torch.full((num_seqs,), seq_len, device="cuda").int(),
        block_tables=torch.randperm(num_blocks, device="cuda").int().view(num_seqs, -1),
        max_query_len=num_queries,
        max_seq_len=seq_len,
    )
    return pool[:, 1], meta


def randn(*shape: int) -> Tensor:
    """bf16 on the GPU."""
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")


def copy_bandwidth(repeats: int) -> float:
    """Bytes read plus bytes written per second."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), repeats)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median of one call on the device."""
    for _ in range(3):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]  # type: ignore[no-untyped-call]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    took_ms: list[float] = [start.elapsed_time(end) for start, end in events]
    return statistics.median(took_ms) / 1e3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
