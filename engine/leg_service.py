"""What the services of both pools have in common: each leg has an owner task, which gives its blocks back at the end.

A leg is the part of one attempt at a request that runs on this node. The states that it goes through, and who sends or
receives its KV, are up to the pool's service.
"""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from baton.errors import BatonError, Cancelled, ContextLengthExceeded, DeadlineExceeded, InvalidRequest, NodeUnavailable
from baton.node.load import ERRORS
from baton.node.service import Legs
from baton.node.shell import NodeShell
from baton.request import Generation
from baton.telemetry.timeline import Timeline
from engine.engine import Engine
from engine.grammar.state import GrammarState
from engine.outputs import StepOutput
from engine.owners import Owners
from engine.request import Request
from engine.request_events import events
from engine.step_loop import StepLoop

_log = logging.getLogger(__name__)


class OwnedLeg:
    """A leg with its owner task, the only one to touch the leg's blocks. Anybody may end the leg with `cancel`."""

    owner: asyncio.Task[None]

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.timeline = Timeline(generation.request_id, generation.attempt, generation.traceparent)
        self.grammar: GrammarState | None = None  # if one was asked for, once it is compiled
        self.request: Request | None = None  # set on the step thread
        self.last_block_hash = b""  # of the tokens that it begins with
        self.is_shipped = False  # all of its KV has arrived from another node
        self.is_ending = False  # the owner is cleaning up and must not be interrupted

    def cancel(self) -> None:
        """Ask the owner to end. Idempotent, returns at once."""
        loop = asyncio.get_running_loop()
        loop.call_soon(self._cancel_owner)  # later: a task cancelled before its first line has run cannot clean up

    def _cancel_owner(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            self.owner.cancel()


AnyLeg = TypeVar("AnyLeg", bound=OwnedLeg)


class LegService(Legs, ABC, Generic[AnyLeg]):
    """Runs the legs that routers start."""

    def __init__(self, engine: Engine, step_loop: StepLoop, shell: NodeShell, outputs: Owners[AnyLeg]) -> None:
        self._layout, self._num_blocks, self._step_loop = engine.layout, engine.num_blocks, step_loop
        self._sessions, self._board, self._timelines = shell.sessions, shell.board, shell.timelines
        self.outputs = outputs
        self._legs: set[AnyLeg] = set()

    @abstractmethod
    def deliver(self, step: StepOutput) -> None:
        """Handle the output of a step. Called in the event loop after each step."""

    @abstractmethod
    def _tell_end(self, leg: AnyLeg, error: BatonError | None) -> None:
        """Tell the router how a leg has ended, unless it knows."""

    @abstractmethod
    async def _end_transfer(self, leg: AnyLeg) -> None:
        """Return when no transfer touches the leg's blocks any more."""

    async def close(self) -> None:
        """Cancel the legs that are left, and return when all blocks have been released."""
        left = list(self._legs)
        for leg in left:
            leg.cancel()
        if left:
            await asyncio.wait([leg.owner for leg in left])

    def _run(self, leg: AnyLeg, walk: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Check and register a leg, and start its owner task, which takes it through its states by `walk`.

        If it is refused, the router is told why, unless it has cancelled the leg.
        """
        try:
            self._check(leg.generation)
            self._sessions.open(leg)
        except Cancelled:  # cancelled by its router, or a duplicate
            return
        except BatonError as error:
            ERRORS.labels(error.code).inc()
            self._sessions.refuse(leg.generation, error)
            return
        self._timelines.add(leg.timeline)
        leg.owner = asyncio.create_task(self._own(leg, walk), name=f"leg {leg.generation.request_id}")
        self._legs.add(leg)
        leg.owner.add_done_callback(lambda _: self._legs.discard(leg))

    def _check(self, generation: Generation) -> None:
        """Raise a BatonError for a generation that this node cannot serve."""
        if not generation.token_ids:
            raise InvalidRequest("the request has no tokens")
        if len(generation.token_ids) > self._num_blocks * self._layout.block_size:
            raise ContextLengthExceeded("the prompt is longer than this node's KV pool")

    async def _own(self, leg: AnyLeg, walk: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Take a leg through its states, then release what it holds, whatever happened."""
        error: BatonError | None = None
        try:
            async with within_time(leg.generation):
                await walk()
        except BatonError as raised:
            error = raised
            ERRORS.labels(error.code).inc()
        leg.is_ending = True
        leg.timeline.end("" if error is None else error.code or "")
        self._tell_end(leg, error)
        self._sessions.close(leg)
        await self._end_transfer(leg)
        self._step_loop.submit(lambda engine: self.outputs.release(engine, leg))

    async def _prepare(self, leg: AnyLeg) -> None:
        """Compile the leg's grammar, if it has one."""
        leg.grammar = await self._step_loop.prepare(leg.generation)
        if leg.grammar is not None:
            leg.timeline.add("wait for grammar", leg.timeline.began_s)

    def _expect(self, engine: Engine, request: Request, leg: AnyLeg) -> None:
        """Note the engine's request of a leg. On the step thread."""
        leg.request, leg.last_block_hash = request, request.last_block_hash
        leg.timeline.more = lambda: events(request, engine.steps.times, is_shipped=leg.is_shipped)
        self.outputs.expect(request, leg)
        self.outputs.publish(engine)


@contextlib.asynccontextmanager
async def within_time(generation: Generation) -> AsyncIterator[None]:
    """Run the body of a leg under its deadline. Raises only BatonErrors, also for cancellation and for bugs."""
    try:
        async with asyncio.timeout(generation.timeout_ms / 1000):
            yield
    except BatonError:
        raise
    except TimeoutError:
        raise DeadlineExceeded("the request's time is up") from None
    except asyncio.CancelledError:
        raise NodeUnavailable("cancelled by its router or by this node") from None
    except Exception:  # an edge: this leg fails, the node keeps running
        _log.exception("leg failed", extra={"request_id": generation.request_id})
        raise BatonError("internal error") from None
