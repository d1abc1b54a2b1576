"""Transport shm, whose receiver does the copying: what its copies may do, and when they count."""

import asyncio
import errno
import threading

import pytest
from kv_nodes import NUM_BLOCKS, all_ready, arrivals, commit, new_pool, pair, run

from baton.errors import TransferError
from kv_transfer.shm import process_memory, transport
from tests.waiting import until


class Brake:
    """Stops every copy after its first piece, until released."""

    def __init__(self, monkeypatch) -> None:
        self.held = threading.Semaphore(0)
        self._go = threading.Event()
        self._read = process_memory.read
        self._probed = False
        monkeypatch.setattr(process_memory, "read", self._slowly)

    def release(self) -> None:
        self._go.set()

    async def holds(self) -> None:
        """Wait until a copy has reached this point."""
        async with asyncio.timeout(10):
            while not self.held.acquire(blocking=False):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def _slowly(self, pid, source, target):
        for parts in self._read(pid, source, target):
            if self._probed:
                self.held.release()
                self._go.wait(10)
            yield parts
        self._probed = True


@pytest.fixture
def brake(monkeypatch) -> Brake:
    return Brake(monkeypatch)


def test_a_cancel_waits_for_the_copy_and_nothing_is_written_after_it(brake):
    async def main():
        source, ids = new_pool(1), list(range(NUM_BLOCKS))
        async with pair("shm") as p:
            incoming = p.grant(ids)
            outgoing = p.sender(source).open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            await brake.holds()
            cancel = asyncio.create_task(incoming.cancel())
            async with asyncio.timeout(10):  # messages under way are given a moment; then the connection is closed
                await until(lambda: outgoing.error is not None)
            assert not cancel.done()
            brake.release()
            async with asyncio.timeout(10):
                await cancel
            p.fill(ids, 9)
            with pytest.raises(TransferError):
                await commit(outgoing)
            await outgoing.abort()
            assert p.untouched(ids, 9)

    run(main())


def test_what_was_copied_after_the_sender_closed_does_not_count(brake):
    """The sender has taken its memory back, so what was read may be other data."""

    async def main():
        source = new_pool(1)
        async with pair("shm") as p:
            sender, incoming = p.sender(source), p.grant([1])
            outgoing = sender.open(incoming.grant, [2])
            all_ready(outgoing, 1)
            await brake.holds()
            async with asyncio.timeout(10):
                await outgoing.abort()  # closes the connection, as the receiver answers too late
            source.view(0, 2, 1)[:] = bytes(source.view(0, 2, 1).nbytes)
            brake.release()
            with pytest.raises(TransferError, match="lost"):
                await incoming.committed()
            assert not incoming._digests
            await incoming.cancel()

    run(main())


def test_a_sender_has_a_bounded_number_of_copies(brake):
    """However many messages it announces, and all of them arrive in the end."""

    async def main():
        source, ids = new_pool(1), list(range(NUM_BLOCKS))
        async with pair("shm", max_message_bytes=1) as p:
            incoming = p.grant(ids)
            outgoing = p.sender(source).open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            await arrivals(incoming, 64)
            await brake.holds()
            assert len(incoming._writing) == 64
            brake.release()
            await commit(outgoing)
            assert p.filled(ids, source, ids)

    run(main())


def test_a_sender_without_descriptors_left_says_so(monkeypatch):
    """The request gets an error and is served elsewhere; the next one finds a descriptor again."""

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    async def main():
        async with pair("shm") as p:
            sender = p.sender(new_pool(1))
            with monkeypatch.context() as patch:
                patch.setattr(transport.socket, "socket", refuse)
                outgoing = sender.open(p.grant([1]).grant, [2])
                all_ready(outgoing, 1)
                with pytest.raises(TransferError, match="Too many open files"):
                    await commit(outgoing)
            sender._unreachable.clear()
            outgoing = sender.open(p.grant([1]).grant, [2])
            all_ready(outgoing, 1)
            await commit(outgoing)

    run(main())
