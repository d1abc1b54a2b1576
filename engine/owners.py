"""The owners of the engine's requests on this node, and what is published of the engine on the load board."""

import logging
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from baton.node.load import BLOCK_LEAKS, LoadBoard
from engine.engine import Engine
from engine.outputs import StepOutput
from engine.request import Request

PUBLISH_S = 0.02  # between two loads while the same requests decode

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """A leg: a node's record of one attempt."""

    request: Request | None


AnyOwner = TypeVar("AnyOwner", bound=Owner)


class Owners(Generic[AnyOwner]):
    """Maps requests to their owners. Changed on the step thread, read in the event loop; each change is atomic."""

    def __init__(self, board: LoadBoard, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._clock = clock
        self._published_s = -PUBLISH_S
        self._owners: dict[int, AnyOwner] = {}  # by id(request)

    def expect(self, request: Request, owner: AnyOwner) -> None:
        """Register the owner for the engine's output on this request. On the step thread."""
        self._owners[id(request)] = owner

    def forget(self, request: Request) -> None:
        """Undo `expect`. On the step thread."""
        self._owners.pop(id(request), None)

    def release(self, engine: Engine, owner: AnyOwner) -> None:
        """Forget the owner's request, and free its blocks. On the step thread, after the owner's other calls."""
        if owner.request is not None:
            self.forget(owner.request)
            engine.release(owner.request)
            self.publish(engine)

    def of(self, request: Request) -> AnyOwner | None:
        """The request's owner, or None if it has none any more."""
        return self._owners.get(id(request))

    def publish_after(self, step: StepOutput, engine: Engine) -> None:
        """Publish the engine's load after a step, unless it has hardly changed since. On the step thread."""
        if step.begun or step.ended or self._clock() - self._published_s >= PUBLISH_S:
            self.publish(engine)

    def publish(self, engine: Engine) -> None:
        """Publish the engine's load. On the step thread."""
        self._published_s = self._clock()
        self._board.publish(
            engine.current_load(),
            num_cached=engine.blocks.num_cached_blocks,
            num_leased=engine.num_idle_blocks,
            num_preemptions=engine.num_preemptions,
        )

    def audit(self, engine: Engine, others: "Owners[Any]") -> None:
        """Check that allocated = leased + running + cached blocks, and that leased blocks have an owner.

        On the step thread of an idle node. The owner may be here or in `others`: a finished leg can still wait for a
        router that does not read. A mismatch is logged and counted; the blocks are not freed, since something may
        still touch them.
        """
        try:
            engine.check()
            if engine.num_idle_blocks and not (self._owners or others._owners):
                raise RuntimeError(f"{engine.num_idle_blocks} blocks are leased without an owner")
        except RuntimeError as error:
            BLOCK_LEAKS.inc()
            _log.error("KV blocks do not add up: %s", error)
