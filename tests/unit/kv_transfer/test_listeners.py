"""Which transport a decode node picks for a pair of nodes, and when it opens, retries and closes it."""

import asyncio
import errno
import gc
import os

import pytest

from baton.errors import LayoutMismatch, TransferError
from kv_transfer import listeners
from kv_transfer.listeners import Listeners
from kv_transfer.metrics import FALLBACKS
from kv_transfer.shm.transport import ShmListener, ShmTransport, host_id
from kv_transfer.tcp.transport import TcpTransport
from kv_transfer.transport import MAX_RETRY_S, RETRY_S


def chosen_transport(wanted: str, offered: list[str], host: str) -> str:
    async def main() -> str:
        listeners_ = Listeners(wanted, "127.0.0.1", inbox_of=lambda transport: None)
        try:
            return (await listeners_.choose(offered, host))[0]
        finally:
            await listeners_.close_listeners()
            await listeners_.close()

    return asyncio.run(main())


def test_a_pair_uses_the_first_common_transport_that_can_work():
    here = host_id()
    assert chosen_transport("auto", ["shm", "ucx", "tcp"], here) == "shm"
    assert chosen_transport("auto", ["tcp"], here) == "tcp"
    assert chosen_transport("tcp", ["shm", "ucx", "tcp"], here) == "tcp"
    assert chosen_transport("auto", ["shm", "tcp"], "another kernel") == "tcp"


def test_an_unavailable_transport_is_skipped_with_a_warning(monkeypatch, tmp_path, caplog):
    (tmp_path / "ucxx.py").write_text("raise ImportError('libucp.so.0: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the child process, which is the one that loads it
    assert chosen_transport("auto", ["ucx", "tcp"], host_id()) == "tcp"
    assert "do not travel over ucx" in caplog.text
    assert "libucp.so.0" in caplog.text


def test_a_transport_that_could_not_be_opened_is_retried_later(monkeypatch):
    tried, listen = [], ShmTransport.listen

    async def without_descriptors(self, host, inbox):
        tried.append(self)
        if len(tried) < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await listen(self, host, inbox)

    async def main() -> None:
        listeners_ = Listeners("auto", "127.0.0.1", inbox_of=lambda transport: None)
        chosen = [(await listeners_.choose(["shm", "tcp"], host_id()))[0] for _ in range(2)]
        for pause_s in (RETRY_S, 2 * RETRY_S):
            until_s, said_s = listeners_._put_off["shm"]
            assert said_s == pause_s
            listeners_._put_off["shm"] = until_s - pause_s, said_s
            chosen.append((await listeners_.choose(["shm", "tcp"], host_id()))[0])
        assert chosen == ["tcp", "tcp", "tcp", "shm"]
        assert len(set(tried)) == 3  # a dead one is of no use
        await listeners_.close_listeners()
        await listeners_.close()

    monkeypatch.setattr(ShmTransport, "listen", without_descriptors)
    asyncio.run(main())


def test_a_transport_that_is_slow_to_open_is_skipped_until_it_is_open(monkeypatch):
    begun, may_go_on, listen = [], asyncio.Event(), ShmTransport.listen

    async def slowly(self, host, inbox):
        begun.append(self)
        await may_go_on.wait()
        return await listen(self, host, inbox)

    async def main() -> None:
        listeners_ = Listeners("auto", "127.0.0.1", inbox_of=lambda transport: None)
        chosen = [(await listeners_.choose(["shm", "tcp"], host_id()))[0] for _ in range(2)]
        without_another = asyncio.create_task(listeners_.choose(["shm"], host_id()))
        await asyncio.sleep(0.05)
        may_go_on.set()
        assert (await without_another)[0] == "shm"
        chosen.append((await listeners_.choose(["shm", "tcp"], host_id()))[0])
        assert chosen == ["tcp", "tcp", "shm"]
        assert len(begun) == 1
        await listeners_.close_listeners()
        await listeners_.close()

    monkeypatch.setattr(ShmTransport, "listen", slowly)
    monkeypatch.setattr(listeners, "PATIENCE_S", 0.01)
    asyncio.run(main())


def test_a_stopping_node_does_not_wait_for_a_transport_that_is_opening(monkeypatch):
    async def never(self, host, inbox):
        await asyncio.Event().wait()

    async def main() -> None:
        listeners_ = Listeners("auto", "127.0.0.1", inbox_of=lambda transport: None)
        await listeners_.choose(["shm", "tcp"], host_id())
        async with asyncio.timeout(10):
            await listeners_.close_listeners()
            await listeners_.close()
        assert listeners_._opening["shm"].cancelled()

    monkeypatch.setattr(ShmTransport, "listen", never)
    monkeypatch.setattr(listeners, "PATIENCE_S", 0.01)
    asyncio.run(main())


def test_a_node_that_is_asked_while_it_stops_stops_all_the_same(monkeypatch):
    async def never(self, host, inbox):
        await asyncio.Event().wait()

    async def main() -> None:
        listeners_ = Listeners("auto", "127.0.0.1", inbox_of=lambda transport: None)
        opening = asyncio.create_task(listeners_.open("shm"))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(listeners_.close_listeners())
        await asyncio.sleep(0)  # it waits until the first one has ended
        with pytest.raises(TransferError, match="stopping"):
            await listeners_.open("tcp")
        await asyncio.wait([opening])
        await closing
        await listeners_.close()

    monkeypatch.setattr(ShmTransport, "listen", never)
    asyncio.run(main())


@pytest.mark.parametrize(("wanted", "opened"), [("tcp", ["tcp"]), ("auto", [])])
def test_a_single_transport_is_open_from_start_to_stop(wanted, opened):
    async def main() -> None:
        listeners_ = Listeners(wanted, "127.0.0.1", inbox_of=lambda transport: None)
        await listeners_.start()
        assert list(listeners_._open) == opened
        listener = await listeners_.open("tcp")
        _, writer = await asyncio.open_connection(listener.host, listener.port)
        writer.close()
        await listeners_.close_listeners()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(listener.host, listener.port)
        if wanted == "auto":
            with pytest.raises(TransferError, match="stopping"):
                await listeners_.open("shm")
        await listeners_.close()

    asyncio.run(main())


def test_a_transport_that_is_not_ready_is_skipped_for_now(monkeypatch):
    """As UCX is while its process starts again."""
    ready = asyncio.Event()
    monkeypatch.setattr(ShmListener, "ready", lambda _: ready.wait())
    monkeypatch.setattr(listeners, "PATIENCE_S", 0.01)

    async def main() -> None:
        listeners_, before = Listeners("auto", "127.0.0.1", inbox_of=lambda transport: None), fallbacks()
        assert (await listeners_.choose(["shm", "tcp"], host_id()))[0] == "tcp"
        assert fallbacks() == before + 1
        ready.set()
        assert (await listeners_.choose(["shm", "tcp"], host_id()))[0] == "shm"
        assert fallbacks() == before + 1
        await listeners_.close_listeners()
        await listeners_.close()

    asyncio.run(main())


def fallbacks() -> float:
    return FALLBACKS.labels("shm")._value.get()


def test_a_transport_that_fails_when_nobody_waits_for_it_any_more_is_no_error_of_the_node(monkeypatch):
    errors = []

    async def too_late(self, host, inbox):
        await asyncio.sleep(0.02)
        raise TransferError("no such device")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        listeners_ = Listeners("auto", "127.0.0.1", inbox_of=lambda transport: None)
        assert (await listeners_.choose(["shm", "tcp"], host_id()))[0] == "tcp"
        await asyncio.wait([listeners_._opening["shm"]])
        listeners_._opening.clear()
        gc.collect()
        await listeners_.close_listeners()
        await listeners_.close()

    monkeypatch.setattr(ShmTransport, "listen", too_late)
    monkeypatch.setattr(listeners, "PATIENCE_S", 0.01)
    asyncio.run(main())
    assert errors == []


def test_a_transport_that_cannot_be_opened_at_present_is_in_common_all_the_same(monkeypatch):
    async def without_descriptors(self, host, inbox):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        listeners_ = Listeners("auto", "127.0.0.1", inbox_of=lambda transport: None)
        for _ in range(2):  # the second one within the pause
            with pytest.raises(TransferError, match="cannot open transport shm at present") as error:
                await listeners_.choose(["shm"], host_id())
            assert not isinstance(error.value, LayoutMismatch)
        listeners_._put_off["shm"] = 0.0, MAX_RETRY_S
        with pytest.raises(TransferError):
            await listeners_.choose(["shm"], host_id())
        assert listeners_._put_off["shm"][1] == MAX_RETRY_S
        await listeners_.choose(["tcp"], host_id())
        await listeners_.close_listeners()
        await listeners_.close()
        assert closed == ["tcp"]

    async def close(self):
        closed.append(self.name)

    closed: list[str] = []
    monkeypatch.setattr(TcpTransport, "close", close)
    monkeypatch.setattr(ShmTransport, "listen", without_descriptors)
    asyncio.run(main())


def test_no_common_transport_and_no_common_host_are_errors():
    with pytest.raises(LayoutMismatch, match="no transport in common"):
        chosen_transport("tcp", ["shm"], host_id())
    with pytest.raises(LayoutMismatch, match="no transport in common"):
        chosen_transport("tcp", ["shm"], "another kernel")
    with pytest.raises(LayoutMismatch, match="different hosts"):
        chosen_transport("auto", ["shm"], "another kernel")
