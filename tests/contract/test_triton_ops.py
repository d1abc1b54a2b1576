"""Triton ops that are not part of `Kernels`, and promises beyond its contract: in the interpreter, or on a GPU."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("torch sees no GPU, and Triton's interpreter is off", allow_module_level=True)
pytest.importorskip("triton")

from baton.request import Generation, SamplingParams
from engine.request import Request
from engine.rows import Rows
from engine.sampling.noise import gumbel, make_keys
from engine.sampling.sampler import Sampler
from kernels import quantize
from kernels.api import Attention, AttentionMeta, SamplingKernels
from kernels.reference import ReferenceKernels
from kernels.reference.ends import masked
from kernels.triton import TritonKernels, decode
from kernels.triton.sampling import draw, log_total
from kernels.triton.tile import head_tiles
from kernels.triton.weights import Weights

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = TritonKernels()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def decode_batch(seq_lens, *, num_kv_heads=1, group=2, head_dim=16, block_size=16):
    """(q, kv, meta) of sequences with single queries; blocks are in order."""
    num_blocks = [-(-max(seq_len, 1) // block_size) for seq_len in seq_lens]
    kv = torch.randn(sum(num_blocks), 2, num_kv_heads, block_size, head_dim)
    tables = torch.zeros(len(seq_lens), max(num_blocks), dtype=torch.int32)
    for i, count in enumerate(num_blocks):
        tables[i, :count] = torch.arange(count) + sum(num_blocks[:i])
    meta = AttentionMeta(
        query_start=torch.arange(len(seq_lens) + 1, dtype=torch.int32, device=DEVICE),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=DEVICE),
        block_tables=tables.to(DEVICE),
        max_query_len=1,
        max_seq_len=max(seq_lens),
    )
    return torch.randn(len(seq_lens), num_kv_heads * group, head_dim).to(DEVICE), kv.to(DEVICE), meta


@pytest.mark.parametrize("window", [0, 3000])
def test_a_sequence_too_long_for_the_number_of_splits_gets_longer_ones(window, monkeypatch):
    monkeypatch.setattr(decode, "MAX_SPLITS", 4)
    seq_len = 4 * decode.min_split(head_dim=16) + 700
    q, kv, meta = decode_batch([seq_len, 3])
    attention = Attention(0.3, window, sinks=torch.randn(2).to(DEVICE))
    expected = ReferenceKernels().paged_attention(q, kv, meta, attention)
    torch.testing.assert_close(KERNELS.paged_attention(q, kv, meta, attention), expected, atol=1e-5, rtol=1e-5)


def test_a_batch_of_chunks_launches_no_decode_kernel(monkeypatch):
    """The prefill kernel alone writes every row."""
    monkeypatch.delattr("kernels.triton.kernels.decode_attention")
    q, kv, meta = decode_batch([40, 64])
    meta = meta._replace(query_start=meta.query_start * 5, max_query_len=5, min_query_len=5)
    q = q.repeat(5, 1, 1)
    expected = ReferenceKernels().paged_attention(q, kv, meta, Attention(0.3))
    torch.testing.assert_close(KERNELS.paged_attention(q, kv, meta, Attention(0.3)), expected, atol=1e-5, rtol=1e-5)


def test_decode_has_the_same_bits_in_any_batch_and_under_any_bound():
    q, kv, meta = decode_batch([1700, 1, 513, 129, 512])
    together = KERNELS.paged_attention(q, kv, meta, Attention(0.3))
    for seq, bound in enumerate([5000, 1, 600, 4096, 1000]):
        alone = AttentionMeta(
            query_start=meta.query_start[:2],
            seq_lens=meta.seq_lens[seq : seq + 1],
            block_tables=meta.block_tables[seq : seq + 1],
            max_query_len=1,
            max_seq_len=bound,
        )
        got = KERNELS.paged_attention(q[seq : seq + 1], kv, alone, Attention(0.3))
        assert torch.equal(got[0], together[seq])


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_sequence_without_keys_gets_zeros(deterministic):
    """It is padding of a captured step, and must not give NaN to the next layers."""
    kernels = TritonKernels(deterministic=deterministic)
    q, kv, meta = decode_batch([40, 0, 3, 0])
    for attention in (Attention(0.3), Attention(0.3, 7), Attention(0.3, sinks=torch.ones(2, device=DEVICE))):
        got = kernels.paged_attention(q, kv, meta, attention)
        assert got[[1, 3]].eq(0).all()
        assert got[[0, 2]].ne(0).all()


@pytest.mark.parametrize(
    ("head_dim", "tiles"),
    [(8, (16, 0)), (16, (16, 0)), (18, (32, 0)), (40, (32, 16)), (80, (64, 16)), (96, (64, 32)), (112, (128, 0)),
     (128, (128, 0)), (192, (128, 64)), (576, (512, 64))],
)  # fmt: skip
def test_head_dimensions_are_covered_with_little_padding(head_dim, tiles):
    assert head_tiles(head_dim) == tiles


def draws(logits, temperature, seeds):
    """(Triton's draws, draws with the engine's noise in plain torch)."""
    keys = torch.from_numpy(make_keys(np.array(seeds, np.uint64), np.arange(len(seeds)) + 3))
    vocab = torch.arange(logits.shape[1], dtype=torch.int32)
    noisy = logits / temperature.unsqueeze(1) + gumbel(keys, vocab)
    expected = torch.where(temperature > 0, noisy.argmax(-1), logits.argmax(-1))
    return draw(logits.to(DEVICE), temperature.to(DEVICE), keys.to(DEVICE)).cpu(), expected


@pytest.mark.parametrize("vocab_size", [7, 4096, 32000, 151936])
def test_draws_use_the_engines_noise(vocab_size):
    temperature = torch.tensor([0.0, 0.3, 1.0, 2.5, 0.7, 0.0])
    got, expected = draws(torch.randn(6, vocab_size) * 4, temperature, [0, 1, 2**64 - 1, 77, 77, 5])
    assert got.dtype == torch.int64
    assert torch.equal(got, expected)


def test_of_equal_logits_the_first_is_taken():
    logits = torch.zeros(3, 9000)
    logits[0, [5000, 8191, 8192]] = 1
    logits[1, [4095, 4096]] = 1
    assert draws(logits, torch.zeros(3), [1, 2, 3])[0].tolist() == [5000, 4095, 0]


def test_noise_covers_the_vocabulary_evenly():
    got, _ = draws(torch.zeros(120, 1000), torch.ones(120), range(120))
    counts = torch.histc(got.float(), 4, 0, 1000)
    assert counts.min() > 15


def test_rows_without_a_largest_logit_still_yield_a_token():
    logits = torch.full((3, 5000), float("nan"))
    logits[1] = float("-inf")
    logits[2, :4096] = 1.0
    got, _ = draws(logits, torch.tensor([0.0, 1.0, 1.0]), [1, 2, 3])
    assert ((got >= 0) & (got < 5000)).all()


def test_draw_of_no_rows():
    got, _ = draws(torch.zeros(0, 10), torch.zeros(0), [])
    assert got.shape == (0,)


@pytest.mark.parametrize("vocab_size", [7, 4096, 32003])
def test_log_sum_exp_equals_torchs_and_is_independent_of_other_rows(vocab_size):
    logits = (torch.randn(5, vocab_size) * 8).to(DEVICE)
    logits[3, 3:] = float("-inf")
    logits[4, : vocab_size // 2] = float("-inf")
    together = log_total(logits)
    torch.testing.assert_close(together, logits.logsumexp(-1), atol=1e-5, rtol=1e-6)
    for row in range(5):
        assert torch.equal(log_total(logits[row : row + 1])[0], together[row])
    assert log_total(logits[:0]).shape == (0,)


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(1, 5), (90, 3), (40, 33)])
def test_experts_that_few_or_all_tokens_choose(num_tokens, num_experts):
    """There are full and empty tiles, and experts with several."""
    gate_up, down = torch.randn(num_experts, 48, 20) / 4, torch.randn(num_experts, 20, 24) / 4
    expert_ids = torch.randint(0, num_experts, (num_tokens, 2))
    expert_ids[: num_tokens // 2] = num_experts - 1  # the same expert twice, too
    weights, x = torch.rand(num_tokens, 2), torch.randn(num_tokens, 20)
    on = [tensor.to(DEVICE) for tensor in (gate_up, down, x, expert_ids, weights)]
    got = KERNELS.pack_experts(on[0], on[1], "silu")(*on[2:])
    expected = ReferenceKernels().pack_experts(gate_up, down, "silu")(x, expert_ids, weights)
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_a_sampler_draws_the_same_tokens_with_the_kernel():
    params = [
        {"temperature": t, "seed": i, "top_p": p} for i, (t, p) in enumerate([(0, 1), (1, 1), (0.5, 1), (1, 0.5)])
    ]
    rows, requests = Rows(len(params), 8), []
    for sampling in params:
        generation = Generation(
            request_id="r",
            key=0,
            token_ids=[1, 2],
            num_prompt_tokens=2,
            sampling=SamplingParams(**sampling),
            router_id="",
        )
        requests.append(Request(generation, b"", 16, 0.0))
        rows.take(requests[-1])
    row = np.array([request.row for request in requests], np.int64)
    values, calls = torch.randn(len(params), 500).to(DEVICE), []

    def counted(*args):
        calls.append(args)
        return draw(*args)

    def sample(num, draw=None):
        sampler, logits = (
            Sampler(rows, 500, [], DEVICE, SamplingKernels(masked, draw)),
            KERNELS.read_logits(values[:num], 0.0),
        )
        return sampler.sample(logits, requests[:num], row[:num])[0].tolist()

    assert sample(3, counted) == sample(3)
    assert len(calls) == 1
    assert sample(4, counted) == sample(4)  # a row filters
    assert len(calls) == 1


@pytest.mark.parametrize(("bits", "share"), [(8, 0.51), (4, 0.32)])
@pytest.mark.parametrize(("outputs", "inputs"), [(70, 512), (3, 480)])
def test_packed_weights_take_few_bytes_and_are_widened_exactly(bits, share, outputs, inputs):
    weight = torch.randn(2, outputs, inputs).to(DEVICE)
    packed = Weights(weight, bits)
    if inputs % 128 == 0:  # others are padded
        assert packed.values.nbytes + packed.scales.nbytes <= share * weight.nbytes / 2
    assert torch.equal(packed.widened(torch.float32), quantize.rounded(weight, bits))


def test_splits_leave_their_counters_as_they_found_them():
    """Else the next product would be computed by fewer splits than there are."""
    linear = KERNELS.pack_linear(torch.randn(40, 1088).to(DEVICE), None, 8)
    x = torch.randn(5, 1088).to(DEVICE)
    assert torch.equal(linear(x), linear(x))
