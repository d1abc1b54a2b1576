"""Ending background tasks for certain."""

import asyncio

_AGAIN_S = 0.1


async def end(task: asyncio.Task[None]) -> None:
    """Cancel `task` and return when it is over, whatever it ended with.

    One cancellation is not enough: `asyncio.wait_for` of Python 3.11 loses it when what it waits for has just come
    (fixed in 3.12), and libraries, redis-py among them, use it.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN_S)
