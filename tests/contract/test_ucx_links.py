"""UCX connections that a node closes: UCX releases them in time, and its process serves others."""

import asyncio
import socket

import pytest
from kv_nodes import new_pool, pair, run, ship

from baton.errors import TransferError
from kv_transfer.transport import Peer
from kv_transfer.ucx import transport as ucx_transport
from kv_transfer.ucx.transport import UcxTransport
from tests.waiting import until


def test_a_link_is_closed_once_and_its_process_is_not_killed_for_it():
    async def main():
        source = new_pool(1)
        async with pair("ucx") as p:
            sender = p.sender(source)
            await ship(p, sender, [1], [1])
            process = p.receiver.listeners._transports.get("ucx")._process
            await p.receiver.listeners.disconnect(Peer("p0", 1))
            ((link, timer),) = process._closing.items()
            process.close_link(link)
            assert process._closing == {link: timer}
            while process._closing:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert timer.cancelled()
            await ship(p, sender, [2], [2])
            assert p.filled([2], source, [2])
            assert not process.reason

    run(main())


def test_a_link_that_is_not_welcomed_in_time_is_closed(monkeypatch):
    monkeypatch.setattr(ucx_transport, "CONNECT_TIMEOUT_S", 0.2)

    async def main():
        transport = UcxTransport("127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as mute:
            with pytest.raises(TransferError, match="timed out"):
                await transport.connect("127.0.0.1", mute.getsockname()[1], b"x" * 32, lambda: None)
            await until(lambda: not transport._connections)
        assert not transport._process.reason
        await transport.close()

    run(main())
