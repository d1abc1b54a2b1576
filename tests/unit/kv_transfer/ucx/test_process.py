"""One UCX process, from start to end. A program that says what the test wants takes its place."""

import asyncio
import os
import re
import sys

import psutil
import pytest

from baton.errors import TransferError
from kv_transfer import stall
from kv_transfer.staging import Area
from kv_transfer.ucx import child as ucx_child
from kv_transfer.ucx import process as ucx_process
from kv_transfer.ucx.process import UcxProcess
from tests.waiting import until

START = """
import os, socket, sys, time
from kv_transfer.ucx_child import frames
from kv_transfer.ucx_child.frame_socket import FrameSocket
node = FrameSocket(socket.socket(fileno=int(sys.argv[1])), frames.Order)
def say(*reports):
    for report in reports:
        node.put(report)
    node.flush()
def live():
    while True:
        say(frames.Alive())
        time.sleep(0.02)
"""


@pytest.fixture
def run(monkeypatch):
    """Run a scenario with a process that executes `code`, and a list that grows when it has ended."""

    def run_(code, scenario):
        monkeypatch.setattr(ucx_child, "COMMAND", (sys.executable, "-c", START + code))

        async def main():
            ends = []
            process = UcxProcess(os.environ, lambda _: None, lambda: ends.append(1))
            async with asyncio.timeout(10):
                await scenario(process, ends)
                await process.close()

        asyncio.run(main())

    return run_


async def ended(process) -> str:
    await until(lambda: process.reason)
    await process.wait()
    assert not psutil.pid_exists(process.pid)
    return process.reason


def test_a_process_that_does_not_start_is_given_up(run, monkeypatch):
    monkeypatch.setattr(ucx_process, "_START_S", 0.1)

    async def scenario(process, ends):
        with pytest.raises(TransferError, match="no UCX process: it did not start"):
            await process.started()
        assert (await ended(process), ends, process.has_started) == ("it did not start", [1], False)
        with pytest.raises(TransferError, match="did not start"):
            await process.started()

    run("time.sleep(100)", scenario)


def test_a_process_that_has_started_has_no_more_time_limit(run, monkeypatch):
    monkeypatch.setattr(ucx_process, "_START_S", 2.0)

    async def scenario(process, ends):
        await process.started()
        assert process.has_started
        assert process._start_timer.cancelled()
        await asyncio.sleep(stall.MOST_TICKS * stall.TICK_S + 0.2)
        assert not process.reason

    run("live()", scenario)


def test_a_cancelled_wait_for_the_start_leaves_other_waits_alone(run):
    async def scenario(process, ends):
        impatient, patient = [asyncio.create_task(process.started()) for _ in range(2)]
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        assert process.has_started

    run("live()", scenario)


def test_a_silent_process_is_killed_with_all_of_its_messages(run, monkeypatch):
    monkeypatch.setattr(stall, "TICK_S", 0.01)

    async def scenario(process, ends):
        await process.started()
        outcomes = []
        process.start_send(1, 7, Area(0, 1), outcomes.append)
        assert await ended(process) == "it was silent"
        assert ends == [1]
        process.start_receive(2, 1, Area(0, 1), outcomes.append)
        assert [str(outcome) for outcome in outcomes] == ["the UCX process has ended"] * 2

    run("say(frames.Alive()); time.sleep(100)", scenario)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os._exit(0)", "^(it died|the other side has ended)$"),
        ("print('no memory', flush=True); os._exit(3)", r" \(no memory\) \(exit code 3\)$"),
        ("node._sock.send(b'noise'); time.sleep(100)", "malformed packet"),
    ],
)
def test_a_process_that_dies_or_sends_malformed_packets_has_ended(run, code, reason):
    async def scenario(process, ends):
        await process.started()
        process.close_link(4)
        (timer,) = process._closing.values()
        assert re.search(reason, await ended(process))
        assert (ends, process.port, timer.cancelled(), process.staging.descriptor) == ([1], 0, True, -1)

    run(f"say(frames.Alive(), frames.Listening(5)); time.sleep(0.1); {code}", scenario)


def test_a_connection_that_is_not_closed_in_time_ends_the_process(run, monkeypatch):
    monkeypatch.setattr(ucx_process, "_CLOSE_S", 0.2)

    async def scenario(process, ends):
        await process.started()
        process.close_link(3)
        assert await ended(process) == "it did not close a connection"

    run("live()", scenario)


def test_each_message_ends_once_with_the_error_that_ucx_reports(run):
    async def scenario(process, ends):
        outcomes = []
        process.start_receive(5, 1, Area(0, 1), outcomes.append)
        process.start_receive(6, 1, Area(0, 1), outcomes.append)
        await until(lambda: process.port == 9)
        assert [outcome and str(outcome) for outcome in outcomes] == [None, "UCX: reset"]
        assert process._messages == {}

    said = "frames.Ended(5, ''), frames.Ended(6, 'reset'), frames.Ended(5, ''), frames.Listening(9)"
    run(f"say(frames.Alive(), {said}); live()", scenario)


def test_the_numbers_of_messages_that_are_sent_and_received_differ(run):
    """The node numbers the former, the process the latter."""

    async def scenario(process, ends):
        sent, received = [], []
        process.start_receive(1, 1, Area(0, 1), received.append)
        process.start_send(1, 7, Area(0, 1), sent.append)
        await until(lambda: received)
        assert sent == []

    run("say(frames.Alive(), frames.Ended(1, '')); live()", scenario)


def test_a_process_that_is_closed_is_gone_and_nobody_is_told(run):
    async def scenario(process, ends):
        await process.started()
        await process.close()
        assert (ends, process.reason, psutil.pid_exists(process.pid)) == ([], "it was closed", False)

    run("live()", scenario)


def test_a_failed_start_leaves_no_staging_memory_behind(monkeypatch):
    def refuse(*args, **options):
        raise OSError("Too many open files")

    async def main():
        monkeypatch.setattr(ucx_child, "Popen", refuse)
        made, staging = [], ucx_process.Staging
        monkeypatch.setattr(ucx_process, "Staging", lambda: made.append(staging()) or made[0])
        with pytest.raises(OSError, match="Too many"):
            UcxProcess(os.environ, lambda _: None, lambda: None)
        assert made[0].descriptor == -1

    asyncio.run(main())
