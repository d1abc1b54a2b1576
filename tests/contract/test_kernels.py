"""One suite over every kernel backend, each held against `kernels.reference`.

Triton runs on the GPU if there is one, else in its interpreter, where bf16 means nothing and shapes have to be small.
"""

import os
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels.api import AttentionMeta, Kernels
from kernels.cpu.kernels import CPUKernels
from kernels.cpu.processor import LEVELS, features, supported
from kernels.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)


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
    return triton_backend(request.param) if name == "triton" else cpu_backend(name, request.param)


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
) -> Batch:
    """Blocks in random order in a pool of three layers; what no sequence owns is NaN and must never be looked at."""
    num_blocks = [-(-seq_len // block_size) for seq_len, _ in seqs]
    order = random.Random(0).sample(range(sum(num_blocks) + 3), sum(num_blocks))
    pool = torch.full((sum(num_blocks) + 3, 3, 2, num_kv_heads, block_size, head_dim), float("nan"))
    tables = torch.full((len(seqs), max(num_blocks) + 2), -1, dtype=torch.int32)
    for i, (seq_len, _) in enumerate(seqs):
        own = [order.pop() for _ in range(num_blocks[i])]
        tables[i, : len(own)] = torch.tensor(own)
        for j, block in enumerate(own):
            written = min(block_size, seq_len - j * block_size)
            pool[block, 1, :, :, :written] = torch.randn(2, num_kv_heads, written, head_dim)
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
    args = (batch.q, batch.kv, batch.meta, 0.125, window)
    backend.check(backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args))


@pytest.mark.parametrize(
    ("head_dim", "group", "num_kv_heads", "block_size"),
    [(128, 8, 1, 16), (80, 1, 3, 16), (16, 5, 2, 1), (96, 2, 2, 7), (256, 4, 1, 32), (40, 20, 1, 64)],
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
    args = (batch.q, batch.kv, batch.meta, head_dim**-0.5)
    backend.check(backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args))


def test_attention_with_large_scores(backend: Backend) -> None:
    batch = make_batch(backend, [(300, 1), (40, 20)])
    args = (batch.q, batch.kv, batch.meta, 20.0)
    got, expected = backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args)
    assert got.isfinite().all()
    torch.testing.assert_close(got.float(), expected.float(), atol=0.05, rtol=0.05)


def test_attention_leaves_padding_rows_to_the_caller(backend: Backend) -> None:
    batch = make_batch(backend, [(20, 1), (40, 1)])
    padded = torch.cat([batch.q, batch.q.new_zeros(6, *batch.q.shape[1:])])
    got = backend.kernels.paged_attention(padded, batch.kv, batch.meta, 0.125)
    assert got.shape == padded.shape
    backend.check(got[:2], REFERENCE.paged_attention(batch.q, batch.kv, batch.meta, 0.125))


@pytest.mark.parametrize(("rows", "size"), [(1, 384), (7, 100), (30, 96), (0, 64)])
def test_norms(backend: Backend, rows: int, size: int) -> None:
    x, residual, weight = backend.randn(rows, size) * 3, backend.randn(rows, size), backend.randn(size)
    backend.check(backend.kernels.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    got, expected = (k.add_rms_norm(x, residual, weight, 1e-6) for k in (backend.kernels, REFERENCE))
    backend.check(got[0], expected[0])
    backend.check(got[1], expected[1])


def test_norm_of_large_values_is_taken_in_fp32(backend: Backend) -> None:
    x = backend.randn(2, 64) * 300  # squares overflow fp16
    got = backend.kernels.rms_norm(x, torch.ones_like(x[0]), 1e-6)
    backend.check(got, REFERENCE.rms_norm(x, torch.ones_like(x[0]), 1e-6))


@pytest.mark.parametrize(("rows", "size"), [(1, 1000), (9, 33), (0, 8)])
def test_silu_mul(backend: Backend, rows: int, size: int) -> None:
    gate_up = backend.randn(rows, 2 * size) * 8
    backend.check(backend.kernels.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


def test_silu_saturates(backend: Backend) -> None:
    gate = torch.tensor([[-60000.0, -200.0, -90.0, 0.0, 90.0, 60000.0]]).to(backend.device, backend.dtype)
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1)
    backend.check(backend.kernels.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("head_dim", [64, 80, 18])
def test_rope_and_cache(backend: Backend, norm: bool, head_dim: int) -> None:
    num_heads, num_kv_heads, block_size, num_tokens = 4, 2, 8, 9
    qkv = backend.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    angle = torch.rand(100, head_dim // 2) * 6
    cos_sin = torch.cat([angle.cos(), angle.sin()], dim=1).to(backend.device)
    positions = torch.randint(0, 100, (num_tokens,)).to(backend.device)
    slots = torch.tensor([33, -1, 7, 8, 0, -1, 39, 16, 5]).to(backend.device)
    weights = (backend.randn(head_dim), backend.randn(head_dim)) if norm else (None, None)
    pool = backend.randn(5, 3, 2, num_kv_heads, block_size, head_dim)

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
    args = (batch.q, batch.kv, batch.meta, batch.q.shape[-1] ** -0.5, draw.choice([0, 0, draw.randint(1, 400)]))
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


@pytest.mark.parametrize("window", [0, 150])
def test_attention_has_the_same_bits_in_any_batch(cpu: Backend, window: int) -> None:
    batch = make_batch(cpu, [(700, 60), (900, 1), (20, 3)])
    together = cpu.kernels.paged_attention(batch.q, batch.kv, batch.meta, 0.125, window)
    for seq in range(3):
        rows = batch.rows(seq)
        q, meta = alone(batch, seq, rows.start, rows.stop)
        assert torch.equal(cpu.kernels.paged_attention(q, batch.kv, meta, 0.125, window), together[rows])
    for row in range(60):  # a prefill, one decode step at a time
        q, meta = alone(batch, 0, row, row + 1)
        assert torch.equal(cpu.kernels.paged_attention(q, batch.kv, meta, 0.125, window)[0], together[row])


def test_linear_has_the_same_bits_in_any_batch(cpu: Backend) -> None:
    linear = cpu.kernels.pack_linear(cpu.randn(200, 96), cpu.randn(200))
    x = cpu.randn(50, 96)
    together = linear(x)
    for start, end in [(0, 1), (7, 8), (3, 5), (10, 21), (0, 49)]:
        assert torch.equal(linear(x[start:end]), together[start:end])


def test_bits_do_not_depend_on_the_number_of_threads(cpu: Backend) -> None:
    batch = make_batch(cpu, [(2000, 1), (800, 130)])
    linear, x = cpu.kernels.pack_linear(cpu.randn(600, 256), None), cpu.randn(40, 256)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            attended = cpu.kernels.paged_attention(batch.q, batch.kv, batch.meta, 0.125)
            results.append((attended, linear(x), cpu.kernels.rms_norm(x.repeat(20, 1), x[0], 1e-6)))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            assert torch.equal(first, other)


def test_a_type_that_the_kernels_were_not_loaded_for_is_refused(cpu: Backend) -> None:
    other = torch.float16 if cpu.dtype == torch.float32 else torch.float32
    with pytest.raises(TypeError, match="loaded for"):
        cpu.kernels.rms_norm(torch.ones(1, 8, dtype=other), torch.ones(8, dtype=other), 1e-6)
    with pytest.raises(TypeError, match="expected"):
        cpu.kernels.pack_linear(cpu.randn(8, 8), None)(torch.ones(1, 8, dtype=other))
