"""Pairs of nodes between which KV lately did not travel, though this router reaches both of them.

A pair is left alone for some seconds after a failed transfer, longer with each further one; then one request may find
out, while the others wait for what becomes of it. Between other nodes, or on a decode node alone, they go on meanwhile.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from baton.net.registry import NodeRecord

MIN_PAUSE_S, MAX_PAUSE_S = 5.0, 60.0
TRIAL_S = 2.5  # in which a transfer that gets nowhere has failed
MAX_PAIRS = 4096

_Pair = tuple[str, int, str, int]


class _Pause(NamedTuple):
    length_s: float
    until_s: float
    is_on_trial: bool = False  # it was over, and a request has gone to find out


_NONE = _Pause(0.0, 0.0)


class CutPairs:
    """Pairs are of incarnations: a node that was started anew has a clean record."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pauses: dict[_Pair, _Pause] = {}

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return bool(self._pauses)

    def failed(self, prefill: NodeRecord, decode: NodeRecord) -> None:
        """A transfer between them has failed. Those of one pause count as one."""
        pair, now_s = _pair(prefill, decode), self._clock()
        pause = self._pauses.pop(pair, _NONE)
        if now_s >= pause.until_s or pause.is_on_trial:
            length_s = min(max(2 * pause.length_s, MIN_PAUSE_S), MAX_PAUSE_S)
            pause = _Pause(length_s, now_s + length_s)
        self._pauses[pair] = pause
        if len(self._pauses) > MAX_PAIRS:
            del self._pauses[next(iter(self._pauses))]

    def trying(self, prefill: NodeRecord, decode: NodeRecord) -> None:
        """A request goes there. Where it is the first one after a pause, no other does for a moment."""
        pair, now_s = _pair(prefill, decode), self._clock()
        pause = self._pauses.get(pair)
        if pause is not None and now_s >= pause.until_s and not pause.is_on_trial:
            self._pauses[pair] = _Pause(pause.length_s, now_s + TRIAL_S, is_on_trial=True)

    def carried(self, prefill: NodeRecord, decode: NodeRecord) -> None:
        """A transfer between them was accepted."""
        self._pauses.pop(_pair(prefill, decode), None)

    def has(self, prefill: NodeRecord, decode: NodeRecord) -> bool:
        """Whether the pair is to be left alone at present."""
        return self._clock() < self._pauses.get(_pair(prefill, decode), _NONE).until_s


def _pair(prefill: NodeRecord, decode: NodeRecord) -> _Pair:
    return prefill.node_id, prefill.epoch, decode.node_id, decode.epoch
