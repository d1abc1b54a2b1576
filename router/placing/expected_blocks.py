"""Blocks that a node was lately given to compute: another request with that prefix is best served behind the first.

A node announces blocks when they are computed. Until then a burst of requests that share a prefix would be spread, and
the prefix computed once on each node. What never comes is forgotten after a while.
"""

from collections.abc import Container, Sequence
from typing import Any

TURN_S = 10.0  # blocks are expected for one to two of these
MAX_BLOCKS = 16_384  # of a turn


class ExpectedBlocks:
    """The blocks that one node was lately given to compute."""

    def __init__(self) -> None:
        self._young: set[Any] = set()
        self._old: set[Any] = set()
        self._turned_s = 0.0

    def add(self, hashes: Sequence[Any], now_s: float) -> None:
        """These will be there soon. Beyond the bound the end of a prefix is left out."""
        self._turn(now_s)
        num_known = num_leading_of(hashes, self._young) if hashes else 0  # of a hot prefix nearly all
        room = MAX_BLOCKS - len(self._young)
        self._young.update(hashes[num_known : num_known + max(room, 0)])

    def extend(self, hashes: Sequence[Any], num_leading: int, now_s: float) -> int:
        """`num_leading` of `hashes` are held: how many with those that are expected."""
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
    """How many of the first `hashes` (one at least) are in a set that holds, with each block, all those before it."""
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
