"""What legs of both kinds of nodes have in common: an owner, how they begin, and that they end in time, or else in a
BatonError."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable

from baton.errors import BatonError, Cancelled, ContextLengthExceeded, DeadlineExceeded, InvalidRequest, NodeUnavailable
from baton.kv.layout import KVLayout
from baton.node.load import ERRORS
from baton.node.session import Leg
from baton.node.sessions import Sessions
from baton.request import Generation
from baton.telemetry.timeline import Timeline

_log = logging.getLogger(__name__)


class OwnedLeg:
    """One attempt at one request. Whoever wants its end calls `cancel`; only its owner task touches its blocks."""

    owner: asyncio.Task[None]

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.timeline = Timeline(generation.request_id, generation.attempt, generation.traceparent)
        self.is_ending = False  # the owner cleans up: that must not be interrupted

    def cancel(self) -> None:
        """Have the owner end. Idempotent, returns at once."""
        loop = asyncio.get_running_loop()
        loop.call_soon(self._cancel_owner)  # not before its first line has run: it could not clean up

    def _cancel_owner(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            self.owner.cancel()


async def all_over(legs: Iterable[OwnedLeg]) -> None:
    """Cancel them, and return when all of them have given back what they held."""
    left = list(legs)
    for leg in left:
        leg.cancel()
    if left:
        await asyncio.wait([leg.owner for leg in left])


def entered(leg: Leg, sessions: Sessions, check: Callable[[Generation], None]) -> bool:
    """Whether the node has the leg now. Else its router has been told why, where it still wants to know.

    `check` raises for what this node cannot serve.
    """
    try:
        check(leg.generation)
        sessions.open(leg)
    except Cancelled:  # its router has given it up, or this is a copy of what is here
        return False
    except BatonError as error:
        ERRORS.labels(error.code).inc()
        sessions.refuse(leg.generation, error)
        return False
    return True


def check_prompt(generation: Generation, layout: KVLayout, num_blocks: int) -> None:
    """Raise InvalidRequest (ContextLengthExceeded) for what a pool of so many blocks can never hold."""
    if not generation.token_ids:
        raise InvalidRequest("a request without tokens")
    if len(generation.token_ids) > num_blocks * layout.block_size:
        raise ContextLengthExceeded("the prompt is longer than this node's KV pool")


@contextlib.asynccontextmanager
async def within_time(generation: Generation) -> AsyncIterator[None]:
    """The body of a leg. Raises BatonErrors only: also where it was cancelled, or an error was nobody's intention."""
    try:
        async with asyncio.timeout(generation.timeout_ms / 1000):
            yield
    except BatonError:
        raise
    except TimeoutError:
        raise DeadlineExceeded("the request's time is up") from None
    except asyncio.CancelledError:
        raise NodeUnavailable("given up by its router, or by this node") from None
    except Exception:  # an edge: this leg fails, the node goes on
        _log.exception("leg failed", extra={"request_id": generation.request_id})
        raise BatonError("internal error") from None
