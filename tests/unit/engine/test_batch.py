import numpy as np
import pytest
import torch

from engine import batch as batches
from engine.request import PromptWork
from engine.rows import Rows, Schedule


@pytest.fixture
def build(make_request):
    """The batch of requests given as (tokens, computed, blocks, tokens in this step)."""

    def make(*specs, scored=()):
        rows = Rows(8, 8)
        requests = []
        for index, (tokens, computed, block_ids, _) in enumerate(specs):
            request = make_request(tokens)
            request.num_computed_tokens, request.block_ids = computed, block_ids
            request.prompt_work = PromptWork(1 if index in scored else -1)
            rows.take(request)
            requests.append(request)
        row = np.array([request.row for request in requests], np.int64)
        num_tokens = np.array([spec[3] for spec in specs], np.int64)
        return batches.build(
            Schedule(requests, row, num_tokens, int(num_tokens.sum())), rows, 4, torch.device("cpu"), torch.empty(0)
        )

    return make


def test_mixed_batch(build):
    batch = build(([10, 11, 12, 13, 14, 15], 2, [7, 3], 3), ([20, 21, 22, 23, 24], 4, [5, 6], 1))
    assert batch.token_ids.tolist() == [12, 13, 14, 24]
    assert batch.positions.tolist() == [2, 3, 4, 4]
    assert batch.slots.tolist() == [7 * 4 + 2, 7 * 4 + 3, 3 * 4, 6 * 4]
    assert batch.last.tolist() == [2, 3]
    meta = batch.meta
    assert (meta.query_start.tolist(), meta.seq_lens.tolist()) == ([0, 3, 4], [5, 5])
    assert (meta.max_query_len, meta.max_seq_len, meta.block_tables.tolist()) == (3, 5, [[7, 3], [5, 6]])
    assert meta.min_query_len == 1
    assert (batch.last_meta.query_start.tolist(), batch.last_meta.max_query_len) == ([0, 1, 2], 1)
    assert {tensor.dtype for tensor in (batch.token_ids, batch.positions, batch.slots)} == {torch.int64}
    assert {tensor.dtype for tensor in (meta.query_start, meta.seq_lens, meta.block_tables)} == {torch.int32}


def test_a_batch_of_chunks_alone_has_no_single_queries(build):
    assert build(([1] * 6, 2, [7, 3], 3), ([2] * 5, 0, [5, 6], 5)).meta.min_query_len == 3


def test_decode_batch(build):
    batch = build(([1] * 5, 4, [7, 3], 1), ([2, 2, 3], 2, [4], 1))
    assert batch.token_ids.tolist() == [1, 3]
    assert batch.slots.tolist() == [12, 18]
    assert batch.last is None
    assert batch.last_meta is batch.meta


def test_all_rows_of_a_scored_prompt_are_wanted(build):
    specs = ([1] * 6, 2, [7, 3], 3), ([2] * 5, 4, [5, 6], 1), ([3] * 4, 0, [1], 4)
    batch = build(*specs, scored=[0])
    assert batch.last.tolist() == [0, 1, 2, 3, 7]
    assert batch.wanted_start.tolist() == batch.last_meta.query_start.tolist() == [0, 3, 4, 5]
    assert batch.last_meta.max_query_len == 3
    assert build(*specs, scored=[0, 2]).last is None


def test_prompts_decodes_and_the_ends_of_prompts_read_their_own_tokens(build):
    specs = ([1, 2, 3, 4], 1, [0], 2), ([5, 6, 7], 2, [1], 1), ([8, 9], 0, [2], 2), ([4, 3, 2], 0, [3], 1)
    assert build(*specs).token_ids.tolist() == [2, 3, 7, 8, 9, 4]


def test_only_full_blocks_are_final_until_all_tokens_are_computed(build):
    batch = build(([1] * 11, 0, [0, 1, 2], 7), ([1] * 11, 7, [3, 4, 5], 4), ([1] * 11, 0, [6, 7, 8], 8))
    assert [progress[1:] for progress in batch.progress()] == [(7, 1), (11, 3), (8, 2)]


def test_rows_take_and_give_back(make_request):
    rows = Rows(2, 4)
    first, second = make_request([1] * 3, top_k=5, min_p=0.5), make_request([2] * 3, temperature=1e-8)
    first.block_ids = [3, 1]
    rows.take(first)
    rows.take(second)
    assert {first.row, second.row} == {0, 1}
    assert rows.block_tables[first.row, :2].tolist() == [3, 1]
    first.block_ids = [3, 1, 2]
    rows.append_blocks(first)
    assert rows.block_tables[first.row, :3].tolist() == [3, 1, 2]
    assert (rows.top_k[first.row], rows.min_p[first.row], rows.temperature[second.row]) == (5, 0.5, 0)
    rows.give_back(first)
    rows.give_back(first)
    third = make_request([3])
    rows.take(third)
    assert rows.top_k[third.row] == 0
    with pytest.raises(IndexError):
        rows.take(make_request([4]))
