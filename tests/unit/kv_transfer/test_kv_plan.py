"""The plan of a transfer: every missing block once, in the same order at both ends."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import TransferError
from baton.kv_layout import KVLayout
from kv_transfer.plan import MAX_MESSAGES, messages, runs

LAYOUT = KVLayout(
    num_layers=6, layers_per_group=2, block_size=4, num_kv_heads=1, head_dim=8, dtype="float16", model_fingerprint=""
)
run_lengths = st.lists(st.integers(1, 40), max_size=12)


@given(run_lengths, st.integers(0, 20 * LAYOUT.block_group_bytes))
def test_every_block_of_every_group_exactly_once_and_in_order(lengths, max_message_bytes):
    plan = messages(LAYOUT, lengths, max_message_bytes)
    covered = [(m.layer_group, m.first + i) for m in plan for i in range(m.num_blocks)]
    assert covered == [(group, block) for group in range(3) for block in range(sum(lengths))]


@given(run_lengths, st.integers(0, 20 * LAYOUT.block_group_bytes))
def test_a_message_stays_within_a_run_and_a_size(lengths, max_message_bytes):
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    for message in messages(LAYOUT, lengths, max_message_bytes):
        run = max(i for i, start in enumerate(starts) if start <= message.first)
        assert message.first + message.num_blocks <= starts[run + 1]
        size = message.num_blocks * LAYOUT.block_group_bytes
        assert size <= max_message_bytes or message.num_blocks == 1


@given(st.lists(st.integers(0, 50), unique=True))
def test_runs_say_the_same_blocks_in_the_same_order(block_ids):
    found = runs(block_ids)
    assert [block for first, count in found for block in range(first, first + count)] == block_ids
    assert all(sum(a) != b[0] for a, b in itertools.pairwise(found))  # neighbours are joined


def test_nothing_missing_is_no_message():
    assert messages(LAYOUT, [], 100) == []
    assert runs([]) == []


@pytest.mark.parametrize("lengths", [[0], [3, 0], [-1]])
def test_lengths_from_the_wire_are_checked(lengths):
    with pytest.raises(TransferError, match="empty run"):
        messages(LAYOUT, lengths, 100)


def test_a_plan_has_a_bound():
    with pytest.raises(TransferError, match="more than"):
        messages(LAYOUT, [MAX_MESSAGES], 1)
