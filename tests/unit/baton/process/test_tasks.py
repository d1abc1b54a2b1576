import asyncio

import pytest

from baton.process import tasks

pytestmark = pytest.mark.anyio


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    num_lost = 0

    async def stubborn() -> None:
        nonlocal num_lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                num_lost += 1
                if num_lost == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await tasks.end(task)
    assert task.cancelled()
    assert num_lost == 3


async def test_ending_a_finished_or_failed_task_raises_nothing() -> None:
    async def failing() -> None:
        raise ValueError

    task = asyncio.create_task(failing())
    await tasks.end(task)
    await tasks.end(task)
    with pytest.raises((ValueError, asyncio.CancelledError)):
        task.result()


async def test_a_wait_ends_with_the_event_or_with_the_time() -> None:
    event = asyncio.Event()
    await tasks.wait(event, 0.001)
    asyncio.get_running_loop().call_soon(event.set)
    async with asyncio.timeout(5):
        await tasks.wait(event, 60.0)


async def test_a_wait_that_is_cancelled_as_its_event_is_set_is_cancelled() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(tasks.wait(event, 60.0))
    await asyncio.sleep(0)
    event.set()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
