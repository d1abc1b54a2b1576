import asyncio

import pytest

from router.http import sender
from router.http.sender import Sender

pytestmark = pytest.mark.anyio


class Connection:
    """A connection that takes everything until it is full, and more when there is room."""

    def __init__(self):
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.written, self.heads, self.num_broken, self.error, self.is_held = [], [], 0, None, False
        self.sender = Sender(self, self.on_broken)

    @property
    def is_full(self):
        return not self.has_room.is_set()

    async def room(self):
        await self.has_room.wait()

    def start(self, status, headers):
        self.heads.append((status, headers))

    def write(self, data, *, more):
        if self.error:
            raise self.error
        self.written.append((data, more))

    def inserter(self, before, after):
        def insert(text):
            if self.is_held or self.is_full:
                return False
            self.written.append((before + text + after, True))
            return True

        return insert

    def hold(self, held):
        self.is_held = held

    def on_broken(self):
        self.num_broken += 1

    @property
    def body(self):
        return b"".join(data for data, _ in self.written)


class Source:
    """A source that records the calls to it."""

    def __init__(self):
        self.told = []

    def pause(self):
        self.told.append("pause")

    def resume(self):
        self.told.append("resume")

    def drop(self):
        self.told.append("drop")


async def test_a_whole_answer_is_one_write_even_if_the_client_is_behind():
    for is_behind in (False, True):
        connection = Connection()
        if is_behind:
            connection.has_room.clear()
        connection.sender.send(200, [(b"a", b"b")], b"body")
        assert connection.written == ([] if is_behind else [(b"body", False)])
        connection.has_room.set()
        await connection.sender.flush()
        await asyncio.sleep(0)
        assert (connection.heads, connection.written) == ([(200, [(b"a", b"b")])], [(b"body", False)])
        assert (connection.sender.started, connection.sender.ended, connection.is_held) == (True, True, False)


async def test_writes_at_once_while_there_is_room():
    connection = Connection()
    connection.sender.start(200, [], b"o")
    connection.sender.write(b"a")
    connection.sender.write(b"b", more=False)
    assert connection.heads == [(200, [])]
    assert connection.written == [(b"oa", True), (b"b", False)]
    sent = connection.sender
    assert (sent.started, sent.ended, sent.broken, connection.num_broken) == (True, True, False, 0)


async def test_head_and_opening_are_sent_alone_if_nothing_follows():
    connection = Connection()
    connection.sender.start(200, [], b"o")
    assert connection.written == []
    await asyncio.sleep(0)
    assert connection.written == [(b"o", True)]
    connection.sender.write(b"a")
    await asyncio.sleep(0)
    assert connection.written == [(b"o", True), (b"a", True)]


async def test_parts_that_wait_for_room_are_joined_in_order():
    connection = Connection()
    connection.has_room.clear()
    connection.sender.start(200, [], b"o,")
    for i in range(100):
        connection.sender.write(b"%d," % i)
    connection.sender.write(b"", more=False)
    await asyncio.sleep(0)
    assert connection.written == []
    connection.has_room.set()
    await connection.sender.flush()
    assert connection.written == [(b"o," + b"".join(b"%d," % i for i in range(100)), False)]


async def test_writes_at_once_again_after_a_backlog():
    connection = Connection()
    connection.has_room.clear()
    connection.sender.write(b"a")
    connection.sender.write(b"b")
    connection.has_room.set()
    await connection.sender.flush()
    connection.sender.write(b"c")
    assert connection.body == b"abc"


async def test_nothing_is_inserted_before_earlier_parts():
    connection = Connection()
    insert = connection.sender.inserter(b"<", b">")
    connection.sender.start(200, [], b"o")
    assert not insert(b"1")
    await asyncio.sleep(0)
    assert insert(b"2")
    connection.has_room.clear()
    assert not insert(b"3")
    connection.sender.write(b"a")
    connection.has_room.set()
    assert not insert(b"4")  # there is room, and `a` has not been written yet
    await connection.sender.flush()
    assert insert(b"5")
    assert connection.body == b"o<2>a<5>"


@pytest.mark.parametrize("limit", [("PAUSE_AT_PARTS", 10), ("PAUSE_AT_BYTES", 10)])
async def test_the_source_pauses_until_the_client_has_taken_all_of_it(monkeypatch, limit):
    monkeypatch.setattr(sender, *limit)
    connection, source = Connection(), Source()
    connection.sender.source = source
    connection.has_room.clear()
    for _ in range(11):
        assert source.told == []
        connection.sender.write(b"x")
    assert source.told == ["pause"]
    connection.has_room.set()
    await connection.sender.flush()
    assert source.told == ["pause", "resume"]
    assert connection.body == b"x" * 11


async def test_a_source_resumes_once_its_kept_parts_have_been_written(monkeypatch):
    monkeypatch.setattr(sender, "PAUSE_AT_PARTS", 2)
    connection, source = Connection(), Source()
    connection.sender.source = source
    write = connection.write

    def fills(data, *, more):
        write(data, more=more)
        connection.has_room.clear()

    connection.write = fills
    for number in range(1, 3):
        connection.has_room.clear()
        for _ in range(5):
            connection.sender.write(b"x")
        connection.has_room.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(connection.written) == number
        assert source.told == ["pause", "resume"] * (number - 1) + ["pause"]
        connection.has_room.set()
        await connection.sender.flush()
        assert source.told == ["pause", "resume"] * number
    connection.has_room.clear()
    connection.sender.write(b"y")
    connection.has_room.set()
    await connection.sender.flush()
    assert source.told == ["pause", "resume"] * 2  # that was not enough to pause for
    connection.has_room.clear()
    for number in range(5):
        connection.sender.write(b"z", more=number < 4)
    connection.has_room.set()
    await asyncio.wait_for(connection.sender.flush(), 5)  # nothing comes after the end, so nobody waits for room
    assert not connection.has_room.is_set()


async def test_a_slow_client_that_keeps_up_is_not_disconnected(monkeypatch):
    monkeypatch.setattr(sender, "MAX_BACKLOG_BYTES", 1000)
    connection = Connection()
    for _ in range(4):
        connection.has_room.clear()
        connection.sender.write(b"x" * 400)
        connection.has_room.set()
        await connection.sender.flush()
    assert (connection.num_broken, len(connection.body)) == (0, 1600)


async def test_a_full_backlog_disconnects_the_client(monkeypatch):
    monkeypatch.setattr(sender, "MAX_BACKLOG_BYTES", 1000)
    connection = Connection()
    connection.has_room.clear()
    insert = connection.sender.inserter(b"<", b">")
    for _ in range(2000):
        connection.sender.write(b"x")
        await asyncio.sleep(0)
    assert connection.num_broken == 1
    await asyncio.wait_for(connection.sender.flush(), 1)
    connection.has_room.set()
    connection.sender.write(b"y")
    assert not insert(b"z")
    assert connection.written == []


async def test_a_client_that_reads_nothing_for_too_long_is_disconnected(monkeypatch):
    monkeypatch.setattr(sender, "STALL_TIMEOUT_S", 0.05)
    connection = Connection()
    source = connection.sender.source = Source()
    connection.has_room.clear()
    connection.sender.write(b"x")
    await connection.sender.flush()
    assert (connection.num_broken, source.told) == (1, ["drop"])
    assert connection.is_held


@pytest.mark.parametrize("full", [False, True])
async def test_a_failed_write_disconnects_the_client(full, caplog):
    connection = Connection()
    connection.error = RuntimeError("broken pipe")
    if full:
        connection.has_room.clear()
    connection.sender.write(b"x")
    connection.has_room.set()
    await connection.sender.flush()
    assert connection.num_broken == 1
    assert "cannot send" in caplog.text
