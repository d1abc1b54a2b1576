"""Results on a CPU that do not depend on what else is computed beside them, to the bit."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.api import Attention, AttentionMeta
from tests.contract.kernels.backends import Backend
from tests.contract.kernels.batches import Batch, make_batch
from tests.contract.kernels.mixtures import make_mixture


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


@pytest.mark.parametrize(
    ("outputs", "inputs", "bits"), [(200, 96, 16), (200, 96, 8), (200, 96, 4), (50, 97, 16), (50, 33, 8)]
)
def test_linear_has_the_same_bits_in_any_batch(each_cpu: Backend, outputs: int, inputs: int, bits: int) -> None:
    linear = each_cpu.kernels.pack_linear(each_cpu.randn(outputs, inputs), each_cpu.randn(outputs), bits)
    x = each_cpu.randn(520, inputs)
    together = linear(x)
    for rows in (1, 2, 3, 4, 5, 8, 12, 16, 17, 31, 32, 33, 48, 300, 512):
        for start in (0, 7):
            assert torch.equal(linear(x[start : start + rows]), together[start : start + rows])


@pytest.mark.parametrize("bits", [16, 8])
def test_subnormal_sums_are_the_same_in_any_batch(each_cpu: Backend, bits: int) -> None:
    linear = each_cpu.kernels.pack_linear(each_cpu.randn(40, 64) * 1e-20, None, bits)
    x = each_cpu.randn(40, 64) * 1e-18
    together = linear(x)
    assert all(torch.equal(linear(x[row : row + 1]), together[row : row + 1]) for row in range(40))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_experts_give_the_same_bits_in_any_batch(each_cpu: Backend, bits: int) -> None:
    whole = make_mixture(each_cpu, 120, bias=True)
    packed = each_cpu.kernels.pack_experts(whole.gate_up, whole.down, "silu", whole.gate_up_bias, whole.down_bias, bits)
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
