"""Notices a peer that stopped moving: neither TCP nor UCX reports one that is frozen or cut off."""

import asyncio
import logging
from collections.abc import Callable

TICK_S = 0.125
LEAST_TICKS = 9  # 1.1 s, by which two lost packets have been sent again
MOST_TICKS = 12
_UNUSUAL = 3.0  # times the longest silence of late: on a busy host bytes come late
_FORGETTING = 0.996  # of that, a tick

_log = logging.getLogger(__name__)


class StallWatch:
    """Calls `on_stall` once when something has been pending without progress for LEAST_TICKS to MOST_TICKS.

    For how long depends on how long silences were of late, and on how late this process's own turn came: its peer may
    have to wait as long for a core. Ticks are those of this process's loop, so however long that was away, nobody is
    held responsible for more than one of them.
    """

    def __init__(self, about: str, on_stall: Callable[[], None]) -> None:
        """`about` says for the log what it means that nothing moves."""
        self._about = about
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._num_pending = 0
        self._ticks = 0  # since something moved
        self._usual_ticks = 0.0
        self._due_s = 0.0  # the next tick
        self._timer: asyncio.TimerHandle | None = None

    def started(self) -> None:
        """One more thing is pending."""
        if self._num_pending == 0 and self._timer is None:
            self._tick_later()
        self._num_pending += 1

    def moved(self) -> None:
        """Some bytes went through."""
        if self._ticks:
            self._usual_ticks = max(self._usual_ticks, float(self._ticks))
            self._ticks = 0

    def finished(self) -> None:
        """One thing less is pending."""
        self._num_pending -= 1
        self.moved()

    def close(self) -> None:
        """Watch no longer."""
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
        """Beat no more."""
        self._timer.cancel()

    def _next(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self._next)
        self._beat()
