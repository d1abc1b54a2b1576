"""What the legs of both kinds of nodes have in common: an owner task, admission, a deadline, and how they fail.

A leg is the part of one attempt at a request that runs on this node.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from baton.errors import BatonError, Cancelled, ContextLengthExceeded, DeadlineExceeded, InvalidRequest, NodeUnavailable
from baton.kv.layout import KVLayout
from baton.node.load import ERRORS
from baton.node.session import Leg
from baton.node.sessions import Sessions
from baton.request import Generation
from baton.telemetry.timeline import Timeline

_log = logging.getLogger(__name__)


class OwnedLeg:
    """A leg with its owner task, the only one to touch the leg's blocks. Anybody may end the leg with `cancel`."""

    owner: asyncio.Task[None]

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.timeline = Timeline(generation.request_id, generation.attempt, generation.traceparent)
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


def own(leg: AnyLeg, life: Coroutine[Any, Any, None], legs: set[AnyLeg]) -> None:
    """Start the leg's owner task, which is its `life`. The leg is in `legs` until that has ended."""
    leg.owner = asyncio.create_task(life, name=f"leg {leg.generation.request_id}")
    legs.add(leg)
    leg.owner.add_done_callback(lambda _: legs.discard(leg))


async def all_over(legs: Iterable[OwnedLeg]) -> None:
    """Cancel these legs, and wait until all of them have released what they held."""
    left = list(legs)
    for leg in left:
        leg.cancel()
    if left:
        await asyncio.wait([leg.owner for leg in left])


def entered(leg: Leg, sessions: Sessions, check: Callable[[Generation], None]) -> bool:
    """Check and register a leg. Returns False if it is refused; the router is told why unless it has cancelled the leg.

    `check` raises a BatonError for a generation that this node cannot serve.
    """
    try:
        check(leg.generation)
        sessions.open(leg)
    except Cancelled:  # cancelled by its router, or a duplicate
        return False
    except BatonError as error:
        ERRORS.labels(error.code).inc()
        sessions.refuse(leg.generation, error)
        return False
    return True


def check_prompt(generation: Generation, layout: KVLayout, num_blocks: int) -> None:
    """Raise InvalidRequest for an empty prompt, ContextLengthExceeded for one that `num_blocks` can never hold."""
    if not generation.token_ids:
        raise InvalidRequest("the request has no tokens")
    if len(generation.token_ids) > num_blocks * layout.block_size:
        raise ContextLengthExceeded("the prompt is longer than this node's KV pool")


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
