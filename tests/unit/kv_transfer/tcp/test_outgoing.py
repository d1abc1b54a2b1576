"""The sending end of a TCP connection, towards a receiver that does not read."""

import asyncio
import socket

import pytest

from baton.errors import TransferError
from kv_transfer import socket_connection, stall
from kv_transfer.tcp.outgoing import HEADER, MAGIC, TcpConnection


def socket_pair():
    mine, its = socket.socketpair()
    mine.setblocking(False)
    its.setblocking(False)
    return mine, its


def test_all_sends_to_a_receiver_that_does_not_read_fail(monkeypatch):
    monkeypatch.setattr(stall, "TICK_S", 0.01)

    async def main():
        closed, (mine, its) = [], socket_pair()
        connection = TcpConnection(mine, lambda: closed.append(1))
        sends = [asyncio.create_task(connection.send(1, [memoryview(bytes(2**22))])) for _ in range(2)]
        async with asyncio.timeout(10):
            for send in sends:
                with pytest.raises(TransferError, match="takes no more bytes"):
                    await send
        with pytest.raises(TransferError, match="is closed"):
            await connection.send(1, [memoryview(b"more")])
        await connection.close()
        assert (closed, connection._stall._timer) == ([1], None)
        assert connection._heartbeat._timer.cancelled()
        its.close()

    asyncio.run(main())


def test_heartbeats_are_sent_only_while_idle_and_never_stall(monkeypatch):
    monkeypatch.setattr(socket_connection, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(stall, "TICK_S", 0.001)

    async def main():
        mine, its = socket_pair()
        connection = TcpConnection(mine, lambda: None)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            for _ in range(5):
                assert await loop.sock_recv(its, HEADER.size) == HEADER.pack(MAGIC, 0, 0)
            assert connection._stall._num_pending == 0
            monkeypatch.setattr(stall, "TICK_S", 10.0)
            sending = asyncio.create_task(connection.send(7, [memoryview(bytes(2**22))]))
            await asyncio.sleep(0.1)
            assert len(connection._queue) == 1
            its.close()
            with pytest.raises(TransferError):
                await sending
        await connection.close()

    asyncio.run(main())


def test_a_message_that_moves_slowly_is_no_stall(monkeypatch):
    monkeypatch.setattr(stall, "TICK_S", 0.02)

    async def main():
        mine, its = socket_pair()
        connection = TcpConnection(mine, lambda: None)
        sending = asyncio.create_task(connection.send(1, [memoryview(bytes(2**23))]))
        began_s, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
        while not sending.done():
            await loop.sock_recv(its, 2**18)
            await asyncio.sleep(0.02)
        await sending
        assert loop.time() - began_s > stall.MOST_TICKS * stall.TICK_S
        await connection.close()
        its.close()

    asyncio.run(main())


def test_a_socket_that_was_full_is_left_alone_afterwards():
    async def main():
        mine, its = socket_pair()
        connection, loop = TcpConnection(mine, lambda: None), asyncio.get_running_loop()
        sending = asyncio.create_task(connection.send(1, [memoryview(bytes(2**22))]))
        async with asyncio.timeout(10):
            while not sending.done():
                await loop.sock_recv(its, 2**18)
        await sending
        assert not loop.remove_writer(mine.fileno())
        await connection.close()
        its.close()

    asyncio.run(main())


def test_a_connection_that_breaks_while_the_socket_is_full_ends_in_order():
    async def main():
        errors, (mine, its) = [], socket_pair()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        connection = TcpConnection(mine, lambda: None)
        sending = asyncio.create_task(connection.send(1, [memoryview(bytes(2**22))]))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().remove_reader(mine.fileno())  # the writer notices
        its.close()
        async with asyncio.timeout(10):
            with pytest.raises(TransferError, match="broke: Broken pipe"):
                await sending
        await asyncio.sleep(0)
        assert (errors, connection._stall._timer) == ([], None)

    asyncio.run(main())


def test_the_end_of_an_idle_connection_is_noticed_without_a_heartbeat(monkeypatch):
    monkeypatch.setattr(socket_connection, "HEARTBEAT_S", 1000.0)

    async def main():
        closed, (mine, its) = asyncio.Event(), socket_pair()
        TcpConnection(mine, closed.set)
        its.close()
        async with asyncio.timeout(10):
            await closed.wait()

    asyncio.run(main())
