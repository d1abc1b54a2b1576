import asyncio
import os
import socket
import struct

import pytest

from baton.errors import TransferError
from kv_transfer.tcp import transport as tcp
from kv_transfer.tcp.transport import TcpTransport
from kv_transfer.transport import Peer
from tests.waiting import until


def test_an_address_of_another_host_leaves_no_socket_behind():
    async def main():
        transport = TcpTransport()
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match="assign") as error:
            await transport.listen("192.0.2.1", None)
        assert os.listdir("/proc/self/fd") == before
        assert error.traceback  # which would hold the socket

    asyncio.run(main())


def test_a_refused_connection_leaves_no_socket_behind():
    class Strict:
        def admit(self, secret):
            return None

    async def main():
        transport = TcpTransport()
        listener = await transport.listen("127.0.0.1", Strict())
        before = os.listdir("/proc/self/fd")
        with pytest.raises(TransferError, match=r"refused|reset") as error:
            await transport.connect("127.0.0.1", listener.port, b"x" * 32, lambda: None)
        await until(lambda: not listener._unadmitted)
        assert os.listdir("/proc/self/fd") == before
        assert error.traceback  # which would hold the socket
        await listener.close()

    asyncio.run(main())


@pytest.mark.parametrize(("answer", "reason"), [(None, "timed out"), (b"\0", "the secret was refused")])
def test_a_connect_without_the_expected_answer_fails(monkeypatch, answer, reason):
    monkeypatch.setattr(tcp, "CONNECT_TIMEOUT_S", 0.1 if answer is None else 10.0)

    async def main():
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as its:
            its.setblocking(False)
            connecting = asyncio.create_task(
                TcpTransport().connect("127.0.0.1", its.getsockname()[1], b"x" * 32, lambda: None)
            )
            sock, _ = await loop.sock_accept(its)
            with sock:
                if answer:
                    await loop.sock_sendall(sock, answer)
                async with asyncio.timeout(5):
                    with pytest.raises(TransferError, match=reason):
                        await connecting

    asyncio.run(main())


def test_both_ends_send_at_once_give_up_the_unacknowledged_and_reset_on_close():
    class Open:
        def admit(self, secret):
            return Peer("p0", 1)

        def disconnected(self, peer):
            pass

    async def main():
        listener = await TcpTransport().listen("127.0.0.1", Open())
        connection = await TcpTransport().connect("127.0.0.1", listener.port, b"x" * 32, lambda: None)
        (incoming,) = listener._connections.values()
        for sock in (connection._sock, incoming._sock):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
            linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            assert struct.unpack("ii", linger) == (1, 0)
        await connection.close()
        await listener.close()

    asyncio.run(main())
