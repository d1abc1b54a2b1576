"""The step thread, which alone touches the engine; all others send it calls, from the event loop.

Calls run between steps, in order of arrival. When nothing can run, the thread sleeps until the next call.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from baton.errors import NodeUnavailable
from baton.request import Generation
from engine.engine import Engine
from engine.grammar.state import GrammarState
from engine.outputs import StepOutput

Result = TypeVar("Result")

IDLE_S = 0.5

_log = logging.getLogger(__name__)


class StepLoop:
    """Runs an engine from `start` to `stop`.

    The callbacks run on the step thread. `on_output` is called with the output of every step that has one. `on_crash`
    is called with an error of the engine itself or of `on_output`, after which the thread ends and calls raise
    NodeUnavailable. `on_idle` is called once each time that there has been nothing to do for IDLE_S.
    """

    def __init__(
        self,
        engine: Engine,
        on_output: Callable[[StepOutput], None],
        on_crash: Callable[[BaseException], None] = lambda error: None,
        on_idle: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        self._engine = engine
        self._on_output = on_output
        self._on_crash = on_crash
        self._on_idle = on_idle
        self._was_idle = False
        self._calls: deque[tuple[Future[Any], Callable[[Engine], Any]]] = deque()
        self._condition = threading.Condition()
        self._is_stopping = False
        self._is_blocked = False  # the last step could run nothing, and only a call can change that
        self._thread = threading.Thread(target=self._run, name="step", daemon=True)

    def start(self) -> None:
        """Begin stepping."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop after the step in progress; calls that have not run yet raise NodeUnavailable."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        self._refuse_calls()

    async def call(self, function: Callable[[Engine], Result]) -> Result:
        """Run `function(engine)` between steps; return its result, or raise its error.

        A call whose caller is cancelled before it has begun is not made; after that, its result is lost. A result that
        must not be lost (a reserved request) therefore has to be stored by `function` itself.
        """
        return await asyncio.wrap_future(self._enqueue(function))

    async def prepare(self, generation: Generation) -> GrammarState | None:
        """Compile the grammar of a generation, which the engine needs along with it, without blocking steps.

        Raises InvalidRequest if the grammar is refused, Overloaded if too many wait to be compiled.
        """
        return await self._engine.compile(generation)

    def submit(self, function: Callable[[Engine], object]) -> None:
        """Run `function(engine)` between steps, without waiting for it; its errors are logged. From any thread."""
        self._enqueue(function).add_done_callback(_log_error)

    def _enqueue(self, function: Callable[[Engine], Result]) -> "Future[Result]":
        future: Future[Result] = Future()
        with self._condition:
            if self._is_stopping:
                future.set_exception(_stopped())
            else:
                self._calls.append((future, function))
                self._condition.notify()
        return future

    def _run(self) -> None:
        try:
            while self._wait():
                self._run_calls()
                self._step()
        except Exception as error:  # an edge: the engine is broken, and the node must be told
            _log.exception("the step loop ended with an error")
            with self._condition:
                self._is_stopping = True
            self._refuse_calls()
            self._on_crash(error)

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False when the thread is to end."""
        with self._condition:
            while not (self._is_stopping or self._calls or (self._engine.has_work and not self._is_blocked)):
                if not self._condition.wait(None if self._was_idle else IDLE_S):
                    self._was_idle = True
                    self._on_idle(self._engine)
            self._was_idle = False
            return not self._is_stopping

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):  # calls that come meanwhile wait for the next step, so as not to delay it
            future, function = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            self._is_blocked = False
            try:
                result = function(self._engine)
            except Exception as error:  # an edge: the caller gets it
                future.set_exception(error)
            else:
                future.set_result(result)

    def _step(self) -> None:
        if not self._engine.has_work or self._is_blocked:
            return
        output = self._engine.step()
        self._is_blocked = not output.num_scheduled_tokens
        if not output.is_empty:
            self._on_output(output)

    def _refuse_calls(self) -> None:
        while self._calls:
            future, _ = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(_stopped())


def _stopped() -> NodeUnavailable:
    return NodeUnavailable("the node has stopped")


def _log_error(future: "Future[Any]") -> None:
    if not future.cancelled() and (error := future.exception()) and not isinstance(error, NodeUnavailable):
        _log.error("a call on the step thread failed", exc_info=error)
