"""Keeps one service running: restarts it when it dies, with a growing delay if it dies soon after its start."""

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from baton.errors import ConfigError
from baton.process import tasks
from fleet.state import ProcessState
from fleet.up.process import Command, Process

Probe = Callable[[Process], Awaitable[dict[str, Any]]]

MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
INSIST_S = 0.5  # time that a service needs to end without draining
_LONG_LIFE_S = 5.0  # a service that ran this long is restarted at once
_START_TIMEOUT_S = 1800.0  # enough for large weights from a slow disk


class StartError(ConfigError):
    """A service failed to start; the message names it and says why."""


class Member:
    """Keeps one service running from `start` to `stop`.

    `probe` waits until a service serves, and returns its facts. `on_change` is called at every change of `state`.
    """

    def __init__(self, command: Command, probe: Probe, log: Path, on_change: Callable[["Member"], None]) -> None:
        self.command, self._probe, self._log, self._on_change = command, probe, log, on_change
        self.state = ProcessState(command.id, command.role, None, "starting")
        self.progress: float | None = None
        self.last_failure = ""
        self._process: Process | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the service and wait until it serves. Raises StartError if its first incarnation ends before that."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running(first))
        await asyncio.wait([first, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            first.cancel()
            self._task.result()
            raise StartError(f"{self.command.id}: stopped while starting")
        first.result()

    def expect_end(self) -> None:
        """From now on, do not restart the service when it ends."""
        self._stop.set()

    async def stop(self, drain_s: float) -> None:
        """Drain the service for up to `drain_s`, then tell it to end at once, and finally kill it."""
        self._stop.set()
        if self._task is None or self._task.done():
            return
        self._set("draining")
        for number, patience_s in ((signal.SIGTERM, drain_s), (signal.SIGTERM, INSIST_S), (signal.SIGKILL, 5.0)):
            self.signal(number)
            await asyncio.wait([self._task], timeout=patience_s)
            if self._task.done():
                return

    def signal(self, number: int) -> None:
        """Signal the service, if it is running."""
        if self._process is not None:
            self._process.signal(number)

    async def _keep_running(self, first: "asyncio.Future[None]") -> None:
        backoff_s = MIN_BACKOFF_S
        while not self._stop.is_set():
            began = time.monotonic()
            served = await self._run_once(first)
            if self._stop.is_set():
                return
            if not first.done():
                self._set("failed")
                first.set_exception(StartError(f"{self.command.id}: {self.last_failure}"))
                first.exception()  # mark it as retrieved, in case `start` was cancelled
                return
            self.command = _without_faults(self.command)
            if served and time.monotonic() - began > _LONG_LIFE_S:
                backoff_s = MIN_BACKOFF_S
            self.state.restarts += 1
            self._set("restarting")
            await tasks.wait(self._stop, backoff_s)
            backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)

    async def _run_once(self, first: "asyncio.Future[None]") -> bool:
        """Run one incarnation from start to end; return whether it ever served."""
        try:
            process = await Process.spawn(self.command, self._log, self._on_progress)
        except OSError as error:
            self.last_failure = f"cannot start {self.command.argv[0]}: {os.strerror(error.errno or 0)}"
            return False
        self._process, self.progress, self.state.pid = process, None, process.pid
        if self._stop.is_set():  # stop() was called before there was a process to signal
            process.signal(signal.SIGTERM)
        else:
            self._set("starting")
        served = await self._until_ready(process)
        if served and not self._stop.is_set():
            self._set("ready")
            if not first.done():
                first.set_result(None)
        self.last_failure = process.failure(await process.wait())
        process.signal(signal.SIGKILL)  # anything it left behind in its process group
        self._process, self.state.pid = None, None
        return served

    async def _until_ready(self, process: Process) -> bool:
        probe = asyncio.ensure_future(self._probe(process))
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait([probe, ended], timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if not probe.done() or ended.done():
                process.signal(signal.SIGKILL)
                return False
            facts = probe.result()
        finally:
            probe.cancel()
            ended.cancel()
            await asyncio.gather(probe, ended, return_exceptions=True)
        self.state.epoch = facts.get("epoch")
        self.state.address = facts.get("address")
        self.state.metrics = facts.get("metrics") or facts.get("metrics_url")
        return True

    def _on_progress(self, fraction: float) -> None:
        self.progress = fraction
        self._on_change(self)

    def _set(self, state: str) -> None:
        self.state.state = state
        self._on_change(self)


def _without_faults(command: Command) -> Command:
    """Drop BATON_FAULTS: an injected fault must hit the first incarnation only, or the service would never recover."""
    env = {name: value for name, value in command.env.items() if not name.startswith("BATON_FAULT")}
    return dataclasses.replace(command, env=env)
