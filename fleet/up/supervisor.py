"""A local fleet: Redis, routers and nodes as processes, started in order, kept running, scaled, and stopped.

    start   Redis first, then routers and nodes at once; the first failure stops the start
    run     a Member restarts its service when it dies; fleet.json lists all processes
    scale   waits for new nodes; nodes that are removed drain in the background
    stop    routers first (they end their streams), then nodes, then Redis; all within 10 s, by SIGKILL if necessary

Elsewhere: commands and flags (services), a single process (member), signals and the terminal (command).
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from baton.errors import ConfigError
from baton.net import redis_client
from fleet import state
from fleet.home import Home
from fleet.up import embedded_redis
from fleet.up.console import Reporter
from fleet.up.member import Member, Probe, StartError
from fleet.up.process import Command, Process
from fleet.up.router_probe import until_ready
from fleet.up.services import Services

ROUTER_STOP_S = 4.3  # for streams to end, of the fleet's 10 s; a router by itself waits longer
NODE_STOP_S = 2.5
REDIS_STOP_S = 0.3
NODE_DRAIN_S = 65.0  # slightly longer than a node's own drain timeout
_CONFIRM_INTERVAL_S = 2.0
_TEXTS = {"starting": "starting", "ready": "ready", "restarting": "died", "draining": "draining", "failed": "failed"}


class Fleet:
    """A running fleet. All methods must be called in one event loop."""

    def __init__(self, services: Services, home: Home, run_dir: Path, reporter: Reporter) -> None:
        self._services, self._home, self._run_dir, self._reporter = services, home, run_dir, reporter
        self.members: dict[str, Member] = {}
        self.phase = "starting"
        self._is_saved = False  # whether fleet.json is up to date
        self._tasks: set[asyncio.Task[None]] = set()
        self._scaling = asyncio.Lock()
        self._new: list[Member] = []  # nodes that `scale` waits for

    async def start(self) -> None:
        """Start all services; return when requests can be served. Raises StartError, which names the failed service."""
        self._background(self._keep_saved())
        config = self._services.config
        if not config.redis_url:
            await self._start_all([self._add_redis()])
        else:
            await redis_client.check(config.redis_url)
        prefill = 0 if config.colocated else config.prefill
        members = [self._add_node("prefill", i, prefill) for i in range(prefill)]
        members += [self._add_node("decode", i, config.decode) for i in range(config.decode)]
        members += [self._add_router(i) for i in range(config.routers)]
        await self._start_all(members)
        self.phase = "ready"
        self._save()

    async def scale(self, counts: dict[str, int]) -> str:
        """Resize pools; return when new nodes serve, with a description of what was done."""
        self._check(counts)
        async with self._scaling:
            started: list[Member] = []
            drained: list[Member] = []
            for role, count in counts.items():
                nodes = self._pool(role)
                started += [self._add_node(role, self._free_index(role), count) for _ in range(count - len(nodes))]
                drained += nodes[count:]
            for member in drained:
                self._drain(member)
            self._new = started
            await self._start_new(started)
        return " ".join((*_sentence("started", started), *_sentence("draining", drained))) or "nothing to do"

    def starting(self) -> str:
        """Return which new nodes of the current `scale` do not serve yet, and how far they have come."""
        return ", ".join(_progress(member) for member in self._new if member.state.state == "starting")

    async def stop(self) -> None:
        """Drain and stop everything, within 10 s."""
        self.phase = "stopping"
        self._save()
        for member in self.members.values():  # restart nothing from now on
            member.expect_end()
        await self._stop_all(("router",), ROUTER_STOP_S)
        await self._stop_all(("prefill", "decode"), NODE_STOP_S)
        await self._stop_all(("redis",), REDIS_STOP_S)
        for task in self._tasks:
            task.cancel()

    def kill(self) -> None:
        """Kill everything at once."""
        for member in self.members.values():
            member.expect_end()
            member.signal(signal.SIGKILL)

    def _check(self, counts: dict[str, int]) -> None:
        for role, count in counts.items():
            if role not in ("prefill", "decode"):
                raise ConfigError(f"no such pool: {role} (expected prefill or decode)")
            if role == "prefill" and self._services.config.colocated:
                raise ConfigError("a colocated fleet has no prefill nodes: scale decode instead")
            if not 1 <= count <= 64:
                raise ConfigError(f"{role}={count}: expected a number from 1 to 64")

    async def _start_new(self, members: list[Member]) -> None:
        """Start additional nodes; those that fail are removed again, the others stay."""
        results = await asyncio.gather(*(m.start() for m in members), return_exceptions=True)
        for member, result in zip(members, results, strict=True):
            if isinstance(result, BaseException):
                self._forget(member)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _start_all(self, members: list[Member]) -> None:
        tasks = [asyncio.create_task(member.start()) for member in members]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_all(self, roles: tuple[str, ...], timeout_s: float) -> None:
        members = [member for member in self.members.values() if member.command.role in roles]
        await asyncio.gather(*(member.stop(timeout_s) for member in members))

    def _drain(self, member: Member) -> None:
        async def drain() -> None:
            await member.stop(NODE_DRAIN_S)
            self._forget(member)

        self._background(drain())

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as a task that `stop` cancels."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_saved(self) -> None:
        """Confirm that fleet.json is up to date, or else try again to write it."""
        while True:
            await asyncio.sleep(_CONFIRM_INTERVAL_S)
            if self._is_saved:
                state.confirm(self._home)
            elif self.phase != "starting":  # a start ends with an error
                self._save()

    def _pool(self, role: str) -> list[Member]:
        nodes = [m for m in self.members.values() if m.command.role == role and m.state.state != "draining"]
        return sorted(nodes, key=lambda member: _index(member.command.id))

    def _free_index(self, role: str) -> int:
        taken = {_index(name) for name, member in self.members.items() if member.command.role == role}
        return next(i for i in range(len(taken) + 1) if i not in taken)

    def _add_redis(self) -> Member:
        url = self._services.redis_url
        return self._add(embedded_redis.command(url), lambda _: embedded_redis.answers(url))

    def _add_node(self, role: str, index: int, num_nodes: int) -> Member:
        return self._add(self._services.node(role, index, num_nodes), _says_ready)

    def _add_router(self, index: int) -> Member:
        host, port = self._services.local_host, self._services.config.port
        return self._add(self._services.router(index), lambda process: until_ready(process, host, port))

    def _add(self, command: Command, probe: Probe) -> Member:
        member = Member(command, probe, self._home.logs / f"{command.id}.log", self._changed)
        self.members[command.id] = member
        return member

    def _forget(self, member: Member) -> None:
        self.members.pop(member.command.id, None)
        self._save()

    def _changed(self, member: Member) -> None:
        name, now, clock = member.command.id, member.state, time.strftime("%H:%M:%S")
        if self.phase == "starting":
            loading = now.state == "starting" and member.progress is not None
            text = "loading weights" if loading else _TEXTS[now.state]
            self._reporter.update(name, text, member.progress if loading else None, done=now.state == "ready")
        elif now.state == "restarting":
            self._reporter.note(f"{clock} {name} died ({member.last_failure}); restarting it")
        elif now.state == "ready" and self.phase == "ready":
            self._reporter.note(f"{clock} {name} is ready")
        elif now.state == "draining" and self.phase == "ready":
            self._reporter.note(f"{clock} {name} is draining")
        self._save()

    def _save(self) -> None:
        snapshot = state.FleetState(
            pid=os.getpid(),
            state=self.phase,
            endpoint=self._services.endpoint,
            redis_url=self._services.redis_url,
            run_dir=str(self._run_dir),
            model=str(self._services.model.path),
            served_model_name=self._services.model.names,
            api_key_file=self._services.config.api_key_file,
            processes=[member.state for member in self.members.values()],
        )
        was_saved, self._is_saved = self._is_saved, False
        try:
            state.write(self._home, snapshot)
            self._is_saved = True
        except OSError as error:
            problem = f"cannot write {self._home.state_file}: {error.strerror}"
            if self.phase == "starting":
                raise StartError(problem) from None
            if was_saved:  # the fleet itself keeps running
                self._reporter.note(f"{problem}; `baton status` is out of date until this succeeds")


async def _says_ready(process: Process) -> dict[str, Any]:
    return await asyncio.shield(process.ready)


def _progress(member: Member) -> str:
    """Return the name of a starting node, and the tens of percent of its weights that are loaded."""
    loaded = "" if member.progress is None else f" ({int(member.progress * 10) * 10} % of its weights loaded)"
    return f"{member.command.id}{loaded}"


def _index(name: str) -> int:
    match = re.match(r"[a-z]+-(\d+)", name)
    return int(match[1]) if match else 0


def _sentence(verb: str, members: list[Member]) -> list[str]:
    return [f"{verb} {', '.join(m.command.id for m in members)}."] if members else []
