"""Which transport a pair of nodes ends up with, and what is said when it is not the best one."""

from contextlib import suppress

import pytest
from kv_nodes import Pair, all_ready, commit, new_pool, run

from baton.errors import LayoutMismatch, TransferError
from kv_transfer import sender
from kv_transfer.metrics import BYTES, FALLBACKS
from kv_transfer.sender import KVSender
from kv_transfer.shm import process_memory
from kv_transfer.shm.transport import ShmListener


def count(metric, transport: str) -> float:
    return metric.labels(transport)._value.get()


async def ship(p: Pair, wanted: str, without_shm: bool) -> str:
    """One block; the name of the transport that carried it."""
    source = new_pool(1)
    if wanted == "ucx" or without_shm:
        with suppress(TransferError):  # there is none
            await p.receiver.doors.open("ucx")  # whose start, on a busy machine, takes longer than a connect may
    p.senders.append(KVSender(source, "p0", 1, wanted, ""))
    outgoing = p.senders[-1].open(p.grant([1]).grant, [2])
    all_ready(outgoing, 1)
    stats = await commit(outgoing)
    assert p.filled([1], source, [2])
    return stats.transport


def ship_between(decode: str, prefill: str, *, without_shm: bool = False) -> str:
    found = []

    async def main():
        p = Pair(decode)
        await p.start()
        try:
            found.append(await ship(p, prefill, without_shm))
        finally:
            await p.stop()

    run(main())
    return found[0]


@pytest.fixture
def unreadable(monkeypatch):
    """As in a container that may not ptrace."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(process_memory, "read", refuse)


@pytest.mark.parametrize(
    ("decode", "prefill", "used"),
    [
        ("auto", "auto", "shm"),
        ("auto", "tcp", "tcp"),
        ("tcp", "auto", "tcp"),
        ("auto", "ucx", "ucx"),
        ("shm", "auto", "shm"),
    ],
)
def test_the_best_that_both_have(decode, prefill, used):
    if used == "ucx":
        pytest.importorskip("ucxx", reason="UCX comes in a wheel for Linux on x86_64 only")
    before = count(BYTES, used)
    assert ship_between(decode, prefill) == used
    assert count(BYTES, used) > before


def test_what_fails_between_two_nodes_is_told_and_the_next_one_taken(unreadable, caplog):
    before = count(FALLBACKS, "shm")
    assert ship_between("auto", "auto", without_shm=True) in ("ucx", "tcp")
    assert "do not travel over shm" in caplog.text
    assert "may not read the prefill node's memory (Operation not permitted)" in caplog.text
    assert count(FALLBACKS, "shm") == before + 1


def test_what_is_forced_and_fails_is_an_error(unreadable):
    with pytest.raises(TransferError, match="may not read the prefill node's memory"):
        ship_between("auto", "shm")


def test_another_host_is_no_failure_but_a_fact(monkeypatch, caplog):
    monkeypatch.setattr(sender, "host_id", lambda: "another kernel")
    before = count(FALLBACKS, "shm")
    assert ship_between("auto", "auto", without_shm=True) in ("ucx", "tcp")
    assert "shm" not in caplog.text
    assert count(FALLBACKS, "shm") == before
    with pytest.raises(LayoutMismatch, match="on decode node d0, shm on prefill node p0: they are on different hosts"):
        ship_between("auto", "shm")


def test_a_name_that_nobody_here_listens_on(monkeypatch, caplog):
    """The same kernel, but another network namespace."""

    async def elsewhere(self, host, inbox):
        door = ShmListener(inbox)
        door.host = "baton-kv-elsewhere"
        return door

    monkeypatch.setattr("kv_transfer.shm.transport.ShmTransport.listen", elsewhere)
    assert ship_between("auto", "auto", without_shm=True) in ("ucx", "tcp")
    assert "another network namespace" in caplog.text
