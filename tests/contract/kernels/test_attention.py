"""Paged attention against its specification."""

import random

import pytest
import torch

from kernels.api import Attention
from tests.contract.kernels.backends import REFERENCE, TOLERANCE, Backend
from tests.contract.kernels.batches import make_batch


def mixed(backend: Backend) -> list[tuple[int, int]]:
    long, queries, longest = (150, 24, 131) if backend.is_interpreted else (300, 40, 513)
    return [(70, 1), (5, 5), (long, queries), (33, 1), (1, 1), (longest, 2)]


@pytest.mark.parametrize("window", [0, 1, 37])
def test_attention_of_a_mixed_batch(backend: Backend, window: int) -> None:
    batch = make_batch(backend, mixed(backend))
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


@pytest.mark.parametrize(("softcap", "sinks", "window"), [(2.0, False, 0), (0.0, True, 37)])
def test_attention_with_soft_cap_and_sinks(backend: Backend, softcap: float, sinks: bool, window: int) -> None:
    batch = make_batch(backend, mixed(backend))
    scores = backend.fp32(batch.q.shape[1]) * 3 if sinks else None
    args = (batch.q, batch.kv, batch.meta, Attention(0.5, window, softcap, scores))
    got, expected = backend.kernels.paged_attention(*args), REFERENCE.paged_attention(*args)
    backend.check(got, expected)
    plain = REFERENCE.paged_attention(batch.q, batch.kv, batch.meta, Attention(0.5, window))
    assert (expected - plain).abs().max() > 10 * TOLERANCE[backend.dtype]  # otherwise the test would prove nothing


def test_a_sink_far_above_all_scores_gives_zero(backend: Backend) -> None:
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
