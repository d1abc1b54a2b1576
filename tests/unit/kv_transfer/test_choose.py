"""Which transports a node has, and which of them a pair of nodes picks."""

import asyncio
import errno
import os

import pytest

from baton.errors import ConfigError, LayoutMismatch, TransferError
from kv_transfer import choose, listeners
from kv_transfer.choose import Transports
from kv_transfer.faults import Faults
from kv_transfer.listeners import Listeners
from kv_transfer.shm import process_memory
from kv_transfer.shm.transport import ShmTransport, host_id
from kv_transfer.transport import RETRY_S


@pytest.fixture
def without_ucxx(monkeypatch, tmp_path):
    """Make ucxx fail to load in child processes, which are the ones that load it."""
    (tmp_path / "ucxx.py").write_text("raise ImportError('libucp.so.0: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(choose, "why_unavailable", choose.why_unavailable.__wrapped__)


def test_auto_tries_the_best_first_and_a_name_is_that_alone():
    assert choose.choose("auto") == ("shm", "ucx", "tcp")
    assert [choose.choose(name) for name in ("shm", "ucx", "tcp")] == [("shm",), ("ucx",), ("tcp",)]


def test_naming_ucx_without_having_it_is_an_error(without_ucxx):
    with pytest.raises(ConfigError, match=r"libucp\.so\.0"):
        choose.choose("ucx")
    assert choose.choose("auto") == ("shm", "ucx", "tcp")


def test_a_system_that_cannot_read_other_processes_has_no_shm(monkeypatch):
    monkeypatch.setattr("kv_transfer.shm.transport.why_unavailable", lambda: "this system has no process_vm_readv")
    with pytest.raises(TransferError, match="process_vm_readv"):
        choose.make("shm", "127.0.0.1")


def test_unknown_transports_are_refused():
    with pytest.raises(ConfigError, match="pigeon"):
        choose.make("pigeon", "127.0.0.1")


def choose_door(wanted: str, offered: list[str], host: str) -> str:
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
    assert choose_door("auto", ["shm", "ucx", "tcp"], here) == "shm"
    assert choose_door("auto", ["tcp"], here) == "tcp"
    assert choose_door("tcp", ["shm", "ucx", "tcp"], here) == "tcp"
    assert choose_door("auto", ["shm", "tcp"], "another kernel") == "tcp"


def test_an_unavailable_transport_is_skipped_with_a_warning(without_ucxx, caplog):
    assert choose_door("auto", ["ucx", "tcp"], host_id()) == "tcp"
    assert "do not travel over ucx" in caplog.text
    assert "libucp.so.0" in caplog.text


def test_a_transport_that_could_not_be_opened_is_retried_later(monkeypatch):
    tried, listen = [], ShmTransport.listen

    async def in_want(self, host, inbox):
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

    monkeypatch.setattr(ShmTransport, "listen", in_want)
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


def test_a_transport_that_cannot_be_opened_at_present_is_in_common_all_the_same(monkeypatch):
    async def in_want(self, host, inbox):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        listeners_ = Listeners("auto", "127.0.0.1", inbox_of=lambda transport: None)
        for _ in range(2):  # the second one within the pause
            with pytest.raises(TransferError, match="cannot open transport shm at present") as error:
                await listeners_.choose(["shm"], host_id())
            assert not isinstance(error.value, LayoutMismatch)
        await listeners_.close()

    monkeypatch.setattr(ShmTransport, "listen", in_want)
    asyncio.run(main())


def test_no_common_transport_and_no_common_host_are_errors():
    with pytest.raises(LayoutMismatch, match="no transport in common"):
        choose_door("tcp", ["shm"], host_id())
    with pytest.raises(LayoutMismatch, match="no transport in common"):
        choose_door("tcp", ["shm"], "another kernel")
    with pytest.raises(LayoutMismatch, match="different hosts"):
        choose_door("auto", ["shm"], "another kernel")


def test_transports_are_made_when_they_are_needed():
    """A fleet on one host never loads UCX."""

    async def main():
        transports = Transports("auto", "127.0.0.1")
        assert not transports._made
        assert transports.get("tcp") is transports.get("tcp")
        assert list(transports._made) == ["tcp"]
        await transports.close()

    asyncio.run(main())
    assert listeners.host_id() == host_id()
    assert not process_memory.why_unavailable()


def test_faults_happen_as_often_as_they_are_armed():
    faults = Faults("corrupt_message:2,crash_mid_transfer")
    assert [faults.fires("corrupt_message") for _ in range(3)] == [True, True, False]
    assert faults.fires("crash_mid_transfer")
    assert not Faults().fires("corrupt_message")
    with pytest.raises(ValueError, match="no fault is named"):
        Faults("typo")
