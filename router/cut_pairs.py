"""Pairs of nodes between which KV lately did not travel, though this router reaches both of them.

A pair is left alone for some seconds after a failed transfer, longer with each further one; then one request may find
out. Between other nodes, or on a decode node alone, requests go on meanwhile.
"""

import time
from collections.abc import Callable

from baton.registry import NodeRecord

MIN_PAUSE_S, MAX_PAUSE_S = 5.0, 60.0
MAX_PAIRS = 4096

_Pair = tuple[str, int, str, int]


class CutPairs:
    """By incarnation: a node that came back has a clean record."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pauses: dict[_Pair, tuple[float, float]] = {}  # its length, and when it is over

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return bool(self._pauses)

    def failed(self, prefill: NodeRecord, decode: NodeRecord) -> None:
        """A transfer between them has failed. Those of one pause count as one."""
        pair, now_s = _pair(prefill, decode), self._clock()
        pause_s, until_s = self._pauses.pop(pair, (0.0, 0.0))
        if now_s >= until_s:
            pause_s = min(max(2 * pause_s, MIN_PAUSE_S), MAX_PAUSE_S)
            until_s = now_s + pause_s
        self._pauses[pair] = pause_s, until_s
        if len(self._pauses) > MAX_PAIRS:
            del self._pauses[next(iter(self._pauses))]

    def carried(self, prefill: NodeRecord, decode: NodeRecord) -> None:
        """A transfer between them was accepted."""
        self._pauses.pop(_pair(prefill, decode), None)

    def has(self, prefill: NodeRecord, decode: NodeRecord) -> bool:
        """Whether the pair is to be left alone at present."""
        _, until_s = self._pauses.get(_pair(prefill, decode), (0.0, 0.0))
        return self._clock() < until_s


def _pair(prefill: NodeRecord, decode: NodeRecord) -> _Pair:
    return prefill.node_id, prefill.epoch, decode.node_id, decode.epoch
