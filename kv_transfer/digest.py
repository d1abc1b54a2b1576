"""Digests of messages (xxh3_64). Large ones are hashed in a thread, beside the event loop: xxhash releases the GIL."""

import asyncio
from collections.abc import Sequence

import xxhash

from baton.process.threads import started_pool

_INLINE_BYTES = 2**20  # up to this size, waking a thread and reading from a cold cache cost more than they save


def digest(views: Sequence[memoryview]) -> int:
    """Return the digest of the views' bytes, taken as one message."""
    state = xxhash.xxh3_64()
    for view in views:
        state.update(view)
    return state.intdigest()


def known(number: int) -> asyncio.Future[int]:
    """Return a completed future that holds `number`, a digest computed already."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    done.set_result(number)
    return done


class Digester:
    """Hashes one node's messages. The large ones share one thread."""

    def __init__(self) -> None:
        self._thread = started_pool(1, "kv-digest")

    def start(self, views: Sequence[memoryview]) -> asyncio.Future[int]:
        """Start to compute the digest of the views' bytes, which must not change before the future is done."""
        loop = asyncio.get_running_loop()
        if sum(view.nbytes for view in views) > _INLINE_BYTES:
            return loop.run_in_executor(self._thread, digest, views)
        return known(digest(views))

    def close(self) -> None:
        """End the thread once it has finished the message in hand."""
        self._thread.shutdown(wait=True, cancel_futures=True)
