"""Which transports a node has."""

import asyncio

import pytest

from baton.errors import ConfigError, TransferError
from kv_transfer import choose, listeners
from kv_transfer.choose import Transports
from kv_transfer.faults import Faults
from kv_transfer.shm import process_memory
from kv_transfer.shm.transport import host_id


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
