"""Whom the engine's requests belong to on this node, and what its load board is told of the engine."""

import logging
from typing import Any, Generic, Protocol, TypeVar

from baton.node.load import BLOCK_LEAKS, LoadBoard
from engine.engine import Engine
from engine.request import Request

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """A leg: what a node keeps of one attempt."""

    request: Request | None


AnyOwner = TypeVar("AnyOwner", bound=Owner)


class Owners(Generic[AnyOwner]):
    """Filled and emptied on the step thread, looked at in the event loop; each change is atomic."""

    def __init__(self, board: LoadBoard) -> None:
        self._board = board
        self._owners: dict[int, AnyOwner] = {}  # by id(request)

    def expect(self, request: Request, owner: AnyOwner) -> None:
        """On the step thread: the owner wants what the engine says of this request."""
        self._owners[id(request)] = owner

    def forget(self, request: Request) -> None:
        """On the step thread: it no longer does."""
        self._owners.pop(id(request), None)

    def release(self, engine: Engine, owner: AnyOwner) -> None:
        """On the step thread, after whatever the owner had asked of the engine before: its blocks are given back."""
        if owner.request is not None:
            self.forget(owner.request)
            engine.release(owner.request)
            self.publish(engine)

    def of(self, request: Request) -> AnyOwner | None:
        """None where nobody waits any more."""
        return self._owners.get(id(request))

    def publish(self, engine: Engine) -> None:
        """On the step thread: what the engine looks like now."""
        self._board.publish(
            engine.current_load(),
            num_cached=engine.blocks.num_cached_blocks,
            num_leased=engine.num_idle_blocks,
            num_preemptions=engine.num_preemptions,
        )

    def audit(self, engine: Engine, others: "Owners[Any]") -> None:
        """On the step thread of an idle node: allocated = leased + running + cached, and whoever leases is known, here
        or to `others`: work on a prompt may be done, and wait for a router that does not read.

        What does not add up is logged and counted; the blocks stay where they are, because something may touch them.
        """
        try:
            engine.check()
            if engine.num_idle_blocks and not (self._owners or others._owners):
                raise RuntimeError(f"{engine.num_idle_blocks} blocks are leased to nobody")
        except RuntimeError as error:
            BLOCK_LEAKS.inc()
            _log.error("KV blocks do not add up: %s", error)
