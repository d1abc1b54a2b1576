import asyncio
from collections.abc import Awaitable, Callable

import pytest

from baton.errors import Overloaded
from baton.node.load import LoadBoard
from decode_node import reservations
from decode_node.reservations import Reservations

pytestmark = pytest.mark.anyio


class Pool:
    """Free blocks, and the requests that got some, in order."""

    def __init__(self, num_free: int) -> None:
        self.num_free, self.served = num_free, list[str]()

    def take(self, name: str, num_blocks: int) -> Callable[[], Awaitable[bool]]:
        async def take() -> bool:
            if num_blocks > self.num_free:
                return False
            self.num_free -= num_blocks
            self.served.append(name)
            return True

        return take


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_small_request_does_not_overtake_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "_RETRY_S", 100.0)
    board, pool = LoadBoard(), Pool(4)
    queue = Reservations(board)
    large = asyncio.create_task(queue.take(pool.take("large", 6)))
    small = asyncio.create_task(queue.take(pool.take("small", 1)))
    await settle()
    assert (pool.served, board.num_queued) == ([], 2)
    pool.num_free += 3
    queue.freed()
    await asyncio.wait_for(asyncio.gather(large, small), 1)
    assert (pool.served, board.num_queued) == (["large", "small"], 0)


async def test_a_cancelled_head_of_the_queue_does_not_block_the_next() -> None:
    board, pool = LoadBoard(), Pool(4)
    queue = Reservations(board)
    head = asyncio.create_task(queue.take(pool.take("head", 6)))
    following = asyncio.create_task(queue.take(pool.take("next", 4)))
    await settle()
    head.cancel()
    await asyncio.wait_for(following, 1)
    assert (pool.served, board.num_queued) == (["next"], 0)


async def test_a_cancellation_that_races_freed_blocks_is_not_lost() -> None:
    board, pool = LoadBoard(), Pool(0)
    queue = Reservations(board)
    waiting = asyncio.create_task(queue.take(pool.take("a", 1)))
    await settle()
    queue.freed()
    waiting.cancel()
    await asyncio.wait([waiting], timeout=1)
    assert waiting.cancelled()
    assert board.num_queued == 0


async def test_freed_blocks_are_found_without_a_notification() -> None:
    pool = Pool(0)
    waiting = asyncio.create_task(Reservations(LoadBoard()).take(pool.take("a", 1)))
    await settle()
    pool.num_free = 1
    await asyncio.wait_for(waiting, 2)


async def test_a_full_queue_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "MAX_QUEUED", 2)
    board, pool = LoadBoard(), Pool(0)
    queue = Reservations(board)
    waiting = [asyncio.create_task(queue.take(pool.take(name, 1))) for name in "ab"]
    await settle()
    with pytest.raises(Overloaded):
        await queue.take(pool.take("c", 1))
    assert board.num_queued == 2
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert board.num_queued == 0
