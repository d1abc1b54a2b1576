"""The sending end of a shared-memory connection; the test acts as the receiver."""

import asyncio
import socket

import pytest

from baton.errors import TransferError
from kv_transfer import socket_connection, stall
from kv_transfer.shm.frames import HEARTBEAT, Frame, ack
from kv_transfer.shm.outgoing import ShmConnection

MESSAGE = [memoryview(b"kv")]


def run(scenario):
    """`scenario(connection, its, closed)`: the receiver's socket, and a list that grows when the connection closes."""

    async def main():
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        closed, errors = [], []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        for sock in (mine, its):
            sock.setblocking(False)
        connection = ShmConnection(mine, lambda: closed.append(1))
        async with asyncio.timeout(10):
            await scenario(connection, its, closed)
        await connection.close()
        its.close()
        assert (closed, errors) == ([1], [])

    asyncio.run(main())


async def announced(connection, its):
    """Send a message. Returns the task, and the frame that the receiver got."""
    sending = asyncio.create_task(connection.send(7, MESSAGE))
    return sending, Frame.unpack(await asyncio.get_running_loop().sock_recv(its, 1000))


def test_a_message_is_sent_once_it_is_acknowledged_and_idleness_is_no_stall(monkeypatch):
    monkeypatch.setattr(stall, "TICK_S", 0.001)

    async def scenario(connection, its, closed):
        connection._stall.started()  # else the first tick might come before the acknowledgement
        sending, frame = await announced(connection, its)
        its.send(ack(frame.sequence))
        await sending
        connection._stall.finished()
        await asyncio.sleep(20 * stall.MOST_TICKS * stall.TICK_S)
        assert closed == []

    run(scenario)


def test_a_receiver_that_fetches_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(stall, "TICK_S", 0.01)

    async def scenario(connection, its, closed):
        with pytest.raises(TransferError, match="fetches no more"):
            await connection.send(7, MESSAGE)
        assert closed == [1]
        with pytest.raises(TransferError, match="is closed"):
            await connection.send(8, MESSAGE)

    run(scenario)


@pytest.mark.parametrize("answer", [ack(99), b"short", None])
def test_a_malformed_acknowledgement_or_the_end_fails_every_message(answer):
    async def scenario(connection, its, closed):
        sends = [(await announced(connection, its))[0] for _ in range(2)]
        its.send(answer) if answer else its.close()
        for sending in sends:
            with pytest.raises(TransferError, match="closed the connection"):
                await sending
        assert closed == [1]

    run(scenario)


def test_the_acknowledgement_of_a_send_that_was_cancelled_is_no_error():
    async def scenario(connection, its, closed):
        (given_up, first), (sending, second) = [await announced(connection, its) for _ in range(2)]
        given_up.cancel()
        await asyncio.wait([given_up])
        its.send(ack(first.sequence))
        its.send(ack(second.sequence))
        await sending

    run(scenario)


def test_heartbeats_fill_silence_only(monkeypatch):
    monkeypatch.setattr(socket_connection, "HEARTBEAT_S", 0.01)

    async def scenario(connection, its, closed):
        loop = asyncio.get_running_loop()
        assert [await loop.sock_recv(its, 100) for _ in range(3)] == [HEARTBEAT] * 3
        sends = []
        while not connection._unsent:
            sends.append(asyncio.create_task(connection.send(7, MESSAGE)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert HEARTBEAT not in connection._unsent
        await connection.close()
        await asyncio.wait(sends)
        assert all(isinstance(sending.exception(), TransferError) for sending in sends)

    run(scenario)
