"""Reliable cancellation of background tasks."""

import asyncio

_AGAIN_S = 0.1


async def end(task: asyncio.Task[None]) -> None:
    """Cancel `task` and wait until it has ended, with whatever outcome.

    A single cancellation is not enough: `asyncio.wait_for` of Python 3.11, which libraries such as redis-py use, loses
    it if what it waits for completes at the same time (fixed in 3.12).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN_S)
