"""Whom the engine's requests belong to on this node, and what its load board is told of the engine."""

from typing import Generic, Protocol, TypeVar

from baton.node_load import LoadBoard
from engine.engine import Engine
from engine.request import Request


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
