import asyncio
import os

import pytest

from baton.errors import TransferError
from kv_transfer.tcp.transport import TcpTransport
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
