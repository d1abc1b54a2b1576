import asyncio
import os

import pytest

from kv_transfer.tcp.transport import TcpTransport


def test_an_address_of_another_host_leaves_no_socket_behind():
    async def main():
        transport = TcpTransport()
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match="assign") as error:
            await transport.listen("192.0.2.1", None)
        assert os.listdir("/proc/self/fd") == before
        assert error.traceback  # which would hold the socket

    asyncio.run(main())
