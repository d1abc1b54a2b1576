"""What surrounds the work of every leg: how it begins, and that it ends in time, or else in a BatonError."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

from baton.errors import BatonError, Cancelled, DeadlineExceeded, NodeUnavailable
from baton.node.load import ERRORS
from baton.node.session import Leg
from baton.node.sessions import Sessions
from baton.request import Generation

_log = logging.getLogger(__name__)


class OwnedLeg(Protocol):
    """One whose owner task gives back what it holds."""

    owner: asyncio.Task[None]

    def cancel(self) -> None:
        """Have the owner end. Idempotent, returns at once."""


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
