"""An area of staging memory is freed when UCX no longer uses it, and no sooner, even if the link is lost."""

import asyncio
import random

import pytest

from baton.errors import TransferError
from kv_transfer.staging import Area, Staging
from kv_transfer.ucx.link import UcxLink
from kv_transfer.ucx_child import frames

SIZE = 64 * 1024
BYTES = memoryview(random.Random(1).randbytes(SIZE))


class Process:
    """A process with room for one message at a time, in which UCX ends a message when the test says so."""

    def __init__(self) -> None:
        self.staging = Staging(SIZE)
        self.started: list = []
        self.told: list = []
        self.closed: list[int] = []
        self.put, self.close_link = self.told.append, self.closed.append

    def start_send(self, link, tag, area, on_end):
        self.started.append(on_end)

    def start_receive(self, message, link, area, on_end):
        self.started.append(on_end)

    def has_room(self) -> bool:
        taken, more = self.staging.take(SIZE), self.staging.take(1)
        assert not more.done()  # nothing is given back twice
        more.cancel()
        if taken.done():
            self.staging.give_back(taken.result())
        return taken.done() or not taken.cancel()


def run(scenario):
    async def main():
        process = Process()
        async with asyncio.timeout(10):
            await scenario(process, UcxLink(process, 3))
        process.staging.close()

    asyncio.run(main())


async def begun(coroutine) -> asyncio.Task:
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


def test_a_message_arrives_with_the_digest_it_was_sent_with():
    async def scenario(process, link):
        sending = await begun(link.send(1, [BYTES]))
        process.started.pop()(None)
        target = memoryview(bytearray(SIZE))
        digest = await sending
        receiving = await begun(link.receive(7, [target]))
        process.started.pop()(None)
        assert (await receiving, target) == (digest, BYTES)
        await link.quiet()
        assert not link._waiting
        assert process.has_room()

    run(scenario)


@pytest.mark.parametrize("error", [None, TransferError("UCX: reset")])
def test_a_lost_link_ends_messages_at_once_and_keeps_their_areas_until_ucx_has_ended(error):
    async def scenario(process, link):
        target = memoryview(bytearray(SIZE))
        receiving, waiting = await begun(link.receive(7, [target])), await begun(link.receive(8, [target]))
        link.lose()
        link.lose()
        await link.quiet()
        for task in (receiving, waiting):
            with pytest.raises(TransferError, match="was lost"):
                await task
        assert process.told == [frames.Drop(8)]
        assert process.closed == [3]
        assert not process.has_room()
        process.started.pop()(error)
        assert process.has_room()
        assert target == bytearray(SIZE)

    run(scenario)


def test_a_link_that_is_lost_while_a_message_is_copied_in_sends_nothing():
    async def scenario(process, link):
        copying = asyncio.get_running_loop().create_future()
        process.staging.fill = lambda *_: copying
        sending = await begun(link.send(1, [BYTES]))
        link.lose()
        quiet = await begun(link.quiet())
        assert (quiet.done(), process.has_room()) == (False, False)
        copying.set_result(1)
        with pytest.raises(TransferError, match="was lost"):
            await sending
        await quiet
        assert process.has_room()
        assert not process.started

    run(scenario)


def test_a_link_that_is_lost_while_a_message_is_copied_out_ends_after_the_copy():
    async def scenario(process, link):
        copying = asyncio.get_running_loop().create_future()
        process.staging.empty = lambda *_: copying
        receiving = await begun(link.receive(7, [memoryview(bytearray(SIZE))]))
        process.started.pop()(None)
        await asyncio.sleep(0)
        link.lose()
        quiet = await begun(link.quiet())
        assert (quiet.done(), process.has_room()) == (False, False)
        copying.set_result(1)
        assert await receiving == 1
        await quiet
        assert process.has_room()

    run(scenario)


def test_a_lost_link_is_quiet_after_the_last_of_its_messages():
    async def scenario(process, link):
        copying = [asyncio.get_running_loop().create_future() for _ in range(2)]
        process.staging.fill = lambda area, _: copying[area.start > 0]
        sends = [await begun(link.send(tag, [BYTES[: SIZE // 2]])) for tag in range(2)]
        link.lose()
        quiet = await begun(link.quiet())
        for copy, sending in zip(copying, sends, strict=True):
            assert not quiet.done()
            copy.set_result(1)
            with pytest.raises(TransferError, match="was lost"):
                await sending
        await quiet

    run(scenario)


def test_an_error_of_ucx_gives_the_area_back():
    async def scenario(process, link):
        sending = await begun(link.send(1, [BYTES]))
        process.started.pop()(TransferError("UCX: reset"))
        assert process.has_room()
        with pytest.raises(TransferError, match="reset"):
            await sending

    run(scenario)


def test_over_a_lost_link_nothing_is_started():
    async def scenario(process, link):
        link.lose()
        for message in (link.send(1, [BYTES]), link.receive(7, [memoryview(bytearray(SIZE))])):
            with pytest.raises(TransferError, match="was lost"):
                await message
        assert (process.started, process.told) == ([], [frames.Drop(7)])
        assert process.staging.take(SIZE).result() == Area(0, SIZE)

    run(scenario)
