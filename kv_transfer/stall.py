"""Notices a peer that stopped moving: neither TCP nor UCX reports one that is frozen or cut off."""

import asyncio
from collections.abc import Callable

_LATE_S = 0.5  # a check that comes so late says that this process was away, and nothing of the peer
_LEAST = 0.73  # of the limit: 1.1 s, by which two lost packets have been sent again
_UNUSUAL = 2.0  # times the longest silence of late: on a busy host bytes come late
_FORGETTING = 0.97  # of that, a second


class StallWatch:
    """Calls `on_stall` once when something has been pending for `limit_s` without progress.

    Where silences were short of late, it does so after a part of it: who waits has a stream that stands still.
    """

    def __init__(self, limit_s: float, on_stall: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._num_pending = 0
        self._last_moved_s = 0.0
        self._usual_s = 0.0
        self._check_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def started(self) -> None:
        """One more thing is pending."""
        if self._num_pending == 0:
            self._last_moved_s = self._loop.time()
            self._check_in(self._patience_s)
        self._num_pending += 1

    def moved(self) -> None:
        """Some bytes went through."""
        now_s = self._loop.time()
        silence_s, self._last_moved_s = now_s - self._last_moved_s, now_s
        self._usual_s = max(silence_s, self._usual_s * _FORGETTING**silence_s)

    def finished(self) -> None:
        """One thing less is pending."""
        self._num_pending -= 1
        self.moved()
        if self._num_pending == 0:
            self.close()

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _patience_s(self) -> float:
        return min(self._limit_s, max(_LEAST * self._limit_s, _UNUSUAL * self._usual_s))

    def _check_in(self, delay_s: float) -> None:
        self._check_at_s = self._loop.time() + delay_s
        self._timer = self._loop.call_at(self._check_at_s, self._check)

    def _check(self) -> None:
        if self._loop.time() - self._check_at_s > _LATE_S:
            self._last_moved_s = self._loop.time()
        left_s = self._last_moved_s + self._patience_s - self._loop.time()
        if left_s > 0:
            self._check_in(left_s)
        else:
            self._timer = None
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
