"""A connection that carries gRPC calls: frames, and pings that notice when nothing comes any more.

Either end pings after PING_S of silence and gives the connection up when there is no answer within PONG_S, as the
keepalive of `baton.net.rpc` has it.
"""

import asyncio
from typing import Any

from tests.simulation.network import End

PING_S = 2.0
PONG_S = 1.0


class Wire:
    """A connection that carries calls, as one of its ends sees it."""

    def __init__(self, end: End, on_frame: Any, on_lost: Any) -> None:
        self.end = end
        self.lost = False
        self._on_frame, self._on_lost = on_frame, on_lost
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._loop.time()
        end.on_data, end.on_end = self._on_data, self._lose
        self._ping = self._loop.call_later(PING_S, self._check)
        self._verdict: asyncio.TimerHandle | None = None

    def send(self, *frame: Any) -> None:
        """One frame; its second member is the call's number."""
        self.end.send(frame)

    def close(self) -> None:
        """Idempotent."""
        self.end.close()
        self._lose()

    def _on_data(self, frame: tuple[Any, ...]) -> None:
        if self.lost:
            return
        self._heard_s = self._loop.time()
        if frame[0] == "ping":
            self.end.send(("pong",))
        elif frame[0] != "pong":
            self._on_frame(*frame)

    def _check(self) -> None:
        if self._loop.time() - self._heard_s >= PING_S:
            self.end.send(("ping",))
            self._verdict = self._loop.call_later(PONG_S, self._judge, self._heard_s)
        self._ping = self._loop.call_later(PING_S, self._check)

    def _judge(self, heard_s: float) -> None:
        if self._heard_s == heard_s:
            self.close()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._ping.cancel()
            if self._verdict:
                self._verdict.cancel()
            self._on_lost(self)
