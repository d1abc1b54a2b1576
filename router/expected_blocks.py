"""Blocks that a node was lately given to compute: another request with that prefix is best served behind the first.

A node announces blocks when they are computed. Until then a burst of requests that share a prefix would be spread, and
the prefix computed once on each node. What never comes is forgotten after a while.
"""

from collections.abc import Container, Sequence
from typing import Any

TURN_S = 10.0  # blocks are expected for one to two of these
MAX_BLOCKS = 16_384  # of a turn


class ExpectedBlocks:
    """Of one node."""

    def __init__(self) -> None:
        self._young: set[Any] = set()
        self._old: set[Any] = set()
        self._turned_s = 0.0

    def add(self, hashes: Sequence[Any], now_s: float) -> None:
        """These will be there soon. Beyond the bound the end of a prefix is left out."""
        self._turn(now_s)
        room = MAX_BLOCKS - len(self._young)
        self._young.update(hashes[: max(room, 0)])

    def extend(self, hashes: Sequence[Any], num_leading: int, held: Container[Any], now_s: float) -> int:
        """`num_leading` of `hashes` are held: how many with those that are expected."""
        if not (self._young or self._old):
            return num_leading
        self._turn(now_s)
        young, old, end = self._young, self._old, len(hashes)
        while num_leading < end:
            block = hashes[num_leading]
            if not (block in young or block in old or block in held):
                break
            num_leading += 1
        return num_leading

    def _turn(self, now_s: float) -> None:
        if now_s - self._turned_s >= TURN_S:
            self._old = self._young if now_s - self._turned_s < 2 * TURN_S else set()
            self._young = set()
            self._turned_s = now_s
