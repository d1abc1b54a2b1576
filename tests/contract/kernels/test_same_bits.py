"""Results are the same to the bit whatever else is in the batch: on a CPU, and with Triton if that is asked for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.api import Attention, AttentionMeta
from tests.contract.kernels.backends import REFERENCE, Backend
from tests.contract.kernels.batches import Batch, make_batch
from tests.contract.kernels.mixtures import make_mixture


def alone(batch: Batch, seq: int, first_row: int, end_row: int) -> tuple[Tensor, AttentionMeta]:
    """Rows [first_row, end_row) of one sequence as a batch of their own, whose KV ends with the last of them."""
    rows = batch.rows(seq)
    left_out = rows.stop - end_row
    meta = AttentionMeta(
        query_start=torch.tensor([0, end_row - first_row]).int().to(batch.q.device),
        seq_lens=batch.meta.seq_lens[seq : seq + 1] - left_out,
        block_tables=batch.meta.block_tables[seq : seq + 1],
        max_query_len=end_row - first_row,
        max_seq_len=int(batch.meta.seq_lens[seq]) - left_out,
    )
    return batch.q[first_row:end_row], meta


ATTENTIONS = [
    (Attention(0.125), 2),
    (Attention(0.125), 1),
    (Attention(0.125, window=90, softcap=3.0), 2),
    (Attention(0.125, window=90, softcap=3.0), 1),
    (Attention(0.125, window=40), 2),
]


@pytest.mark.parametrize(("attention", "planes"), ATTENTIONS)
def test_attention_has_the_same_bits_in_any_batch(steady: Backend, attention: Attention, planes: int) -> None:
    first, second, num_kv_heads = (120, 140, 1) if steady.is_interpreted else (700, 900, 2)
    batch = make_batch(steady, [(first, 70), (second, 1), (20, 3)], group=3, num_kv_heads=num_kv_heads, planes=planes)
    if attention.softcap:
        attention = replace(attention, sinks=steady.fp32(batch.q.shape[1]))
    together = steady.kernels.paged_attention(batch.q, batch.kv, batch.meta, attention)
    steady.check(together, REFERENCE.paged_attention(batch.q, batch.kv, batch.meta, attention))

    def run(seq: int, first_row: int, end_row: int) -> Tensor:
        q, meta = alone(batch, seq, first_row, end_row)
        return steady.kernels.paged_attention(q, batch.kv, meta, attention)

    for seq in range(3):
        rows = batch.rows(seq)
        assert torch.equal(run(seq, rows.start, rows.stop), together[rows])
    for row in range(0, 70, 29 if steady.is_interpreted else 1):  # a prefill, one decode step at a time
        assert torch.equal(run(0, row, row + 1)[0], together[row])
    for start, end in [(0, 7), (7, 50), (50, 70), (33, 69)]:  # and in chunks
        assert torch.equal(run(0, start, end), together[start:end])


@pytest.mark.parametrize(
    ("head_dim", "group", "planes"), [(24, 8, 2), (256, 2, 2), (576, 20, 1), (32, 1, 2), (64, 7, 2), (96, 5, 1)]
)
def test_attention_of_any_width_has_the_same_bits_in_chunks(
    steady: Backend, head_dim: int, group: int, planes: int
) -> None:
    batch = make_batch(steady, [(90, 19), (40, 1)], head_dim=head_dim, group=group, num_kv_heads=1, planes=planes)
    together = steady.kernels.paged_attention(batch.q, batch.kv, batch.meta, Attention(0.125))
    for start, end in [(0, 1), (1, 8), (8, 19), (18, 19)]:
        q, meta = alone(batch, 0, start, end)
        assert torch.equal(steady.kernels.paged_attention(q, batch.kv, meta, Attention(0.125)), together[start:end])


@pytest.mark.parametrize(
    ("outputs", "inputs", "bits"), [(200, 96, 16), (200, 96, 8), (200, 96, 4), (50, 97, 16), (50, 33, 8)]
)
def test_linear_has_the_same_bits_in_any_batch(each_steady: Backend, outputs: int, inputs: int, bits: int) -> None:
    linear = each_steady.kernels.pack_linear(each_steady.randn(outputs, inputs), each_steady.randn(outputs), bits)
    x = each_steady.randn(80 if each_steady.is_interpreted else 520, inputs)
    together = linear(x)
    for rows in (1, 3, 70) if each_steady.is_interpreted else (1, 2, 3, 4, 5, 8, 12, 16, 17, 31, 32, 33, 48, 300, 512):
        for start in (0, 7):
            assert torch.equal(linear(x[start : start + rows]), together[start : start + rows])


@pytest.mark.parametrize("bits", [16, 8])
def test_gated_linear_has_the_same_bits_in_any_batch(each_steady: Backend, bits: int) -> None:
    linear = each_steady.kernels.pack_gated(each_steady.randn(100, 96) / 10, each_steady.randn(100), "silu", bits)
    x = each_steady.randn(80, 96)
    together = linear(x)
    for start, end in [(0, 1), (7, 9), (3, 20), (10, 42), (7, 80)]:
        assert torch.equal(linear(x[start:end]), together[start:end])


@pytest.mark.parametrize("bits", [16, 8])
def test_subnormal_sums_are_the_same_in_any_batch(each_cpu: Backend, bits: int) -> None:
    linear = each_cpu.kernels.pack_linear(each_cpu.randn(40, 64) * 1e-20, None, bits)
    x = each_cpu.randn(40, 64) * 1e-18
    together = linear(x)
    assert all(torch.equal(linear(x[row : row + 1]), together[row : row + 1]) for row in range(40))


def test_linears_per_head_have_the_same_bits_in_any_batch(steady: Backend) -> None:
    linear, x = steady.kernels.pack_heads(steady.randn(3, 40, 24)), steady.randn(90, 72)
    together = linear(x)
    for start, end in [(0, 1), (7, 8), (3, 70)]:
        assert torch.equal(linear(x[start:end]), together[start:end])


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_experts_give_the_same_bits_in_any_batch(each_steady: Backend, bits: int) -> None:
    num_tokens = 30 if each_steady.is_interpreted else 120
    whole = make_mixture(each_steady, num_tokens, bias=True)
    packed = each_steady.kernels.pack_experts(
        whole.gate_up, whole.down, "silu", whole.gate_up_bias, whole.down_bias, bits
    )
    together = packed(whole.x, whole.expert_ids, whole.weights)
    for start, end in [(0, 1), (7, 8), (3, 5), (10, 21), (25, num_tokens - 1)]:
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
