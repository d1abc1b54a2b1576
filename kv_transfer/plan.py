"""Which messages a transfer consists of: a pure function of what a grant says, so both ends compute the same list.

It knows nothing of addresses: blocks are named by their index among the missing ones.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from baton.errors import TransferError
from baton.kv_layout import KVLayout

MAX_MESSAGES = 2**20  # of one transfer: the low bits of a tag


class Message(NamedTuple):
    """Missing blocks [first, first + num_blocks) of one layer group: neighbours in the receiver's pool."""

    layer_group: int
    first: int
    num_blocks: int


def messages(layout: KVLayout, run_lengths: Sequence[int], max_message_bytes: int) -> list[Message]:
    """Every missing block of every layer group exactly once, layer group by layer group.

    No message is larger than `max_message_bytes`, unless a single block is. Raises TransferError where `run_lengths` is
    not a list of positive numbers, or makes more than MAX_MESSAGES.
    """
    if any(length < 1 for length in run_lengths):
        raise TransferError("a grant names an empty run of blocks")
    step = max(1, max_message_bytes // layout.block_group_bytes)
    if layout.num_layer_groups * sum(-(-length // step) for length in run_lengths) > MAX_MESSAGES:
        raise TransferError(f"a grant asks for more than {MAX_MESSAGES} messages")
    pieces = list(_pieces(run_lengths, step))
    return [Message(group, first, count) for group in range(layout.num_layer_groups) for first, count in pieces]


def runs(block_ids: Iterable[int]) -> list[tuple[int, int]]:
    """`block_ids`, in order, as (first block, number of neighbouring blocks)."""
    found: list[tuple[int, int]] = []
    for block_id in block_ids:
        if found and block_id == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block_id, 1))
    return found


def _pieces(run_lengths: Sequence[int], step: int) -> Iterator[tuple[int, int]]:
    run = 0
    for length in run_lengths:
        for start in range(0, length, step):
            yield run + start, min(step, length - start)
        run += length
