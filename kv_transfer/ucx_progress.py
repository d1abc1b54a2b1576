"""Drives one UCX worker from an event loop: no thread, and no work while nothing happens.

ucxx's own asyncio progress polls for every pending request; here a request is a future, looked at only when the worker
has moved. Works with asyncio's loops and with uvloop: all it needs is `add_reader` on the worker's event descriptor.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from baton.errors import TransferError

_BUDGET_S = 0.002  # of progress in one go, before other tasks have a turn
_TICK_S = 0.25  # progress at least this often: UCX does not promise an event for everything


class Progress:
    """Progress of one worker, and the requests pending on it."""

    def __init__(self, worker: Any, after: Callable[[], None], ucx_error: type[Exception]) -> None:
        """`after` is called after each progress, outside of UCX callbacks, and may start requests."""
        self._ucx_error = ucx_error
        self._worker = worker
        self._after = after
        self._loop = asyncio.get_running_loop()
        self._pending: list[tuple[Any, asyncio.Future[None], Any]] = []
        self._kicked = False
        self._thorough = False
        worker.init_blocking_progress_mode()
        self._descriptor = worker.epoll_file_descriptor
        self._loop.add_reader(self._descriptor, self._run)
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def submit(self, request: Any, keep: Any = None) -> asyncio.Future[None]:
        """The request's end: a result, or a TransferError. Both mean that its buffer is no longer touched.

        `keep` stays alive until then. Cancelling the future does not cancel the request.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        done.add_done_callback(lambda done: done.cancelled() or done.exception())  # never "was never retrieved"
        self._pending.append((request, done, keep))
        self.kick()
        return done

    def kick(self, *, thorough: bool = False) -> None:
        """Progress soon. `thorough` lets ucxx also cancel the requests of an endpoint that failed."""
        self._thorough |= thorough
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._run_kicked)

    async def close(self, timeout_s: float) -> None:
        """Drive what is pending to its end, then stop; raises TimeoutError if it does not end."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._pending:
                    self.kick(thorough=True)
                    await asyncio.sleep(0.001)
        finally:
            self._timer.cancel()
            self._loop.remove_reader(self._descriptor)
            self._kicked = True  # a late kick does nothing
            self._worker = None
            self._after = _nothing

    def _run_kicked(self) -> None:
        self._kicked = False
        self._run()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        self.kick(thorough=True)

    def _run(self) -> None:
        worker = self._worker
        if worker is None:
            return
        self._advance(worker)
        self._settle()
        self._after()
        if self._worker is not None and not worker.arm():
            self.kick()

    def _advance(self, worker: Any) -> None:
        deadline = time.monotonic() + _BUDGET_S
        if self._thorough:
            self._thorough = False
            worker.progress()
        while worker.progress_once():
            if time.monotonic() > deadline:
                return

    def _settle(self) -> None:
        ended = [entry for entry in self._pending if entry[0].completed]
        if not ended:
            return
        self._pending = [entry for entry in self._pending if entry not in ended]
        for request, done, _ in ended:
            if done.cancelled():
                continue
            try:
                request.check_error()
            except self._ucx_error as error:
                done.set_exception(TransferError(f"UCX: {error}"))
            else:
                done.set_result(None)


def _nothing() -> None:
    pass
