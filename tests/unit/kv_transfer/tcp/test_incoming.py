"""The receiving end of a TCP connection; the test acts as the sender."""

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import xxhash

from kv_transfer.tcp import incoming
from kv_transfer.tcp import transport as tcp
from kv_transfer.tcp.outgoing import HEADER, MAGIC
from kv_transfer.transport import Peer, Slot
from tests.waiting import until

SECRET = b"x" * 32
PEER = Peer("p0", 1)
BYTES = bytes(range(256)) * 4096  # 1 MiB, of several pieces


class Inbox:
    """Expects messages of tag 1 from PEER."""

    def __init__(self):
        self.memory, self.ends = bytearray(len(BYTES)), []

    def admit(self, secret):
        return PEER if secret == SECRET else None

    def claim(self, tag, num_bytes, peer):
        assert peer == PEER
        half = num_bytes // 2
        views = [memoryview(self.memory)[:half], memoryview(self.memory)[half:num_bytes]]
        return Slot(PEER, views) if tag == 1 else None

    def arrived(self, tag, digest):
        self.ends.append(("arrived", tag, digest))

    def lost(self, tag):
        self.ends.append(("lost", tag))

    def disconnected(self, peer):
        self.ends.append(("disconnected", peer))


@asynccontextmanager
async def listening():
    inbox = Inbox()
    listener = await tcp.TcpTransport().listen("127.0.0.1", inbox)
    async with asyncio.timeout(10):
        yield listener, inbox
    await listener.close()


async def dialled(listener, secret=SECRET):
    """Connect and send the secret; return the socket, and the answer: b"" if the listener closed the connection."""
    loop, sock = asyncio.get_running_loop(), socket.socket()
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", listener.port))
    await loop.sock_sendall(sock, secret)
    return sock, await end_of(sock)


async def end_of(sock):
    try:
        return await asyncio.get_running_loop().sock_recv(sock, 100)
    except ConnectionResetError:
        return b""


def test_messages_arrive_or_are_dropped_with_heartbeats_between_them():
    async def main():
        async with listening() as (listener, inbox):
            sock, answer = await dialled(listener)
            assert answer == b"\x01"
            beat, size = HEADER.pack(MAGIC, 0, 0), len(BYTES)
            frames = [beat, HEADER.pack(MAGIC, size, 2), BYTES, beat]
            for _ in range(2):
                frames += [HEADER.pack(MAGIC, size, 1), BYTES]
            await asyncio.get_running_loop().sock_sendall(sock, b"".join(frames))
            await until(lambda: len(inbox.ends) >= 2)
            assert inbox.ends == [("arrived", 1, xxhash.xxh3_64(BYTES).intdigest())] * 2
            assert inbox.memory == BYTES
            sock.close()
            await until(lambda: not listener._connections)
            assert inbox.ends[2:] == [("disconnected", PEER)]

    asyncio.run(main())


@pytest.mark.parametrize("header", [HEADER.pack(b"HTTP", 5, 1), HEADER.pack(MAGIC, 2**30 + 1, 1)])
def test_garbage_ends_the_connection(header):
    async def main():
        async with listening() as (listener, inbox):
            sock, _ = await dialled(listener)
            await asyncio.get_running_loop().sock_sendall(sock, header)
            assert await end_of(sock) == b""
            assert inbox.ends == [("disconnected", PEER)]
            sock.close()

    asyncio.run(main())


@pytest.mark.parametrize("by", ["its end", "a reset", "disconnect", "a newer connection", "close"])
def test_a_message_that_is_cut_off_is_lost_once(by):
    async def main():
        loop = asyncio.get_running_loop()
        async with listening() as (listener, inbox):
            sock, _ = await dialled(listener)
            (connection,) = listener._connections.values()
            assert connection._stall._timer is not None
            connection._stall.close()  # so that it does not end the connection
            closed, connection._stall = [], SimpleNamespace(moved=lambda: None, close=lambda: closed.append("stall"))
            await loop.sock_sendall(sock, HEADER.pack(MAGIC, len(BYTES), 1) + BYTES[:-1])
            await until(lambda: connection._tag is not None)
            if by == "a reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if by in ("its end", "a reset"):
                sock.close()
            elif by == "a newer connection":
                newer, _ = await dialled(listener)
            else:
                await (listener.disconnect(PEER) if by == "disconnect" else listener.close())
            await until(lambda: connection._closed)
            connection.close()
            assert inbox.ends == [("lost", 1), ("disconnected", PEER)]
            assert closed == ["stall"]
            assert (PEER in listener._connections) == (by == "a newer connection")
            if by == "a newer connection":
                newer.close()
            sock.close()

    asyncio.run(main())


def test_a_wrong_secret_closes_a_connection_at_once_and_none_after_a_timeout(monkeypatch):
    async def main():
        async with listening() as (listener, _):
            monkeypatch.setattr(incoming, "CONNECT_TIMEOUT_S", 100.0)
            stranger, answer = await dialled(listener, b"y" * 32)
            assert answer == b""
            monkeypatch.setattr(incoming, "CONNECT_TIMEOUT_S", 0.1)
            peer, _ = await dialled(listener)
            mute, answer = await dialled(listener, b"")
            assert answer == b""
            assert (list(listener._connections), listener._unadmitted) == ([PEER], set())
            for sock in (stranger, peer, mute):
                sock.close()

    asyncio.run(main())


def test_connections_without_a_secret_are_limited(monkeypatch):
    monkeypatch.setattr(tcp, "_MAX_UNADMITTED", 1)
    monkeypatch.setattr(incoming, "CONNECT_TIMEOUT_S", 100.0)

    async def main():
        async with listening() as (listener, inbox):
            peer, _ = await dialled(listener)
            mute = socket.create_connection(("127.0.0.1", listener.port))
            await until(lambda: listener._unadmitted)
            refused, answer = await dialled(listener)
            assert (answer, inbox.ends) == (b"", [])
            await listener.close()
            mute.setblocking(False)
            assert await end_of(mute) == b""
            with pytest.raises(ConnectionRefusedError):
                await dialled(listener)
            for sock in (peer, mute, refused):
                sock.close()

    asyncio.run(main())
