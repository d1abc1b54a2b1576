"""The sending end of a UCX connection, in whose process the test decides what happens."""

import asyncio
import gc

import pytest

from baton.errors import TransferError
from kv_transfer import stall
from kv_transfer.staging import Staging
from kv_transfer.ucx import connection as ucx_connection
from kv_transfer.ucx.connection import UcxConnection
from kv_transfer.ucx_child import frames
from tests.waiting import until

SIZE = 64 * 1024
BYTES = memoryview(bytes(SIZE))


class Process:
    """A process in which UCX ends a message when the test says so."""

    def __init__(self):
        self.staging = Staging(SIZE)
        self.started, self.told, self.closed = [], [], []
        self.put, self.close_link = self.told.append, self.closed.append

    def start_send(self, link, tag, area, on_end):
        self.started.append(on_end)


def run(scenario):
    async def main():
        process, errors, losses = Process(), [], []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        connection = UcxConnection(process, 3)
        opening = asyncio.create_task(connection.open("host", 7, b"s", lambda: losses.append(1)))
        await asyncio.sleep(0)
        assert process.told == [frames.Connect(3, "host", 7, b"s")]
        process.told.clear()
        async with asyncio.timeout(10):
            await scenario(connection, process, opening, losses)
            await connection.close()
        process.staging.close()
        del connection, opening
        gc.collect()
        await asyncio.sleep(0)
        assert errors == []

    asyncio.run(main())


def test_heartbeats_are_sent_from_the_welcome_to_the_end(monkeypatch):
    monkeypatch.setattr(ucx_connection, "HEARTBEAT_S", 0.01)

    async def scenario(connection, process, opening, losses):
        await asyncio.sleep(0.05)
        assert process.told == []
        for _ in range(2):
            connection.connected()
        await opening
        await until(lambda: len(process.told) >= 3)
        for _ in range(2):
            connection.lose()
        num_beats = len(process.told)
        await asyncio.sleep(0.05)
        assert process.told == [frames.Beat(3)] * num_beats
        assert (process.closed, losses) == ([3], [1])

    run(scenario)


def test_a_connection_that_is_refused_says_why():
    async def scenario(connection, process, opening, losses):
        connection.lose("no such host")
        with pytest.raises(TransferError, match="no such host"):
            await opening
        assert losses == []

    run(scenario)


def test_a_connection_that_is_given_up_while_it_opens_is_closed_without_an_error():
    async def scenario(connection, process, opening, losses):
        opening.cancel()
        await asyncio.wait([opening])
        await connection.close()
        assert process.closed == [3]

    run(scenario)


def test_a_message_in_which_nothing_moves_ends_the_connection_and_idleness_does_not(monkeypatch):
    monkeypatch.setattr(stall, "TICK_S", 0.01)

    async def scenario(connection, process, opening, losses):
        connection.connected()
        await opening
        sending = asyncio.create_task(connection.send(1, [BYTES]))
        await asyncio.sleep(0)
        process.started.pop()(None)
        await sending
        await asyncio.sleep(2 * stall.MOST_TICKS * stall.TICK_S)
        assert losses == []
        with pytest.raises(TransferError, match="was lost"):
            await connection.send(2, [BYTES])
        assert (process.closed, losses, connection._stall._timer) == ([3], [1], None)
        with pytest.raises(TransferError, match="is closed"):
            await connection.send(3, [BYTES])

    run(scenario)


def test_a_close_waits_until_no_message_is_read_any_more():
    async def scenario(connection, process, opening, losses):
        connection.connected()
        await opening
        copying = asyncio.get_running_loop().create_future()
        process.staging.fill = lambda *_: copying
        sending = asyncio.create_task(connection.send(1, [BYTES]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(connection.close())
        await asyncio.sleep(0.01)
        assert (closing.done(), losses, connection._stall._timer) == (False, [1], None)
        copying.set_result(1)
        await closing
        with pytest.raises(TransferError, match="was lost"):
            await sending

    run(scenario)
