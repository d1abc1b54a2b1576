"""Detects a peer that makes no progress: neither TCP nor UCX reports one that is frozen or cut off."""

import asyncio
import logging
from collections.abc import Callable

TICK_S = 0.125
LEAST_TICKS = 9  # 1.1 s: enough for TCP to retransmit two lost packets
MOST_TICKS = 12
_UNUSUAL = 3.0  # a stall is this many times the longest recent silence: on a busy host bytes come late
_FORGETTING = 0.996  # decay of the longest recent silence, per tick

_log = logging.getLogger(__name__)


class StallWatch:
    """Calls `on_stall` once when something has been pending without progress for LEAST_TICKS to MOST_TICKS.

    The patience within these bounds grows with the longest recent silence, and with the lateness of this process's own
    event loop, since the peer may have to wait as long for a core. Time is counted in ticks of the event loop, so a
    pause of this process, however long, counts as a single tick against the peer.
    """

    def __init__(self, about: str, on_stall: Callable[[], None]) -> None:
        """`about` says in the log what has stalled, as in "a prefill node is silent over tcp"."""
        self._about = about
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._num_pending = 0
        self._ticks = 0  # since the last progress
        self._usual_ticks = 0.0  # the longest recent silence, decaying
        self._due_s = 0.0  # when the next tick is due
        self._timer: asyncio.TimerHandle | None = None

    def started(self) -> None:
        """Count one more pending operation."""
        if self._num_pending == 0 and self._timer is None:
            self._tick_later()
        self._num_pending += 1

    def moved(self) -> None:
        """Note progress."""
        if self._ticks:
            self._usual_ticks = max(self._usual_ticks, float(self._ticks))
            self._ticks = 0

    def finished(self) -> None:
        """Count one pending operation less; that is progress, too."""
        self._num_pending -= 1
        self.moved()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _patience_ticks(self) -> float:
        return min(max(LEAST_TICKS, _UNUSUAL * self._usual_ticks), MOST_TICKS)

    def _tick_later(self) -> None:
        self._due_s = self._loop.time() + TICK_S
        self._timer = self._loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._num_pending == 0:
            return
        self._ticks += 1
        late_ticks = (self._loop.time() - self._due_s) / TICK_S
        self._usual_ticks = max(self._usual_ticks * _FORGETTING, late_ticks)
        if self._ticks < self._patience_ticks:
            self._tick_later()
        else:
            silence_s, usual_s = self._ticks * TICK_S, self._usual_ticks * TICK_S
            _log.warning("%s for %.1f s (before, %.1f s at most)", self._about, silence_s, usual_s)
            self._on_stall()


class Heartbeat:
    """Calls `beat` every `interval_s`, until closed."""

    def __init__(self, interval_s: float, beat: Callable[[], None]) -> None:
        self._interval_s = interval_s
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(interval_s, self._next)

    def close(self) -> None:
        """Stop the heartbeat."""
        self._timer.cancel()

    def _next(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self._next)
        self._beat()
