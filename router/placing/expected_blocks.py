"""Blocks that a node is expected to have soon, because requests with these blocks were recently sent to it.

A node announces blocks only once they are computed. Without this, a burst of requests that share a prefix would be
spread, and the prefix computed on every node. Blocks that never come are forgotten after a while.
"""

from collections.abc import Container, Sequence
from typing import Any

TURN_S = 10.0  # blocks are expected for one to two times this
MAX_BLOCKS = 16_384  # per TURN_S


class ExpectedBlocks:
    """The blocks that one node is expected to have soon."""

    def __init__(self) -> None:
        self._young: set[Any] = set()
        self._old: set[Any] = set()
        self._turned_s = 0.0

    def add(self, hashes: Sequence[Any], now_s: float) -> None:
        """Expect these blocks. If there are too many, the end of the prefix is left out."""
        self._turn(now_s)
        num_known = num_leading_of(hashes, self._young) if hashes else 0  # nearly all of a hot prefix
        room = MAX_BLOCKS - len(self._young)
        self._young.update(hashes[num_known : num_known + max(room, 0)])

    def extend(self, hashes: Sequence[Any], num_leading: int, now_s: float) -> int:
        """Return how many leading blocks of `hashes` the node will have, given that it has `num_leading` now."""
        self._turn(now_s)
        for blocks in (self._young, self._old):
            if blocks and num_leading < len(hashes) and hashes[num_leading] in blocks:
                num_leading = num_leading_of(hashes, blocks)
        return num_leading

    def _turn(self, now_s: float) -> None:
        if now_s - self._turned_s >= TURN_S:
            self._old = self._young if now_s - self._turned_s < 2 * TURN_S else set()
            self._young = set()
            self._turned_s = now_s


def num_leading_of(hashes: Sequence[Any], blocks: Container[Any]) -> int:
    """Count the leading `hashes` (at least one) in `blocks`, by bisection.

    `blocks` must contain, with each block of a prefix, all the blocks before it.
    """
    if hashes[0] not in blocks:
        return 0
    if hashes[-1] in blocks:
        return len(hashes)
    low, high = 1, len(hashes) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if hashes[middle - 1] in blocks:
            low = middle
        else:
            high = middle - 1
    return low
