"""Whom the engine's requests belong to on this node, and what its load board is told of the engine."""

from typing import Generic, Protocol, TypeVar

from baton.node_load import LoadBoard
from engine.engine import Engine
from engine.request import Request, RequestState


class Owner(Protocol):
    """A leg: what a node keeps of one attempt."""

    request: Request | None


AnyOwner = TypeVar("AnyOwner", bound=Owner)


class Owners(Generic[AnyOwner]):
    """Filled and emptied on the step thread, looked at in the event loop; each change is atomic."""

    def __init__(self, board: LoadBoard, leased: RequestState) -> None:
        """Blocks of requests in the state `leased` are those that a transfer may touch."""
        self._board = board
        self._leased = leased
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
        leased: set[int] = set()
        for owner in self._owners.values():
            if owner.request is not None and owner.request.state is self._leased:
                leased.update(owner.request.block_ids)
        self._board.publish(
            engine.current_load(),
            num_cached=engine.blocks.num_cached_blocks,
            num_leased=len(leased),
            num_preemptions=engine.num_preemptions,
        )
