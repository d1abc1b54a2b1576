import asyncio

import pytest

from router import sender
from router.sender import Sender

pytestmark = pytest.mark.anyio


class Connection:
    """Takes messages until it is `full`; then `send` waits, as a server's does."""

    def __init__(self):
        self.room = asyncio.Event()
        self.room.set()
        self.messages, self.broken = [], 0
        self.sender = Sender(self.send, self.on_broken)

    async def send(self, message):
        await self.room.wait()
        await asyncio.sleep(0) if not self.room.is_set() else None
        self.messages.append(message)

    def on_broken(self):
        self.broken += 1

    @property
    def body(self):
        return b"".join(m.get("body", b"") for m in self.messages)


async def test_sends_at_once_where_there_is_room():
    connection = Connection()
    connection.sender.start(200, [])
    connection.sender.write(b"a")
    connection.sender.write(b"b", more=False)
    assert [m["type"] for m in connection.messages] == ["http.response.start", *["http.response.body"] * 2]
    assert [m.get("more_body") for m in connection.messages] == [None, True, False]
    assert (connection.sender.started, connection.sender.ended, connection.broken) == (True, True, 0)


async def test_keeps_order_where_there_is_none_and_merges_what_waited():
    connection = Connection()
    connection.room.clear()
    connection.sender.start(200, [])
    for i in range(100):
        connection.sender.write(b"%d," % i)
    connection.sender.write(b"", more=False)
    assert connection.messages == []
    connection.room.set()
    await connection.sender.flush()
    assert connection.body == b"".join(b"%d," % i for i in range(100))
    assert len(connection.messages) == 2
    assert connection.messages[-1]["more_body"] is False


async def test_goes_back_to_sending_at_once():
    connection = Connection()
    connection.room.clear()
    connection.sender.write(b"a")
    connection.sender.write(b"b")
    connection.room.set()
    await connection.sender.flush()
    connection.sender.write(b"c")
    assert connection.body == b"abc"


async def test_a_full_backlog_gives_the_client_up(monkeypatch):
    monkeypatch.setattr(sender, "MAX_BACKLOG_BYTES", 1000)
    connection = Connection()
    connection.room.clear()
    for _ in range(2000):
        connection.sender.write(b"x")
    assert connection.broken == 1
    await connection.sender.flush()
    connection.room.set()
    connection.sender.write(b"y")
    assert connection.messages == []


async def test_time_gives_the_client_up(monkeypatch):
    monkeypatch.setattr(sender, "STALL_TIMEOUT_S", 0.05)
    connection = Connection()
    connection.room.clear()
    connection.sender.write(b"x")
    await connection.sender.flush()
    assert connection.broken == 1


@pytest.mark.parametrize("full", [False, True])
async def test_a_send_that_fails_gives_the_client_up(full, caplog):
    connection = Connection()

    async def fail(message):
        if full:
            await asyncio.sleep(0)
        raise RuntimeError("broken pipe")

    connection.sender = Sender(fail, connection.on_broken)
    connection.sender.write(b"x")
    await connection.sender.flush()
    assert connection.broken == 1
