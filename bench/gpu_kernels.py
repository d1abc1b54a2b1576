"""How close the GPU kernels are to the limits of the GPU.

Kernels that move data are compared with a copy of as many bytes; decode attention and mixtures of experts with the
slower of copying what they read and multiplying what they multiply; prefill attention with torch's fastest attention
over the same tokens, contiguous; linear layers of `--deterministic` and of `--quantization` with torch's in bf16.
Kernels are replayed from CUDA graphs, as in decode steps, so the figures, medians over CUDA events, do not include
launches from Python. The decode step as a whole is measured by `gpu_decode`.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from baton.process.bounds import whole
from bench import _command
from bench._gpu import DEVICE, copy_bandwidth, matmul_flops, randn, seconds
from bench._gpu_products import expert_lines, linear_lines, quantized_lines
from kernels.api import Attention, AttentionMeta
from kernels.triton import TritonKernels
from kernels.triton.blocks import digest_blocks, fetch_blocks, pack_blocks, unpack_blocks
from kernels.triton.sampling import draw

BLOCK_SIZE = 16
NUM_TOKENS, HIDDEN, FFN, VOCAB = 16384, 4096, 14336, 128256  # of an 8B model
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 128
POOL_BLOCKS, BLOCK_BYTES, PACKED_BLOCKS, STAGED_BLOCKS = 2048, 1 << 18, 1024, 16
DECODE_SHAPES = [  # sequences, tokens of each, KV heads, query heads per KV head, head dimension, planes
    (1, 32768, 8, 4, 128, 2),
    (64, 1024, 8, 4, 128, 2),
    (64, 8192, 8, 4, 128, 2),
    (256, 2048, 8, 4, 128, 2),
    (64, 4096, 8, 8, 64, 2),
    (64, 4096, 1, 128, 576, 1),  # MLA, as DeepSeek-V3's and V2-Lite's
    (64, 4096, 1, 16, 576, 1),
]
PREFILL_SHAPES = [  # sequences, tokens of each, KV heads, query heads per KV head, head dimension
    (1, 2048, 8, 4, 128),
    (1, 16384, 8, 4, 128),
    (4, 4096, 8, 8, 64),
    (1, 8192, 8, 2, 256),
]


def main(argv: Sequence[str]) -> int:
    parser = _command.parser("gpu_kernels", __doc__)
    parser.add_argument("--repeats", type=whole(1, 10_000), default=30, help="runs of each kernel")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("this benchmark needs a GPU, and torch sees none", file=sys.stderr)
        return 1
    print(_command.line("gpu_kernels", argv))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16\n")
    copy_rate, flops = copy_bandwidth(args.repeats), matmul_flops(args.repeats)
    print(f"copy {copy_rate / 1e9:.0f} GB/s, bytes read and written; matmul {flops / 1e12:.0f} TFLOP/s")
    for lines in (
        decode_lines(args.repeats, copy_rate, flops),
        expert_lines(args.repeats, copy_rate, flops),
        linear_lines(args.repeats, copy_rate, flops),
        quantized_lines(args.repeats, copy_rate, flops),
        moving_lines(args.repeats, copy_rate),
        staging_lines(args.repeats),
        prefill_lines(args.repeats),
    ):
        for line in lines:
            print(line, flush=True)
    return 0


def decode_lines(repeats: int, copy_rate: float, flops: float) -> Iterator[str]:
    """Yield the bandwidth on KV, and the share of the bound by copying or multiplying, whichever takes longer."""
    yield "\ndecode attention                         GB/s   of roofline"
    for num_seqs, seq_len, num_kv_heads, group, head_dim, planes in DECODE_SHAPES:
        kv, meta = paged(num_seqs, seq_len, 1, num_kv_heads, head_dim, planes)
        q = randn(num_seqs, num_kv_heads * group, head_dim)
        attend_s = seconds(partial(attend, q, kv, meta), repeats)
        num_bytes = num_seqs * seq_len * planes * num_kv_heads * head_dim * 2
        num_products = 2 * num_seqs * seq_len * num_kv_heads * group * head_dim
        bound_s = max(num_bytes / copy_rate, 2 * num_products / flops)
        shape = f"{num_seqs} x {seq_len}, {num_kv_heads} x {group} heads of {head_dim}"
        yield f"{shape:36} {num_bytes / attend_s / 1e9:8.0f}   {bound_s / attend_s:.0%}"


def prefill_lines(repeats: int) -> Iterator[str]:
    """Yield TFLOP/s, and the time of torch's fastest backend over ours."""
    yield "\nprefill attention                     TFLOP/s   of torch's attention"
    for num_seqs, seq_len, num_kv_heads, group, head_dim in PREFILL_SHAPES:
        kv, meta = paged(num_seqs, seq_len, seq_len, num_kv_heads, head_dim, 2)
        q = randn(num_seqs * seq_len, num_kv_heads * group, head_dim)
        attend_s = seconds(partial(attend, q, kv, meta), repeats)
        whole = [randn(num_seqs, heads, seq_len, head_dim) for heads in (num_kv_heads * group, *[num_kv_heads] * 2)]
        torch_s, backend = min(torch_attention(whole, repeats), default=(float("nan"), "none"))
        flops = (
            2 * num_seqs * seq_len**2 * num_kv_heads * group * head_dim
        )  # only half of the scores count, as the others are masked
        shape = f"{num_seqs} x {seq_len}, {num_kv_heads} x {group} heads of {head_dim}"
        yield f"{shape:36} {flops / attend_s / 1e12:8.0f}   {torch_s / attend_s:.2f}x ({backend})"


def moving_lines(repeats: int, copy_rate: float) -> Iterator[str]:
    """Yield the bandwidth of kernels that only move data, at the shapes of an 8B model, as a share of a copy's."""
    yield "\nmoving data                              GB/s   of copy"
    kernels = TritonKernels()
    x, residual, weight = randn(NUM_TOKENS, HIDDEN), randn(NUM_TOKENS, HIDDEN), torch.ones(HIDDEN, device=DEVICE)
    gate_up, logits = randn(NUM_TOKENS, 2 * FFN), torch.randn(NUM_TOKENS // 64, VOCAB, device=DEVICE)
    keys = torch.zeros(len(logits), 2, dtype=torch.int32, device=DEVICE)
    temperature = torch.ones(len(logits), device=DEVICE)
    pool, ids, packed = blocks(PACKED_BLOCKS)
    told = torch.cat((ids, torch.zeros(1, dtype=ids.dtype, device=DEVICE)))
    both = torch.cat((ids, told))
    qkv, rotate = rotation()
    moves: list[tuple[str, Callable[[], object], int]] = [
        ("rms_norm", lambda: kernels.rms_norm(x, weight, 1e-6), 2 * x.nbytes),
        ("add_rms_norm", lambda: kernels.add_rms_norm(x, residual, weight, 1e-6), 4 * x.nbytes),
        ("rope and cache", rotate, 2 * qkv.nbytes),
        ("gated silu", lambda: kernels.gated(gate_up, "silu"), gate_up.nbytes * 3 // 2),
        (f"draw, {len(logits)} rows of {VOCAB}", lambda: draw(logits, temperature, keys), logits.nbytes),
        (f"pack {PACKED_BLOCKS} blocks", lambda: pack_blocks(pool, ids, packed), 2 * packed.nbytes),
        ("unpack them", lambda: unpack_blocks(packed, pool, ids), 2 * packed.nbytes),
        (
            "fetch and digest them",
            lambda: fetch_blocks(pool.data_ptr(), both, pool),
            2 * packed.nbytes,
        ),
        ("digest them", lambda: digest_blocks(told, pool), packed.nbytes),
    ]
    for name, run, num_bytes in moves:
        rate = num_bytes / seconds(run, repeats)
        yield f"{name:36} {rate / 1e9:8.0f}   {rate / copy_rate:.0%}"


def staging_lines(repeats: int) -> Iterator[str]:
    """Yield the bandwidth of staging a KV message: packing and copying it to pinned memory, and back."""
    pool, ids, packed = blocks(STAGED_BLOCKS)
    pinned = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=DEVICE == "cuda")
    yield f"\nstaging of {pinned.nbytes / 2**20:.0f} MiB                          GB/s"

    def out() -> None:
        pack_blocks(pool, ids, packed)
        pinned.copy_(packed, non_blocking=True)

    for name, run in (("out", out), ("in", lambda: pool[:STAGED_BLOCKS].copy_(pinned, non_blocking=True))):
        yield f"{name:36} {pinned.nbytes / seconds(run, repeats) / 1e9:8.1f}"


def blocks(num_packed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (blocks of a layer group, ids of some of them, a buffer for these)."""
    pool = torch.zeros(POOL_BLOCKS, BLOCK_BYTES, dtype=torch.uint8, device=DEVICE)
    return pool, torch.randperm(POOL_BLOCKS, device=DEVICE)[:num_packed], torch.empty_like(pool[:num_packed])


def rotation() -> tuple[Tensor, Callable[[], object]]:
    """Return (heads of all tokens, a call that rotates them and writes them to the KV cache)."""
    qkv = randn(NUM_TOKENS, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    kv = randn(NUM_TOKENS // BLOCK_SIZE, 2, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)[:, 1]
    where = torch.arange(NUM_TOKENS, device=DEVICE)
    angles = torch.rand(NUM_TOKENS, HEAD_DIM, device=DEVICE)
    heads = NUM_HEADS, NUM_KV_HEADS
    return qkv, lambda: TritonKernels().rope_and_cache(qkv, angles, where, where, kv, *heads)


def attend(q: Tensor, kv: Tensor, meta: AttentionMeta) -> Tensor:
    """Run attention of one layer."""
    return TritonKernels().paged_attention(q, kv, meta, Attention(q.shape[-1] ** -0.5))


def torch_attention(whole: list[Tensor], repeats: int) -> Iterator[tuple[float, str]]:
    """Yield (seconds, name) of each torch backend that supports q, k, v [N, heads, tokens, D], causal."""
    q, k, v = whole

    def attend_whole() -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        with (
            sdpa_kernel(backend),
            warnings.catch_warnings(action="ignore"),
        ):  # warnings that say why the backend does not support them
            try:
                took_s = seconds(attend_whole, repeats)
            except RuntimeError:  # the backend does not support such heads
                continue
            yield took_s, backend.name.partition("_")[0].lower()


def paged(
    num_seqs: int, seq_len: int, num_queries: int, num_kv_heads: int, head_dim: int, planes: int
) -> tuple[Tensor, AttentionMeta]:
    """Return a batch with blocks in random order, in a pool of two layers."""
    num_blocks = num_seqs * -(-seq_len // BLOCK_SIZE)
    pool = randn(num_blocks, 2, planes, num_kv_heads, BLOCK_SIZE, head_dim)
    meta = AttentionMeta(
        query_start=torch.arange(num_seqs + 1, device=DEVICE).int() * num_queries,
        seq_lens=torch.full((num_seqs,), seq_len, device=DEVICE).int(),
        block_tables=torch.randperm(num_blocks, device=DEVICE).int().view(num_seqs, -1),
        max_query_len=num_queries,
        max_seq_len=seq_len,
        min_query_len=num_queries,
    )
    return pool[:, 1], meta
