"""Every Triton kernel on a GPU, in bf16 and at the shapes of real models, against the reference."""

import numpy as np
import pytest
import torch

from engine.sampling.noise import gumbel, make_keys
from kernels import quantize
from kernels.api import Attention, AttentionMeta
from kernels.reference import ReferenceKernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
REFERENCE = ReferenceKernels()
BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def triton():
    from kernels.triton import TritonKernels

    torch.manual_seed(0)
    return TritonKernels()


def check(got, expected):
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.float(), expected.float(), atol=2e-2, rtol=2e-2)


def randn(*shape, dtype=BF16):
    return torch.randn(*shape, device="cuda").to(dtype)


def make_batch(seqs, num_kv_heads, group, head_dim, planes=2, block_size=16):
    """(q, kv, meta) of sequences (tokens, queries). Blocks are in random order; KV without a token is NaN."""
    num_blocks = [-(-seq_len // block_size) for seq_len, _ in seqs]
    order = torch.randperm(sum(num_blocks)).split(num_blocks)
    pool = torch.full((sum(num_blocks), 3, planes, num_kv_heads, block_size, head_dim), float("nan"), device="cuda")
    tables = torch.zeros(len(seqs), max(num_blocks), dtype=torch.int32)
    for i, (seq_len, _) in enumerate(seqs):
        tables[i, : num_blocks[i]] = order[i]
        pool[order[i][:-1], 1] = torch.randn_like(pool[order[i][:-1], 1])
        last = seq_len - (num_blocks[i] - 1) * block_size
        pool[order[i][-1], 1, :, :, :last] = torch.randn(planes, num_kv_heads, last, head_dim, device="cuda")
    query_lens = [num_queries for _, num_queries in seqs]
    meta = AttentionMeta(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).int().cuda(),
        seq_lens=torch.tensor([seq_len for seq_len, _ in seqs]).int().cuda(),
        block_tables=tables.cuda(),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_len for seq_len, _ in seqs),
    )
    return randn(sum(query_lens), num_kv_heads * group, head_dim), pool.to(BF16)[:, 1], meta


MIXED = [(3000, 1), (700, 700), (5000, 300), (1, 1), (129, 1), (17, 2), (4097, 1)]


@pytest.mark.parametrize(
    ("num_kv_heads", "group", "head_dim", "planes"),
    [(8, 4, 128, 2), (8, 8, 64, 2), (8, 2, 256, 2), (32, 1, 96, 2), (8, 4, 80, 2), (1, 71, 64, 2), (1, 16, 576, 1),
     (1, 128, 576, 1)],
)  # fmt: skip
def test_attention(triton, num_kv_heads, group, head_dim, planes):
    batch = make_batch(MIXED, num_kv_heads, group, head_dim, planes)
    attention = Attention(head_dim**-0.5)
    check(triton.paged_attention(*batch, attention), REFERENCE.paged_attention(*batch, attention))


@pytest.mark.parametrize(("window", "softcap", "sinks"), [(128, 0.0, True), (1000, 50.0, False), (0, 30.0, True)])
def test_windows_caps_and_sinks(triton, window, softcap, sinks):
    batch = make_batch(MIXED, 8, 4, 128)
    attention = Attention(0.1, window, softcap, randn(32, dtype=torch.float32) if sinks else None)
    check(triton.paged_attention(*batch, attention), REFERENCE.paged_attention(*batch, attention))


def test_long_context_and_large_batches(triton):
    for seqs in ([(100_000, 1)], [(500 + i, 1) for i in range(256)]):
        batch = make_batch(seqs, 8, 4, 128)
        check(triton.paged_attention(*batch, Attention(0.1)), REFERENCE.paged_attention(*batch, Attention(0.1)))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "planes"), [(32, 8, 128, 2), (128, 1, 576, 1)])
def test_rope_and_cache(triton, num_heads, num_kv_heads, head_dim, planes, norm):
    num_tokens = 2000
    qkv = randn(num_tokens, (num_heads + planes * num_kv_heads) * head_dim)
    angles = torch.rand(4096, head_dim // 2, device="cuda") * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    positions = torch.randint(0, 4096, (num_tokens,), device="cuda")
    slots = torch.randperm(200 * 16, device="cuda")[:num_tokens]
    slots[::7] = -1
    weights = [randn(head_dim, dtype=torch.float32) if norm else None for _ in range(2)]
    results = []
    for kernels in (triton, REFERENCE):
        pool = torch.zeros(200, 2, planes, num_kv_heads, 16, head_dim, dtype=BF16, device="cuda")
        q = kernels.rope_and_cache(
            qkv, cos_sin, positions, slots, pool[:, 1], num_heads, num_kv_heads, *weights, eps=1e-6
        )
        results.append((q, pool))
    for got, expected in zip(*results, strict=True):
        check(got, expected)


def test_norms_and_gates(triton):
    x, residual, weight = randn(700, 4096) * 3, randn(700, 4096), randn(4096, dtype=torch.float32)
    check(triton.rms_norm(x, weight, 1e-6), REFERENCE.rms_norm(x, weight, 1e-6))
    for got, expected in zip(*(k.add_rms_norm(x, residual, weight, 1e-6) for k in (triton, REFERENCE)), strict=True):
        check(got, expected)
    for activation in ("silu", "gelu_tanh", "swiglu_oai"):
        check(triton.gated(x, activation), REFERENCE.gated(x, activation))


@pytest.mark.parametrize("num_tokens", [1, 64, 3000])
@pytest.mark.parametrize(("activation", "bias"), [("silu", False), ("swiglu_oai", True)])
def test_experts(triton, num_tokens, activation, bias):
    num_experts, hidden, ffn = 32, 2048, 768
    gate_up, down = randn(num_experts, 2 * ffn, hidden) / hidden**0.5, randn(num_experts, hidden, ffn) / ffn**0.5
    biases = (randn(num_experts, 2 * ffn), randn(num_experts, hidden)) if bias else (None, None)
    x = randn(num_tokens, hidden)
    expert_ids = torch.rand(num_tokens, num_experts, device="cuda").topk(8).indices
    weights = torch.rand(num_tokens, 8, device="cuda").softmax(-1)
    results = [k.pack_experts(gate_up, down, activation, *biases)(x, expert_ids, weights) for k in (triton, REFERENCE)]
    check(*results)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("num_tokens", [1, 64, 3000])
def test_quantized_experts(triton, num_tokens, bits):
    num_experts, hidden, ffn = 32, 2048, 768
    gate_up, down = randn(num_experts, 2 * ffn, hidden) / hidden**0.5, randn(num_experts, hidden, ffn) / ffn**0.5
    x, weights = randn(num_tokens, hidden), torch.rand(num_tokens, 8, device="cuda").softmax(-1)
    expert_ids = torch.rand(num_tokens, num_experts, device="cuda").topk(8).indices
    results = [k.pack_experts(gate_up, down, "silu", bits=bits)(x, expert_ids, weights) for k in (triton, REFERENCE)]
    check(*results)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "dtype"),
    [(4096, 4096, BF16), (28672, 4096, BF16), (1000, 1120, BF16), (1000, 1120, torch.float16),
     (1000, 1120, torch.float32)],
)  # fmt: skip
def test_quantized_linears(triton, num_outputs, num_inputs, dtype, bits):
    """The numbers of rows lead to tiles of all sizes, to splits, and to weights that are widened first."""
    weight, bias = randn(num_outputs, num_inputs, dtype=dtype) / num_inputs**0.5, randn(num_outputs, dtype=dtype)
    linear = triton.pack_linear(weight, bias, bits)
    stands_for = quantize.dequantized(*quantize.quantized(weight, bits)).double()
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    for num_rows in (1, 16, 17, 64, 100, 300, 2048):
        x = randn(num_rows, num_inputs, dtype=dtype)
        exact = torch.nn.functional.linear(x.double(), stands_for, bias.double())
        torch.testing.assert_close(linear(x).double(), exact, atol=limit, rtol=limit)


def test_a_product_is_the_same_each_time(triton):
    """Whichever of its splits comes last, and while other products run."""
    linears = [triton.pack_linear(randn(4096, 4096), None, bits) for bits in (8, 4)]
    x = randn(16, 4096)
    first = [linear(x) for linear in linears]
    for _ in range(200):
        again = [linear(x) for linear in linears]
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize(("bits", "share"), [(8, 0.55), (4, 0.32)])
def test_quantized_weights_take_less_memory(triton, bits, share):
    """Only what is kept of them counts."""

    def held(pack):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        packed = pack()
        assert packed is not None
        return torch.cuda.memory_allocated() - before

    linear = held(lambda: triton.pack_linear(randn(4096, 4096), None, bits))
    assert 0 < linear <= share * 4096 * 4096 * 2
    gated = held(lambda: triton.pack_gated(randn(8192, 4096), None, "silu", bits))
    assert 0 < gated <= share * 8192 * 4096 * 2
    experts = held(lambda: triton.pack_experts(randn(16, 1536, 2048), randn(16, 2048, 768), "silu", bits=bits))
    assert 0 < experts <= share * 16 * 3 * 768 * 2048 * 2


@pytest.mark.parametrize("vocab_size", [32000, 151936, 262144])
def test_draws(triton, vocab_size):
    """The drawn tokens may differ in near ties, since logarithms may be rounded differently."""
    from kernels.triton.sampling import draw

    logits, temperature = randn(200, vocab_size, dtype=torch.float32) * 4, torch.rand(200, device="cuda") + 0.2
    temperature[::4] = 0
    keys = torch.from_numpy(make_keys(np.arange(200, dtype=np.uint64), np.arange(200))).cuda()
    noise = gumbel(keys, torch.arange(vocab_size, dtype=torch.int32, device="cuda"))
    noisy = torch.where(temperature.unsqueeze(1) > 0, logits / temperature.unsqueeze(1) + noise, logits)
    tokens = draw(logits, temperature, keys)
    reached = noisy.gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(reached, noisy.amax(-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(tokens[::4], logits[::4].argmax(-1))


def test_blocks(triton):
    from kernels.triton.blocks import pack_blocks, unpack_blocks

    pool = torch.randint(0, 256, (500, 1 << 18), dtype=torch.uint8, device="cuda")
    ids = torch.randperm(500, device="cuda")[:100]
    packed = torch.empty(100, 1 << 18, dtype=torch.uint8, device="cuda")
    pack_blocks(pool, ids, packed)
    assert torch.equal(packed, pool[ids])
    other = torch.zeros_like(pool)
    unpack_blocks(packed, other, ids)
    assert torch.equal(other[ids], packed)
