"""The UCX process as an operating-system process. Other programs take its place here."""

import asyncio
import os
import signal
import sys

import pytest

from kv_transfer.staging import Staging
from kv_transfer.ucx import child as ucx_child
from kv_transfer.ucx.child import UcxChild
from tests.waiting import until


@pytest.fixture
def run(monkeypatch):
    """Run a scenario with a child that executes `code`."""

    def run_(code, scenario):
        monkeypatch.setattr(ucx_child, "COMMAND", (sys.executable, "-c", code))

        async def main():
            staging = Staging(4096)
            async with asyncio.timeout(10):
                await scenario(UcxChild(os.environ, staging))
            staging.close()

        asyncio.run(main())

    return run_


@pytest.mark.parametrize(
    ("end", "how", "is_unable"),
    [("raise SystemExit(0)", "", False), ("raise SystemExit(3)", "exit code 3", True),
     ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", False)],
)  # fmt: skip
def test_how_a_process_has_ended_by_itself(run, end, how, is_unable):
    async def scenario(child):
        assert await child.wait() == how
        child.end()
        assert child.is_unable is is_unable

    run(f"import os, signal; {end}", scenario)


def test_a_process_is_killed_without_waiting_for_what_it_might_print_and_leaves_nothing_open(run):
    async def scenario(child):
        os.kill(child.pid, signal.SIGSTOP)
        assert child.end() == ""
        assert await child.wait() == ""
        assert not child.is_unable
        for descriptor in (child._output, child.socket.fileno()):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    run("import time; time.sleep(100)", scenario)


def test_what_a_process_prints_is_logged_and_the_last_line_kept(run, caplog):
    async def scenario(child):
        child._process.wait()  # the event loop has no turn
        assert child.end() == "x" * 255

    run("import sys; print('out', flush=True); print('err\\n' + 'x' * 300 + '\\n \\n', file=sys.stderr)", scenario)
    assert [record.args[1] for record in caplog.records] == ["out", "err", "x" * 300]


def test_closed_output_is_watched_no_longer(run):
    async def scenario(child):
        loop = asyncio.get_running_loop()
        watching = loop._selector.get_map()
        await until(lambda: child._output not in watching)
        child.end()
        await child.wait()

    run("import os, time; os.close(1); os.close(2); time.sleep(100)", scenario)


@pytest.mark.parametrize("where", ["pipe", "Popen"])
def test_a_failed_start_leaves_no_descriptor_behind(monkeypatch, where):
    """This matters because the node tries again and again."""

    def refuse(*args, **options):
        raise OSError("Too many open files")

    async def main():
        staging, before = Staging(4096), os.listdir("/proc/self/fd")
        monkeypatch.setattr(ucx_child if where == "Popen" else ucx_child.os, where, refuse)
        with pytest.raises(OSError, match="Too many") as error:
            UcxChild(os.environ, staging)
        assert os.listdir("/proc/self/fd") == before
        assert error.traceback  # which would hold the sockets
        staging.close()

    asyncio.run(main())
