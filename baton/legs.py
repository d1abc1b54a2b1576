"""What surrounds the work of every leg: it ends in time, and where it does not end well, it ends in a BatonError."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from baton.errors import BatonError, DeadlineExceeded, NodeUnavailable
from baton.request import Generation

_log = logging.getLogger(__name__)


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
