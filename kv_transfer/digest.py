"""xxh3_64 of a message: large ones in a thread, where hashing runs beside the event loop (xxhash releases the GIL)."""

import asyncio
from collections.abc import Sequence

import xxhash

from baton.process.threads import started_pool

_INLINE_BYTES = 2**20  # up to here a thread costs more than it saves: waking it, and a second read from memory


def digest(views: Sequence[memoryview]) -> int:
    """The digest of the views' bytes, one after the other."""
    state = xxhash.xxh3_64()
    for view in views:
        state.update(view)
    return state.intdigest()


def known(number: int) -> asyncio.Future[int]:
    """A digest that is there already."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    done.set_result(number)
    return done


class Digester:
    """Hashes messages of one node, one at a time."""

    def __init__(self) -> None:
        self._thread = started_pool(1, "kv-digest")

    def start(self, views: Sequence[memoryview]) -> asyncio.Future[int]:
        """The digest, soon. The views' bytes must not change before it is there."""
        loop = asyncio.get_running_loop()
        if sum(view.nbytes for view in views) > _INLINE_BYTES:
            return loop.run_in_executor(self._thread, digest, views)
        return known(digest(views))

    def close(self) -> None:
        """Ends the thread after what it has begun."""
        self._thread.shutdown(wait=True, cancel_futures=True)
