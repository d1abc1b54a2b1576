"""The outbox of one peer: turns, bounds, and errors."""

import asyncio
from collections import deque

from baton.errors import TransferError
from kv_transfer.outbox import Outbox
from kv_transfer.transport import ByteConnection

SIZE = 100


class Wire(ByteConnection):
    """A connection that holds every message until the test releases it, with a digest."""

    digests = True

    def __init__(self) -> None:
        self.tags: list[int] = []
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def send(self, tag, views):
        self.tags.append(tag)
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]

    async def close(self):
        pass


class Queue:
    """A transfer of `number` messages, with tags from `first` on."""

    def __init__(self, first: int, number: int) -> None:
        self.left = deque(range(number))
        self.first = first
        self.ended: list[tuple[int, TransferError | None]] = []
        self.digests: list[int | None] = []

    def take(self):
        if not self.left:
            return None
        index = self.left.popleft()
        return index, self.first + index, SIZE

    async def send(self, index, tag, connection):
        return await connection.send(tag, [memoryview(bytes(SIZE))])

    def sent(self, index, error, digest):
        self.ended.append((index, error))
        self.digests.append(digest)


async def let_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_transfers_take_turns_within_the_bound_on_bytes_in_flight():
    async def main():
        wire, outbox = Wire(), Outbox(max_inflight_bytes=3 * SIZE)
        long, short = Queue(0, 10), Queue(100, 2)
        outbox.add(long)
        outbox.add(short)
        await let_run()
        assert wire.tags == []  # not connected yet
        outbox.start(wire)
        await let_run()
        assert wire.tags == [0, 100, 1]
        while wire.waiting:
            wire.waiting.popleft().set_result(len(wire.tags))
            await let_run()
            assert len(wire.waiting) <= 3
        assert wire.tags == [0, 100, 1, 101, 2, 3, 4, 5, 6, 7, 8, 9]
        assert [index for index, _ in long.ended] == list(range(10))
        assert long.digests[:2] == [3, 5]  # each message has its own

    asyncio.run(main())


def test_a_transfer_that_is_added_twice_has_one_turn():
    async def main():
        wire, outbox = Wire(), Outbox(max_inflight_bytes=SIZE)
        long = Queue(0, 3)
        for source in (long, long, Queue(100, 1)):
            outbox.add(source)
        outbox.start(wire)
        await let_run()
        while wire.waiting:
            assert len(outbox._sends) == 1
            wire.waiting.popleft().set_result(None)
            await let_run()
        assert wire.tags == [0, 100, 1, 2]
        assert not outbox._sends

    asyncio.run(main())


def test_a_message_larger_than_the_bound_goes_out_alone():
    async def main():
        wire, outbox = Wire(), Outbox(max_inflight_bytes=1)
        outbox.start(wire)
        outbox.add(Queue(0, 2))
        await let_run()
        assert wire.tags == [0]
        wire.waiting.popleft().set_result(None)
        await let_run()
        assert wire.tags == [0, 1]
        wire.waiting.popleft().set_result(None)
        await let_run()

    asyncio.run(main())


def test_an_error_reaches_its_transfer_and_frees_the_bound():
    async def main():
        wire, outbox = Wire(), Outbox(max_inflight_bytes=SIZE)
        first, second = Queue(0, 1), Queue(100, 1)
        outbox.start(wire)
        outbox.add(first)
        outbox.add(second)
        await let_run()
        error = TransferError("gone")
        wire.waiting.popleft().set_exception(error)
        await let_run()
        assert (first.ended, first.digests) == ([(0, error)], [None])
        assert wire.tags == [0, 100]
        wire.waiting.popleft().set_result(None)
        await let_run()
        assert second.ended == [(0, None)]

    asyncio.run(main())


def test_a_discarded_transfer_sends_no_more():
    async def main():
        wire, outbox = Wire(), Outbox(max_inflight_bytes=SIZE)
        source = Queue(0, 3)
        outbox.start(wire)
        outbox.add(source)
        await let_run()
        outbox.discard(source)
        wire.waiting.popleft().set_result(None)
        await let_run()
        assert wire.tags == [0]

    asyncio.run(main())
