"""Pairs of nodes between which KV transfers recently failed, although this router reaches both nodes.

After a failed transfer a pair is avoided for some seconds, longer after each further failure. Then a single request may
try it, while the others keep avoiding it until the outcome is known. They use other pairs, or a decode node alone.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from baton.net.registry import NodeRecord

MIN_PAUSE_S, MAX_PAUSE_S = 5.0, 60.0
TRIAL_S = 2.5  # how long a trial may take: by then a transfer that makes no progress has failed
MAX_PAIRS = 4096

_Pair = tuple[str, int, str, int]


class _Pause(NamedTuple):
    length_s: float
    until_s: float
    is_on_trial: bool = False  # the pause was over, and one request is trying the pair


_NONE = _Pause(0.0, 0.0)


class CutPairs:
    """The pairs to avoid. They are pairs of incarnations, so a node that restarted has a clean record."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pauses: dict[_Pair, _Pause] = {}

    def __bool__(self) -> bool:
        """Whether any pair has failed and not worked since."""
        return bool(self._pauses)

    def failed(self, prefill: NodeRecord, decode: NodeRecord) -> None:
        """Report a failed transfer. All failures during one pause count as one."""
        pair, now_s = _pair(prefill, decode), self._clock()
        pause = self._pauses.pop(pair, _NONE)
        if now_s >= pause.until_s or pause.is_on_trial:
            length_s = min(max(2 * pause.length_s, MIN_PAUSE_S), MAX_PAUSE_S)
            pause = _Pause(length_s, now_s + length_s)
        self._pauses[pair] = pause
        if len(self._pauses) > MAX_PAIRS:
            del self._pauses[next(iter(self._pauses))]

    def trying(self, prefill: NodeRecord, decode: NodeRecord) -> None:
        """Report that a request will use this pair. The first one after a pause is a trial: others avoid the pair."""
        pair, now_s = _pair(prefill, decode), self._clock()
        pause = self._pauses.get(pair)
        if pause is not None and now_s >= pause.until_s and not pause.is_on_trial:
            self._pauses[pair] = _Pause(pause.length_s, now_s + TRIAL_S, is_on_trial=True)

    def carried(self, prefill: NodeRecord, decode: NodeRecord) -> None:
        """Report an accepted transfer: the pair works again."""
        self._pauses.pop(_pair(prefill, decode), None)

    def has(self, prefill: NodeRecord, decode: NodeRecord) -> bool:
        """Whether the pair is to be avoided at present."""
        return self._clock() < self._pauses.get(_pair(prefill, decode), _NONE).until_s


def _pair(prefill: NodeRecord, decode: NodeRecord) -> _Pair:
    return prefill.node_id, prefill.epoch, decode.node_id, decode.epoch
