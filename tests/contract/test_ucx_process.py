"""UCX dies, hangs or crashes in the middle of a transfer, on either side: the node keeps running, and retries work."""

import asyncio
import os
import signal
import time

import psutil
import pytest
from kv_nodes import NUM_BLOCKS, Child, all_ready, arrivals, commit, new_pool, pair, run, ship
from ucx_nodes import NOTICED_S, restarted, ucx_of

from baton.errors import TransferError
from kv_transfer.metrics import RESTARTS
from kv_transfer.staging import Area
from kv_transfer.transport import HEARTBEAT_S, Peer
from kv_transfer.ucx.process import UcxProcess
from kv_transfer.ucx.transport import UcxTransport
from kv_transfer.ucx_child import frame_socket, frames


def ucx_children(pid: int) -> list[psutil.Process]:
    return [c for c in psutil.Process(pid).children() if "kv_transfer.ucx_child" in c.cmdline()]


@pytest.mark.parametrize("side", ["receiver", "sender"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_an_end_in_the_middle_of_a_transfer(side: str, end: signal.Signals):
    async def main():
        source, ids = new_pool(1), list(range(NUM_BLOCKS))
        async with pair("ucx", max_message_bytes=200_000) as p:
            sender = p.sender(source)
            await ship(p, sender, [1], [1])
            transport = ucx_of(p.receiver if side == "receiver" else sender)
            before, victim = RESTARTS._value.get(), transport.pid
            incoming = p.grant(ids)
            outgoing = sender.open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            await arrivals(incoming, 1)
            os.kill(victim, end)
            async with asyncio.timeout(NOTICED_S):
                with pytest.raises(TransferError):
                    await commit(outgoing)
                await outgoing.abort()
                await incoming.cancel()
            p.fill(ids, 9)
            await restarted(transport, victim)
            await ship(p, sender, [5, 6], [1, 2])
            assert p.filled([5, 6], source, [1, 2])
            assert p.untouched([b for b in ids if b not in (5, 6)], 9)
            assert RESTARTS._value.get() == before + 1
            assert not psutil.pid_exists(victim)

    run(main())


@pytest.mark.parametrize("side", ["receiver", "sender"])
def test_an_end_that_is_read_together_with_the_last_reports(side: str):
    """UCX reports messages as ended, and dies, before the node reads that: the staging memory is gone already."""

    async def main():
        ids = list(range(NUM_BLOCKS))
        async with pair("ucx", max_message_bytes=200_000) as p:
            sender = p.sender(new_pool(1))
            await ship(p, sender, [1], [1])
            transport = ucx_of(p.receiver if side == "receiver" else sender)
            incoming = p.grant(ids)
            outgoing = sender.open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            process = transport._process
            while not process._messages or process._flushing:  # noqa: ASYNC110
                await asyncio.sleep(0)
            time.sleep(0.1)  # noqa: ASYNC251 - the node is busy, its UCX is not
            os.kill(transport.pid, signal.SIGKILL)
            time.sleep(0.1)  # noqa: ASYNC251
            async with asyncio.timeout(NOTICED_S):
                with pytest.raises(TransferError):
                    await commit(outgoing)
                await outgoing.abort()
                await incoming.cancel()

    run(main())


def test_a_connection_that_is_welcomed_and_lost_at_once_sends_no_heartbeats():
    """Both reports are read in one turn of the event loop, before the opener continues."""

    async def main():
        async with pair("ucx") as p:
            listener, mine = await p.receiver.listeners.open("ucx"), UcxTransport("127.0.0.1")
            await mine._alive()
            beats = process_beats(mine._process)
            secret = await p.receiver.expect(Peer("p0", 1))
            opening = asyncio.create_task(mine.connect("127.0.0.1", listener.port, secret, lambda: None))
            while not listener._by_link:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # the answer goes to UCX
            time.sleep(0.1)  # noqa: ASYNC251
            os.kill(mine.pid, signal.SIGKILL)
            time.sleep(0.1)  # noqa: ASYNC251
            with pytest.raises(TransferError):
                await opening
            await asyncio.sleep(2.5 * HEARTBEAT_S)
            assert beats == []
            await mine.close()

    run(main())


def process_beats(process: UcxProcess) -> list[frames.Beat]:
    """Record the heartbeats that the process is asked to send from now on, dead or alive."""
    beats: list[frames.Beat] = []
    put = process.put

    def noted(frame: frames.Frame) -> None:
        beats.extend([frame] if isinstance(frame, frames.Beat) else [])
        put(frame)

    process.put = noted  # type: ignore[method-assign]
    return beats


def test_the_end_of_one_process_is_not_the_end_of_its_peers():
    """The peers close their connections to it, and keep running for others."""

    async def main():
        async with pair("ucx") as p:
            sender = p.sender(new_pool(1))
            await ship(p, sender, [1], [2])
            victim, other = ucx_of(p.receiver), ucx_of(sender)
            pid, closing = other.pid, other._process._closing
            os.kill(victim.pid, signal.SIGKILL)
            async with asyncio.timeout(NOTICED_S):
                while sender._peers or closing:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert other.pid == pid

    run(main())


@pytest.mark.parametrize("side", ["receiver", "sender"])
def test_the_end_of_a_process_is_at_once_that_of_its_idle_connections(side: str):
    async def main():
        async with pair("ucx") as p:
            sender = p.sender(new_pool(1))
            await ship(p, sender, [1], [2])
            listener = await p.receiver.listeners.open("ucx")
            transport = ucx_of(p.receiver if side == "receiver" else sender)
            os.kill(transport.pid, signal.SIGKILL)
            while not transport._restarting:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert not (listener._by_peer if side == "receiver" else sender._peers)

    run(main())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_node(end: signal.Signals):
    async def main():
        node = Child("receive", "ucx")
        node.tell("1")
        await node.hear()
        (child,) = ucx_children(node.process.pid)
        child.send_signal(signal.SIGTERM)  # as everything of a service may get it: that is the node's business
        node.tell("1")
        await node.hear()
        assert child.is_running()
        node.process.send_signal(end)
        await asyncio.to_thread(node.process.wait, 10)
        await asyncio.to_thread(psutil.wait_procs, [child], 5)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        node.process.stdin.close()
        node.process.stdout.close()

    run(main())


def test_a_frozen_ucx_process_dies_when_it_is_continued():
    """It never executes what it would still have written after its node gave it up."""

    async def main():
        source, ids = new_pool(1), list(range(NUM_BLOCKS))
        async with pair("ucx", max_message_bytes=200_000) as p:
            sender, victim = p.sender(source), ucx_of(p.receiver).pid
            incoming = p.grant(ids)
            outgoing = sender.open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            await arrivals(incoming, 1)
            os.kill(victim, signal.SIGSTOP)
            cancelled = asyncio.create_task(incoming.cancel())
            async with asyncio.timeout(NOTICED_S):
                await cancelled
            p.fill(ids, 9)
            while psutil.pid_exists(victim):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert p.untouched(ids, 9)
            await outgoing.abort()

    run(main())


def test_a_process_that_takes_no_more_frames_is_killed_and_waiters_fail(monkeypatch):
    monkeypatch.setattr(frame_socket, "_MAX_QUEUED_FRAMES", 8)

    async def main():
        ends: list[TransferError | None] = []
        died = asyncio.Event()
        process = UcxProcess(os.environ, lambda _: None, died.set)
        for tag in range(12):  # without a turn of the loop nothing is sent
            process.start_send(1, tag, Area(0, 1), ends.append)
        assert died.is_set()
        assert len(ends) == 12
        assert all(isinstance(end, TransferError) for end in ends)
        await process.wait()

    run(main())


def test_a_socket_that_was_full_is_written_to_again_and_then_left_alone(monkeypatch):
    async def main():
        process, num_flushes = UcxProcess(os.environ, lambda _: None, lambda: None), 0
        flush = process._socket.flush

        def count() -> bool:
            nonlocal num_flushes
            num_flushes += 1
            return flush()

        monkeypatch.setattr(process._socket, "flush", count)
        await process.started()
        os.kill(process.pid, signal.SIGSTOP)
        for _ in range(50_000):
            process.put(frames.Beat(1))  # of no link
        await asyncio.sleep(0.05)
        assert process._socket._queue
        os.kill(process.pid, signal.SIGCONT)
        async with asyncio.timeout(10):
            while process._socket._queue:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        enough = num_flushes
        await asyncio.sleep(0.05)
        assert num_flushes == enough
        assert not process.reason
        await process.close()

    run(main())
