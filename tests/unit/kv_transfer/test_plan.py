"""The plan of a transfer: every missing block exactly once, in the same order on both sides."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from kv_transfer.plan import MAX_MESSAGES, MIN_MESSAGE_BYTES, messages, runs

LAYOUT = KVLayout(
    num_layers=6, layers_per_group=2, block_size=4, num_kv_heads=1, head_dim=8, dtype="float16", model_fingerprint=""
)
LARGE = KVLayout(  # 64 KiB for a block of a layer group
    num_layers=8,
    layers_per_group=2,
    block_size=16,
    num_kv_heads=4,
    head_dim=128,
    dtype="bfloat16",
    model_fingerprint="",
)
layouts = st.sampled_from([LAYOUT, LARGE])
num_blocks = st.integers(0, 400)
sizes = st.integers(0, 2**24)


@given(layouts, num_blocks, sizes)
def test_every_block_of_every_group_exactly_once_and_in_order(layout, number, max_message_bytes):
    plan = messages(layout, number, max_message_bytes)
    covered = [(group, m.first + i) for m in plan for group in m.layer_groups for i in range(m.num_blocks)]
    assert covered == [(group, block) for group in range(layout.num_layer_groups) for block in range(number)]


@given(layouts, num_blocks, sizes)
def test_a_message_stays_within_a_size(layout, number, max_message_bytes):
    for message in messages(layout, number, max_message_bytes):
        num_pieces = len(message.layer_groups) * message.num_blocks
        assert num_pieces * layout.block_group_bytes <= max_message_bytes or num_pieces == 1


def test_messages_are_filled_whatever_blocks_they_consist_of():
    """1,000 blocks of 64 KiB in four layer groups, at most 4 MiB each: only a group's last one is smaller."""
    sizes = [m.num_blocks * LARGE.block_group_bytes for m in messages(LARGE, 1000, 2**22)]
    assert sizes == [*[2**22] * 15, 40 * 2**16] * 4


@pytest.mark.parametrize(
    ("number", "groups"),
    [(1, [4]), (4, [4]), (5, [3, 1]), (8, [2, 2]), (9, [1, 1, 1, 1]), (20, [1, 1, 1, 1])],
)
def test_a_short_prompt_is_one_message(number, groups):
    """Layer groups travel together while they are small: four of 256 KiB are one message of 1 MiB."""
    plan = messages(LARGE, number, 2**22)
    assert [len(m.layer_groups) for m in plan] == groups
    assert MIN_MESSAGE_BYTES == 2**20


@given(st.lists(st.integers(0, 50), unique=True))
def test_runs_are_the_same_blocks_in_the_same_order(block_ids):
    found = runs(block_ids)
    assert [block for first, count in found for block in range(first, first + count)] == block_ids
    assert all(sum(a) != b[0] for a, b in itertools.pairwise(found))  # neighbours are joined


def test_nothing_missing_is_no_message():
    assert messages(LAYOUT, 0, 100) == []
    assert runs([]) == []


def test_the_number_of_messages_is_limited():
    with pytest.raises(TransferError, match="more than"):
        messages(LAYOUT, MAX_MESSAGES, 1)
