"""A UCX process that has ended, or cannot be started, is started again, and meanwhile costs only transfers."""

import asyncio
import errno
import gc
import os
import signal
import threading
from typing import Any

import psutil
import pytest
from kv_nodes import all_ready, commit, new_pool, pair, run, ship
from ucx_nodes import NOTICED_S, restarted, ucx_of

from baton.errors import TransferError
from kv_transfer.ucx import child as ucx_child
from kv_transfer.ucx import transport as ucx_transport
from kv_transfer.ucx.transport import UcxTransport
from tests.waiting import until


def test_a_process_that_is_killed_before_it_has_ever_started_is_started_again():
    async def main():
        transport = UcxTransport("127.0.0.1")
        os.kill(transport.pid, signal.SIGKILL)
        assert (await transport.listen("127.0.0.1", None)).port
        await transport.close()
        assert not psutil.pid_exists(transport.pid)

    run(main())


def test_a_second_process_that_dies_before_one_has_ever_started_is_the_last():
    async def main():
        transport = UcxTransport("127.0.0.1")
        for _ in range(2):
            victim = transport.pid
            os.kill(victim, signal.SIGKILL)
            while transport.pid == victim and not (transport._restarting and transport._restarting.done()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        with pytest.raises(TransferError, match="no UCX process"):
            await transport.ready()
        assert transport.pid == victim
        await transport.close()

    run(main())


def test_a_process_that_has_lived_long_is_started_again_without_a_pause(monkeypatch: Any):
    monkeypatch.setattr(ucx_transport, "_SHORT_LIFE_S", 0.0)

    async def main():
        transport = UcxTransport("127.0.0.1")
        await transport.ready()
        victim = transport.pid
        os.kill(victim, signal.SIGKILL)
        await restarted(transport, victim)
        assert transport._num_short_lives == 0
        await transport.close()

    run(main())


def test_a_process_that_dies_again_and_again_is_started_again():
    async def main():
        async with pair("ucx") as p:
            transport = ucx_of(p.receiver)
            for _ in range(2):
                victim = transport.pid
                os.kill(victim, signal.SIGKILL)
                await restarted(transport, victim)
            await ship(p, p.sender(new_pool(1)), [1], [2])
            assert p.filled([1], new_pool(1), [2])

    run(main())


def test_a_process_that_cannot_be_started_for_a_while_only_costs_transfers(monkeypatch: Any):
    """For example without free descriptors: transfers that need it fail, and it is tried again."""
    refusals, start = [], ucx_child.Popen

    def refuse(*args: Any, **options: Any) -> Any:
        if len(refusals) == 2:
            return start(*args, **options)
        refusals.append(args)
        raise OSError(errno.EMFILE, "Too many open files")

    async def main():
        async with pair("ucx") as p:
            transport = ucx_of(p.receiver)
            victim, used = transport.pid, psutil.Process().num_fds()
            monkeypatch.setattr(ucx_child, "Popen", refuse)
            os.kill(victim, signal.SIGKILL)
            await restarted(transport, victim)
            assert len(refusals) == 2
            gc.collect()  # each region of memory has a descriptor as long as it is mapped
            assert psutil.Process().num_fds() <= used
            await ship(p, p.sender(new_pool(1)), [1], [2])

    run(main())


def test_a_process_that_dies_at_the_thread_limit_is_started_again(monkeypatch: Any):
    """Once threads can be started again, which its staging memory needs."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main():
        async with pair("ucx") as p, asyncio.timeout(30):
            transport = ucx_of(p.receiver)
            victim = transport.pid
            with monkeypatch.context() as scarce:
                scarce.setattr(threading.Thread, "start", refuse)
                os.kill(victim, signal.SIGKILL)
                await until(lambda: transport._restarting)
                await asyncio.wait([transport._restarting], timeout=0.3)
            await restarted(transport, victim)

    run(main())


def test_a_transport_that_is_closed_starts_no_process_any_more(monkeypatch: Any):
    refusals = []

    def refuse(*args: Any, **options: Any) -> Any:
        refusals.append(args)
        raise OSError(errno.EMFILE, "Too many open files")

    async def main():
        transport = UcxTransport("127.0.0.1")
        await transport.ready()
        assert transport._process.has_started
        monkeypatch.setattr(ucx_child, "Popen", refuse)
        os.kill(transport.pid, signal.SIGKILL)
        await until(lambda: refusals)
        await transport.close()
        assert transport._restarting.done()

    run(main())


def test_nobody_waits_for_a_process_that_cannot_be_started(monkeypatch: Any):
    """It is tried again after pauses that become longer."""
    refusals = []

    def refuse(*args: Any, **options: Any) -> Any:
        refusals.append(args)
        raise OSError(errno.EMFILE, "Too many open files")

    async def main():
        async with pair("ucx") as p:
            sender = p.sender(new_pool(1))
            await ship(p, sender, [1], [2])
            monkeypatch.setattr(ucx_child, "Popen", refuse)
            monkeypatch.setattr(ucx_transport, "_RESTART_S", 0.2)
            os.kill(ucx_of(sender).pid, signal.SIGKILL)
            for _ in range(2):
                outgoing = sender.open(p.grant([3]).grant, [4])
                all_ready(outgoing, 1)
                async with asyncio.timeout(NOTICED_S):
                    with pytest.raises(TransferError):
                        await commit(outgoing)
            with pytest.raises(TransferError):
                p.sender(new_pool(1), "p9")
            assert len(refusals) <= 5

    run(main())
