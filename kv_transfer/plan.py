"""The plan of a transfer: its list of messages, a pure function of the grant, so both sides compute the same list.

A message names blocks by their index among the missing ones. Where these lie in either pool does not matter: the sender
gathers a message's blocks from its pool, and the receiver scatters them into its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

from baton.errors import TransferError
from baton.kv.layout import KVLayout

MAX_MESSAGES = 2**20  # per transfer: a message's index is the low bits of its tag
MIN_MESSAGE_BYTES = 2**20  # layer groups share a message up to this size, so a short prompt needs only a few


class Message(NamedTuple):
    """Missing blocks [first, first + num_blocks) of consecutive layer groups, ordered by layer group."""

    layer_groups: range
    first: int
    num_blocks: int


def messages(layout: KVLayout, num_missing_blocks: int, max_message_bytes: int) -> list[Message]:
    """Return the messages that hold every missing block of every layer group exactly once, ordered by layer group.

    No message is larger than `max_message_bytes`, unless a single block of one layer group is. Raises TransferError if
    there would be more than MAX_MESSAGES.
    """
    if num_missing_blocks == 0:
        return []
    group_bytes = num_missing_blocks * layout.block_group_bytes
    num_groups = max(1, min(MIN_MESSAGE_BYTES, max_message_bytes) // group_bytes)
    step = max(1, max_message_bytes // layout.block_group_bytes)
    if -(-layout.num_layer_groups // num_groups) * -(-num_missing_blocks // step) > MAX_MESSAGES:
        raise TransferError(f"a grant asks for more than {MAX_MESSAGES} messages")
    return [
        Message(
            range(group, min(group + num_groups, layout.num_layer_groups)), first, min(step, num_missing_blocks - first)
        )
        for group in range(0, layout.num_layer_groups, num_groups)
        for first in range(0, num_missing_blocks, step)
    ]


def runs(block_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Split `block_ids`, in order, into runs of consecutive ids: (first block, number of blocks)."""
    if block_ids and list(block_ids) == list(range(block_ids[0], block_ids[0] + len(block_ids))):
        return [(block_ids[0], len(block_ids))]  # the usual case, ten times as fast as the loop below
    found: list[tuple[int, int]] = []
    for block_id in block_ids:
        if found and block_id == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block_id, 1))
    return found
