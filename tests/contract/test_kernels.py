"""One suite over every kernel backend, each held against `kernels.reference`.

Triton runs on the GPU if there is one, else in its interpreter, where bf16 means nothing and shapes have to be small.
"""

import os
import random
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from kernels import quantize
from kernels.api import Activation, Attention, AttentionMeta, Kernels
from kernels.cpu.kernels import CPUKernels
from kernels.cpu.processor import LEVELS, features, supported
from kernels.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)
ACTIVATIONS = get_args(Activation)


@dataclass(frozen=True)
class Backend:
    kernels: Kernels
    dtype: torch.dtype
    device: torch.device

    def check(self, got: Tensor, expected: Tensor) -> None:
        assert got.dtype == expected.dtype == self.dtype
        assert got.shape == expected.shape
        limit = TOLERANCE[self.dtype]
        torch.testing.assert_close(got.cpu().float(), expected.cpu().float(), atol=limit, rtol=limit)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.device, self.dtype)

    def fp32(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.device)


def triton_backend(dtype: torch.dtype) -> Backend:
    if torch.cuda.is_available():
        device = torch.device("cuda")
    elif os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("torch sees no GPU, and Triton's interpreter is off")
    elif dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter computes bf16 wrongly")
    else:
        device = torch.device("cpu")
    return Backend(pytest.importorskip("kernels.triton").TritonKernels(), dtype, device)


@pytest.fixture(params=[*(f"cpu-{level.name}" for level in LEVELS), "triton"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def backend(name: str, request: pytest.FixtureRequest) -> Backend:
    torch.manual_seed(0)
    if name != "triton":
        return cpu_backend(name, request.param)
    made = triton_backend(request.param)
    others = [index for param, index in request.node.callspec.indices.items() if param not in ("name", "backend")]
    if made.device.type == "cpu" and made.dtype == torch.float16 and any(others):
        pytest.skip("in the interpreter fp16 is fp32 and a few casts: the first of a test's cases will do")
    return made


@pytest.fixture(params=DTYPES, ids=str)
def cpu(request: pytest.FixtureRequest) -> Backend:
    torch.manual_seed(0)
    return cpu_backend(f"cpu-{supported(features())[0].name}", request.param)


def cpu_backend(name: str, dtype: torch.dtype) -> Backend:
    level = next((level for level in supported(features()) if name == f"cpu-{level.name}"), None)
    if level is None:
        pytest.skip(f"this processor cannot run {name}")
    return Backend(CPUKernels(dtype, level), dtype, torch.device("cpu"))


@dataclass(frozen=True)
class Batch:
    q: Tensor
    kv: Tensor
    meta: AttentionMeta

    def rows(self, seq: int) -> slice:
        start, end = self.meta.query_start[seq : seq + 2].tolist()
        return slice(start, end)


def make_batch(
    backend: Backend,
    seqs: list[tuple[int, int]],  # tokens in the KV, of which queries
    *,
    head_dim: int = 64,
    group: int = 3,
    num_kv_heads: int = 2,
    block_size: int = 16,
    planes: int = 2,
) -> Batch:
    """Blocks in random order in a pool of three layers; what no sequence owns is NaN and must never be looked at."""
    num_blocks = [-(-seq_len // block_size) for seq_len, _ in seqs]
    order = random.Random(0).sample(range(sum(num_blocks) + 3), sum(num_blocks))
    pool = torch.full((sum(num_blocks) + 3, 3, planes, num_kv_heads, block_size, head_dim), float("nan"))
    tables = torch.full((len(seqs), max(num_blocks) + 2), -1, dtype=torch.int32)
    for i, (seq_len, _) in enumerate(seqs):
        own = [order.pop() for _ in range(num_blocks[i])]
        tables[i, : len(own)] = torch.tensor(own)
        for j, block in enumerate(own):
            written = min(block_size, seq_len - j * block_size)
            pool[block, 1, :, :, :written] = torch.randn(planes, num_kv_heads, written, head_dim)
    query_lens = [num_queries for _, num_queries in seqs]
    meta = AttentionMeta(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).int().to(backend.device),
        seq_lens=torch.tensor([seq_len for seq_len, _ in seqs]).int().to(backend.device),
        block_tables=tables.to(backend.device),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_len for seq_len, _ in seqs),
    )
    pool = pool.to(backend.device, backend.dtype)
    return Batch(backend.randn(sum(query_lens), num_kv_heads * group, head_dim), pool[:, 1], meta)


MIXED = [(70, 1), (5, 5), (300, 40), (33, 1), (1, 1), (513, 2)]


@pytest.mark.parametrize("window", [0, 1, 37])
def test_attention_of_a_mixed_batch(backend: Backend, window: int) -> None:
    batch = make_batch(backend, MIXED)
    args = (batch.q, batch.kv, batch.meta, Attention(0.125, window))
    backend.check(backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args))


@pytest.mark.parametrize(
    ("head_dim", "group", "num_kv_heads", "block_size"),
    [(128, 8, 1, 16), (80, 1, 3, 16), (16, 5, 2, 1), (96, 2, 2, 7), (256, 4, 1, 32), (40, 20, 1, 64), (20, 2, 2, 8)],
)
def test_attention_shapes(backend: Backend, head_dim: int, group: int, num_kv_heads: int, block_size: int) -> None:
    batch = make_batch(
        backend,
        [(90, 1), (30, 17)],
        head_dim=head_dim,
        group=group,
        num_kv_heads=num_kv_heads,
        block_size=block_size,
    )
    args = (batch.q, batch.kv, batch.meta, Attention(head_dim**-0.5))
    backend.check(backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args))


def test_attention_with_large_scores(backend: Backend) -> None:
    batch = make_batch(backend, [(300, 1), (40, 20)])
    args = (batch.q, batch.kv, batch.meta, Attention(20.0))
    got, expected = backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args)
    assert got.isfinite().all()
    torch.testing.assert_close(got.float(), expected.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("softcap", "sinks", "window"), [(2.0, False, 0), (0.0, True, 0), (5.0, True, 37)])
def test_attention_with_soft_cap_and_sinks(backend: Backend, softcap: float, sinks: bool, window: int) -> None:
    batch = make_batch(backend, MIXED)
    scores = backend.fp32(batch.q.shape[1]) * 3 if sinks else None
    args = (batch.q, batch.kv, batch.meta, Attention(0.5, window, softcap, scores))
    got, expected = backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args)
    backend.check(got, expected)
    plain = REFERENCE.paged_attention(batch.q, batch.kv, batch.meta, Attention(0.5, window))
    assert (expected - plain).abs().max() > 10 * TOLERANCE[backend.dtype]  # else the test would show nothing


def test_a_sink_far_above_all_scores_leaves_nothing(backend: Backend) -> None:
    batch = make_batch(backend, [(20, 3)])
    for sink, share in [(1e4, 0.0), (-1e4, 1.0)]:
        sinks = torch.full((batch.q.shape[1],), sink, device=backend.device)
        got = backend.kernels.paged_attention(batch.q, batch.kv, batch.meta, Attention(0.125, sinks=sinks))
        backend.check(got, REFERENCE.paged_attention(batch.q, batch.kv, batch.meta, Attention(0.125)) * share)


@pytest.mark.parametrize(("head_dim", "group"), [(576, 16), (40, 5), (44, 3), (72, 130)])
def test_attention_whose_values_are_the_keys(backend: Backend, head_dim: int, group: int) -> None:
    batch = make_batch(backend, [(40, 1), (21, 4)], head_dim=head_dim, group=group, num_kv_heads=1, planes=1)
    args = (batch.q, batch.kv, batch.meta, Attention(head_dim**-0.5))
    backend.check(backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args))


def test_attention_leaves_padding_rows_to_the_caller(backend: Backend) -> None:
    batch = make_batch(backend, [(20, 1), (40, 1)])
    padded = torch.cat([batch.q, batch.q.new_zeros(6, *batch.q.shape[1:])])
    got = backend.kernels.paged_attention(padded, batch.kv, batch.meta, Attention(0.125))
    assert got.shape == padded.shape
    backend.check(got[:2], REFERENCE.paged_attention(batch.q, batch.kv, batch.meta, Attention(0.125)))


@pytest.mark.parametrize(("rows", "size"), [(1, 384), (7, 100), (30, 96), (0, 64)])
def test_norms(backend: Backend, rows: int, size: int) -> None:
    x, residual, weight = backend.randn(rows, size) * 3, backend.randn(rows, size), backend.fp32(size)
    backend.check(backend.kernels.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    got, expected = (k.add_rms_norm(x, residual, weight, 1e-6) for k in (backend.kernels, REFERENCE))
    backend.check(got[0], expected[0])
    backend.check(got[1], expected[1])


def test_norm_of_large_values_is_taken_in_fp32(backend: Backend) -> None:
    x = backend.randn(2, 64) * 300  # squares overflow fp16
    ones = torch.ones(64, device=backend.device)
    backend.check(backend.kernels.rms_norm(x, ones, 1e-6), REFERENCE.rms_norm(x, ones, 1e-6))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "size"), [(1, 1000), (9, 33), (0, 8)])
def test_gated(backend: Backend, rows: int, size: int, activation: Activation) -> None:
    gate_up = backend.randn(rows, 2 * size) * 8
    backend.check(backend.kernels.gated(gate_up, activation), REFERENCE.gated(gate_up, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gates_saturate(backend: Backend, activation: Activation) -> None:
    gate = torch.tensor([[-60000.0, -200.0, -90.0, 0.0, 90.0, 60000.0]]).to(backend.device, backend.dtype)
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1)
    backend.check(backend.kernels.gated(gate_up, activation), REFERENCE.gated(gate_up, activation))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("head_dim", "planes"), [(64, 2), (80, 2), (18, 2), (40, 1)])
def test_rope_and_cache(backend: Backend, norm: bool, head_dim: int, planes: int) -> None:
    num_heads, num_kv_heads, block_size, num_tokens = 4, 2, 8, 9
    qkv = backend.randn(num_tokens, (num_heads + planes * num_kv_heads) * head_dim)
    angle = torch.rand(100, head_dim // 2) * 6
    cos_sin = torch.cat([angle.cos(), angle.sin()], dim=1).to(backend.device)
    positions = torch.randint(0, 100, (num_tokens,)).to(backend.device)
    slots = torch.tensor([33, -1, 7, 8, 0, -1, 39, 16, 5]).to(backend.device)
    weights = (backend.fp32(head_dim), backend.fp32(head_dim)) if norm else (None, None)
    pool = backend.randn(5, 3, planes, num_kv_heads, block_size, head_dim)

    def run(kernels: Kernels) -> tuple[Tensor, Tensor]:
        written = pool.clone()
        q = kernels.rope_and_cache(
            qkv, cos_sin, positions, slots, written[:, 1], num_heads, num_kv_heads, *weights, eps=1e-6
        )
        return q, written

    (q, written), (expected_q, expected) = run(backend.kernels), run(REFERENCE)
    backend.check(q, expected_q)
    backend.check(written, expected)
    assert not torch.equal(written[:, 1], pool[:, 1])
    assert torch.equal(written[:, [0, 2]], pool[:, [0, 2]])  # the neighbouring layers
    untouched = [slot for slot in range(40) if slot not in slots.tolist()]
    blocks, offsets = torch.tensor(untouched) // block_size, torch.tensor(untouched) % block_size
    assert torch.equal(written[blocks, 1, :, :, offsets], pool[blocks, 1, :, :, offsets])


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(1, 96, 64), (5, 50, 33), (27, 333, 100), (400, 64, 96), (0, 8, 8)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(backend: Backend, rows: int, outputs: int, inputs: int, bias: bool) -> None:
    x, weight = backend.randn(rows, inputs), backend.randn(outputs, inputs) / inputs**0.5
    added = backend.randn(outputs) if bias else None
    exact = x.double() @ weight.double().T + (0 if added is None else added.double())
    backend.check(backend.kernels.pack_linear(weight, added)(x), exact.to(backend.dtype))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 96, 64), (5, 50, 32), (27, 333, 96)])
def test_quantized_linear(backend: Backend, rows: int, outputs: int, inputs: int, bits: int) -> None:
    x, weight = backend.randn(rows, inputs), backend.randn(outputs, inputs) / inputs**0.5
    bias = backend.randn(outputs)
    stands_for = quantize.dequantized(*quantize.quantized(weight, bits)).double()
    assert (stands_for - weight).abs().max() > 1e-3
    exact = x.double() @ stands_for.T + bias.double()
    backend.check(backend.kernels.pack_linear(weight, bias, bits)(x), exact.to(backend.dtype))


def test_weights_that_cannot_be_quantized(backend: Backend) -> None:
    with pytest.raises(ValueError, match="multiples of 32, not 40"):
        backend.kernels.pack_linear(backend.randn(8, 40), None, 4)
    with pytest.raises(ValueError, match="8 or 4 bits, not 3"):
        backend.kernels.pack_linear(backend.randn(8, 32), None, 3)


@dataclass(frozen=True)
class Mixture:
    """Weights of some experts, and tokens that chose among them; expert 1 is nobody's."""

    x: Tensor
    expert_ids: Tensor
    weights: Tensor
    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None
    down_bias: Tensor | None

    def run(self, kernels: Kernels, activation: Activation = "silu", bits: int = 16) -> Tensor:
        packed = kernels.pack_experts(self.gate_up, self.down, activation, self.gate_up_bias, self.down_bias, bits)
        return packed(self.x, self.expert_ids, self.weights)


def make_mixture(
    backend: Backend,
    num_tokens: int,
    *,
    num_experts: int = 6,
    per_token: int = 3,
    hidden: int = 64,
    ffn: int = 32,
    bias: bool = False,
) -> Mixture:
    ids = [random.Random(token).sample([0, *range(2, num_experts)], per_token) for token in range(num_tokens)]
    return Mixture(
        x=backend.randn(num_tokens, hidden),
        expert_ids=torch.tensor(ids, dtype=torch.int64).view(num_tokens, per_token).to(backend.device),
        weights=backend.fp32(num_tokens, per_token).softmax(-1),
        gate_up=backend.randn(num_experts, 2 * ffn, hidden) / hidden**0.5,
        down=backend.randn(num_experts, hidden, ffn) / ffn**0.5,
        gate_up_bias=backend.randn(num_experts, 2 * ffn) if bias else None,
        down_bias=backend.randn(num_experts, hidden) if bias else None,
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_tokens", [0, 1, 37])
def test_experts(backend: Backend, num_tokens: int, activation: Activation, bias: bool) -> None:
    mixture = make_mixture(backend, num_tokens, bias=bias)
    backend.check(mixture.run(backend.kernels, activation), mixture.run(REFERENCE, activation))


@pytest.mark.parametrize(
    ("num_experts", "per_token", "hidden", "ffn"), [(2, 1, 33, 18), (12, 10, 96, 40), (4, 2, 128, 7)]
)
def test_shapes_of_experts(backend: Backend, num_experts: int, per_token: int, hidden: int, ffn: int) -> None:
    mixture = make_mixture(backend, 9, num_experts=num_experts, per_token=per_token, hidden=hidden, ffn=ffn)
    backend.check(mixture.run(backend.kernels), mixture.run(REFERENCE))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_experts(backend: Backend, bits: int) -> None:
    mixture = make_mixture(backend, 11, bias=True)
    backend.check(mixture.run(backend.kernels, "silu", bits), mixture.run(REFERENCE, "silu", bits))


@pytest.mark.parametrize("seed", range(6))
def test_random_batches(cpu: Backend, seed: int) -> None:
    draw = random.Random(seed)
    seqs = []
    for _ in range(draw.randint(1, 8)):
        seq_len = draw.choice([1, 15, 16, 17, 255, 256, 257, draw.randint(1, 900)])
        seqs.append((seq_len, draw.choice([1, min(seq_len, 60), draw.randint(1, seq_len)])))
    batch = make_batch(
        cpu,
        seqs,
        head_dim=draw.choice([32, 48, 64, 128]),
        group=draw.choice([1, 2, 7, 13]),
        num_kv_heads=draw.choice([1, 2]),
        block_size=draw.choice([8, 16, 32]),
    )
    window = draw.choice([0, 0, draw.randint(1, 400)])
    args = (batch.q, batch.kv, batch.meta, Attention(batch.q.shape[-1] ** -0.5, window))
    cpu.check(cpu.kernels.paged_attention(*args), REFERENCE.paged_attention(*args))


def alone(batch: Batch, seq: int, first_row: int, end_row: int) -> tuple[Tensor, AttentionMeta]:
    """Rows [first_row, end_row) of one sequence as a batch of their own, its KV ending at the last of them."""
    rows = batch.rows(seq)
    left_out = rows.stop - end_row
    meta = AttentionMeta(
        query_start=torch.tensor([0, end_row - first_row]).int(),
        seq_lens=batch.meta.seq_lens[seq : seq + 1] - left_out,
        block_tables=batch.meta.block_tables[seq : seq + 1],
        max_query_len=end_row - first_row,
        max_seq_len=int(batch.meta.seq_lens[seq]) - left_out,
    )
    return batch.q[first_row:end_row], meta


@pytest.mark.parametrize("attention", [Attention(0.125), Attention(0.125, window=150, softcap=3.0)])
@pytest.mark.parametrize("planes", [2, 1])
def test_attention_has_the_same_bits_in_any_batch(cpu: Backend, attention: Attention, planes: int) -> None:
    batch = make_batch(cpu, [(700, 60), (900, 1), (20, 3)], planes=planes)
    attention = replace(attention, sinks=cpu.fp32(batch.q.shape[1]))
    together = cpu.kernels.paged_attention(batch.q, batch.kv, batch.meta, attention)
    for seq in range(3):
        rows = batch.rows(seq)
        q, meta = alone(batch, seq, rows.start, rows.stop)
        assert torch.equal(cpu.kernels.paged_attention(q, batch.kv, meta, attention), together[rows])
    for row in range(60):  # a prefill, one decode step at a time
        q, meta = alone(batch, 0, row, row + 1)
        assert torch.equal(cpu.kernels.paged_attention(q, batch.kv, meta, attention)[0], together[row])


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_linear_has_the_same_bits_in_any_batch(cpu: Backend, bits: int) -> None:
    linear = cpu.kernels.pack_linear(cpu.randn(200, 96), cpu.randn(200), bits)
    x = cpu.randn(300, 96)
    together = linear(x)
    for start, end in [(0, 1), (7, 8), (3, 5), (10, 21), (0, 49), (200, 297)]:
        assert torch.equal(linear(x[start:end]), together[start:end])


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_experts_give_the_same_bits_in_any_batch(cpu: Backend, bits: int) -> None:
    whole = make_mixture(cpu, 120, bias=True)
    packed = cpu.kernels.pack_experts(whole.gate_up, whole.down, "silu", whole.gate_up_bias, whole.down_bias, bits)
    together = packed(whole.x, whole.expert_ids, whole.weights)
    for start, end in [(0, 1), (7, 8), (3, 5), (10, 21), (50, 119)]:
        rows = slice(start, end)
        assert torch.equal(packed(whole.x[rows], whole.expert_ids[rows], whole.weights[rows]), together[rows])


def test_bits_do_not_depend_on_the_number_of_threads(cpu: Backend) -> None:
    batch = make_batch(cpu, [(2000, 1), (800, 130)])
    linear, x = cpu.kernels.pack_linear(cpu.randn(600, 256), None), cpu.randn(40, 256)
    mixture = make_mixture(cpu, 90, hidden=256)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            attended = cpu.kernels.paged_attention(batch.q, batch.kv, batch.meta, Attention(0.125))
            norm = cpu.kernels.rms_norm(x.repeat(20, 1), torch.ones(256), 1e-6)
            results.append((attended, linear(x), norm, mixture.run(cpu.kernels)))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            assert torch.equal(first, other)


def test_a_type_that_the_kernels_were_not_loaded_for_is_refused(cpu: Backend) -> None:
    other = torch.float16 if cpu.dtype == torch.float32 else torch.float32
    with pytest.raises(TypeError, match="loaded for"):
        cpu.kernels.rms_norm(torch.ones(1, 8, dtype=other), torch.ones(8), 1e-6)
    with pytest.raises(TypeError, match="must be fp32"):
        cpu.kernels.rms_norm(cpu.randn(1, 8), torch.ones(8, dtype=torch.float16), 1e-6)
    with pytest.raises(TypeError, match="expected"):
        cpu.kernels.pack_linear(cpu.randn(8, 8), None)(torch.ones(1, 8, dtype=other))
