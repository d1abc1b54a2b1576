import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.up.member import Member, StartError
from fleet.up.process import Command, Process

READY = 'print("progress 0.25\\nready {\\"epoch\\": 5, \\"metrics_url\\": \\"http://m\\"}", flush=True);'
SERVE = READY + "import time; time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SERVE


async def says_ready(process: Process) -> dict[str, Any]:
    return await asyncio.shield(process.ready)


class Kept:
    """Return a member that runs a line of Python, and the list of its states."""

    def __init__(self, log: Path, code: str, **env: str) -> None:
        command = Command("x-0", "x", (sys.executable, "-c", code), {**os.environ, **env})
        self.states: list[str] = []
        self.changed = asyncio.Event()
        self.member = Member(command, says_ready, log, self._on_change)

    def _on_change(self, member: Member) -> None:
        if not self.states or self.states[-1] != member.state.state:
            self.states.append(member.state.state)
        self.changed.set()

    async def until(self, states: list[str]) -> None:
        async with asyncio.timeout(20):
            while self.states[-len(states) :] != states:
                self.changed.clear()
                await self.changed.wait()

    async def __aenter__(self) -> "Kept":
        await self.member.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.member.stop(0.1)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def runs(pid: int) -> bool:
    """Return whether a process is alive and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_service_runs_on_its_cores_with_its_niceness(tmp_path: Path):
    async def test() -> None:
        kept = Kept(tmp_path / "log", SERVE)
        last = max(os.sched_getaffinity(0))
        kept.member.command = replace(kept.member.command, cores=frozenset({last}), niceness=7)
        async with kept:
            pid = kept.member.state.pid
            assert pid is not None
            assert os.sched_getaffinity(pid) == {last}
            assert os.getpriority(os.PRIO_PROCESS, pid) == 7

    run(test())


def test_facts_of_a_ready_service_are_known(tmp_path: Path):
    async def test() -> None:
        async with Kept(tmp_path / "log", SERVE) as kept:
            state = kept.member.state
            assert (state.state, state.epoch, state.metrics) == ("ready", 5, "http://m")
            assert kept.member.progress == 0.25
            assert os.getpgid(state.pid or 0) == state.pid

    run(test())


def test_a_killed_service_is_restarted(tmp_path: Path):
    async def test() -> None:
        async with Kept(tmp_path / "log", SERVE) as kept:
            first = kept.member.state.pid
            os.kill(first or 0, signal.SIGKILL)
            began = time.monotonic()
            await kept.until(["ready", "restarting", "starting", "ready"])
            assert time.monotonic() - began > 0.2
            assert kept.member.state.pid not in (first, None)
            assert kept.member.state.restarts == 1
            assert "SIGKILL" in kept.member.last_failure

    run(test())


def test_restarts_of_a_crashing_service_are_delayed(tmp_path: Path):
    async def test() -> None:
        async with Kept(tmp_path / "log", READY) as kept:
            began = time.monotonic()
            while kept.member.state.restarts < 3:
                kept.changed.clear()
                await kept.changed.wait()
            assert time.monotonic() - began > 0.2 + 0.4

    run(test())


def test_the_first_failure_has_the_services_last_log_line(tmp_path: Path):
    async def test() -> None:
        code = 'import sys; print("noise\\nbaton decode: error: no model here", file=sys.stderr); sys.exit(1)'
        with pytest.raises(StartError, match=r"^x-0: no model here$"):
            await Kept(tmp_path / "log", code).member.start()

    run(test())


def test_a_crash_at_start_names_exit_code_and_log(tmp_path: Path):
    async def test() -> None:
        with pytest.raises(StartError, match=rf"x-0: exit code 3: boom \(log: {tmp_path}"):
            await Kept(tmp_path / "log", 'import sys; print("boom", file=sys.stderr); sys.exit(3)').member.start()

    run(test())


def test_a_program_that_does_not_exist_is_an_error_too(tmp_path: Path):
    async def test() -> None:
        kept = Kept(tmp_path / "log", SERVE)
        kept.member.command = Command("x-0", "x", ("/no/such/program",), {})
        with pytest.raises(StartError, match="cannot start /no/such/program"):
            await kept.member.start()

    run(test())


def test_a_service_that_does_not_drain_is_killed(tmp_path: Path):
    async def test() -> None:
        kept = Kept(tmp_path / "log", DEAF)
        await kept.member.start()
        pid = kept.member.state.pid or 0
        began = time.monotonic()
        await kept.member.stop(0.2)
        assert not is_alive(pid)
        assert 0.2 < time.monotonic() - began < 4

    run(test())


def test_stopping_while_it_waits_to_restart_is_immediate(tmp_path: Path):
    async def test() -> None:
        async with Kept(tmp_path / "log", READY) as kept:
            await kept.until(["restarting"])
            await kept.member.stop(30)
            assert kept.member.state.pid is None

    run(test())


def test_a_child_of_the_service_does_not_outlive_it(tmp_path: Path):
    async def test() -> None:
        code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, file=sys.stderr, flush=True);"
        kept = Kept(tmp_path / "log", code + SERVE)
        await kept.member.start()
        await kept.member.stop(2)

    run(test())
    grandchild = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 5.0  # it has been killed, but the kernel may take a while to report it
    while runs(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_injected_fault_hits_the_first_incarnation_only(tmp_path: Path):
    async def test() -> None:
        code = (
            "import os; die = 'BATON_FAULTS' in os.environ;"
            + READY
            + "die and os._exit(9); __import__('time').sleep(60)"
        )
        async with Kept(tmp_path / "log", code, BATON_FAULTS="a=kill") as kept:
            await kept.until(["restarting", "starting", "ready"])
            await asyncio.wait([asyncio.ensure_future(kept.changed.wait())], timeout=0.5)
            assert kept.member.state.restarts == 1

    run(test())


def test_other_output_goes_to_the_log(tmp_path: Path):
    async def test() -> None:
        async with Kept(tmp_path / "log", f'print("progress soon\\nhello\\nready [");{SERVE}'):
            assert (tmp_path / "log").read_text() == "progress soon\nhello\nready [\n"

    run(test())
