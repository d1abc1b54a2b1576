"""Threads that take turns with the event loop: the real step loop runs on one, and virtual time passes in its steps.

Each is a real thread, but only one of all threads runs at any time: whoever hands over waits for its next turn.
Stands in for the module `threading`.
"""

import _thread
import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from tests.simulation.loop import STRAND, SimLoop, Strand, current_process

_current = threading.local()


class _End(BaseException):
    """The simulation is over."""


def sleep(delay_s: float) -> None:
    """Let virtual time pass; on a SimThread."""
    _current.thread.sleep(delay_s)


class SimThread:
    """A `threading.Thread` of the process that makes it."""

    ident: int | None = None
    all: ClassVar[list["SimThread"]] = []

    def __init__(self, target: Callable[[], Any], name: str = "", daemon: bool = True) -> None:
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._context.run(STRAND.set, Strand(current_process()))
        self._go, self._back = _thread.allocate_lock(), _thread.allocate_lock()
        self._go.acquire()
        self._back.acquire()
        self._over = False
        self.done = False
        self.waiters: list[SimThread] = []

    def start(self) -> None:
        """Take turns from now on."""
        self.ident = 1
        SimThread.all.append(self)
        _thread.start_new_thread(self._main, ())
        self.wake()

    def wake(self) -> None:
        """Have a turn soon."""
        self._loop.call_soon(self._turn, context=self._context)

    def sleep(self, delay_s: float) -> None:
        """On the thread itself."""
        self._loop.call_at(self._loop.time() + delay_s, self._turn, context=self._context)
        self.pause()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """On the thread itself; the callback runs in the event loop."""
        return self._loop.call_at(self._loop.time() + delay_s, callback, context=self._context)

    def pause(self) -> None:
        """On the thread itself: until somebody wakes it."""
        self._back.release()
        self._go.acquire()
        if self._over:
            raise _End

    def join(self) -> None:
        """On another SimThread."""
        while not self.done:
            self.waiters.append(_current.thread)
            _current.thread.pause()

    def end(self) -> None:
        """Of the simulation; from outside."""
        self._over = True
        if not self.done:
            self._go.release()
            self._back.acquire()

    def _turn(self) -> None:
        if not self.done:
            self._go.release()
            self._back.acquire()

    def _main(self) -> None:
        self._go.acquire()
        _current.thread = self
        try:
            if not self._over:
                self._copy().run(self._target)
        except _End:
            pass
        finally:
            self.done = True
            for waiter in self.waiters:
                waiter.wake()
            self._back.release()

    def _copy(self) -> contextvars.Context:
        return self._context.copy()  # the one of its turns is entered meanwhile


class SimCondition:
    """A `threading.Condition`; its lock is never contended, as threads hand over only when they wait."""

    def __init__(self) -> None:
        self._waiting: list[SimThread] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def wait(self, timeout: float | None = None) -> bool:
        """Until notified; False where that took longer than `timeout` seconds."""
        thread, timed_out = _current.thread, False

        def give_up() -> None:
            nonlocal timed_out
            if thread in self._waiting:
                self._waiting.remove(thread)
                timed_out = True
                thread._turn()

        timer = None if timeout is None else thread.call_later(timeout, give_up)
        self._waiting.append(thread)
        thread.pause()
        if timer is not None:
            timer.cancel()
        return not timed_out

    def notify(self) -> None:
        """Wake whoever waits."""
        waiting, self._waiting = self._waiting, []
        for thread in waiting:
            thread.wake()


class SimThreading:
    """The module, as far as it is used."""

    Thread, Condition = SimThread, SimCondition


def run_in_executor(loop: SimLoop, delay_s: float, function: Callable[[], Any]) -> "asyncio.Future[Any]":
    """As the loop's method, in a thread that begins after a while."""
    future = loop.create_future()

    def work() -> None:
        sleep(delay_s)
        result = function()  # a digest, or a join: neither raises
        loop.call_soon_threadsafe(lambda: future.cancelled() or future.set_result(result))

    SimThread(work).start()
    return future
