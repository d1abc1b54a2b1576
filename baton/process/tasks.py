"""Background tasks: their reliable cancellation, and waits with a timeout that do not lose one."""

import asyncio
import contextlib

_AGAIN_S = 0.1


async def end(task: asyncio.Task[None]) -> None:
    """Cancel `task` and wait until it has ended, with whatever outcome.

    A single cancellation is not enough: `asyncio.wait_for` of Python 3.11, which libraries such as redis-py use, loses
    it if what it waits for completes at the same time (fixed in 3.12).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN_S)


async def wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until the event is set, or time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):  # not wait_for: before 3.12 it may lose a cancellation
            await event.wait()
