"""What `baton loadtest` tries: a fleet with an endpoint, memory that can be read, and nodes that can be killed."""

import asyncio
import contextlib
import re
import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence

import psutil

from baton.errors import BatonError
from bench._load.target import Target, target_of
from fleet.chaos.fleet import PrivateFleet
from fleet.memory import resident_bytes
from fleet.metrics_page import scrape

_TIMEOUT_S = 3.0
_KILL_TIMEOUT_S = 30.0
_RESIDENT = re.compile(r"^process_resident_memory_bytes(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Site(ABC):
    """One fleet. What is asked of it may block for a second or two: it is asked in a thread."""

    def __init__(self, target: Target) -> None:
        self.target = target

    @abstractmethod
    def memory_bytes(self) -> dict[str, float]:
        """Resident memory of each service that can be seen, by name."""

    @abstractmethod
    def kill(self) -> str:
        """Kill one node; what was killed, in words. Empty where nothing can be. BatonError where it did not work."""

    @abstractmethod
    def is_whole(self) -> bool:
        """Whether every service that can be seen is there again."""


class LocalSite(Site):
    """A fleet that this command has started."""

    def __init__(self, fleet: PrivateFleet) -> None:
        super().__init__(target_of(fleet.endpoint))
        self._fleet = fleet
        self._killed: set[int] = set()

    def memory_bytes(self) -> dict[str, float]:
        """Of Site."""
        found = {}
        for process in self._fleet.services():
            with contextlib.suppress(psutil.Error):
                if process.pid is not None:
                    found[process.id] = resident_bytes(process.pid)
        return found

    def kill(self) -> str:
        """Of Site."""
        self._killed.add(self._fleet.signal("decode", 0, signal.SIGKILL))
        return "decode-0, by SIGKILL"

    def is_whole(self) -> bool:
        """Of Site."""
        return self._fleet.is_whole(self._killed)


class RemoteSite(Site):
    """Any endpoint; memory and kills as far as its operator says how."""

    def __init__(self, target: Target, metrics_urls: Sequence[str], kill_command: str) -> None:
        super().__init__(target)
        self._metrics_urls, self._kill_command = metrics_urls, kill_command

    def memory_bytes(self) -> dict[str, float]:
        """Of Site."""
        found = {}
        for url in self._metrics_urls:
            if match := _RESIDENT.search(scrape(url, self.target.api_key, _TIMEOUT_S)):
                found[url] = float(match[1])
        return found

    def kill(self) -> str:
        """Of Site."""
        if not self._kill_command:
            return ""
        asyncio.run(_run(self._kill_command))
        return self._kill_command

    def is_whole(self) -> bool:
        """Of Site."""
        return True


async def _run(command: str) -> None:
    process = await asyncio.create_subprocess_exec(*shlex.split(command))
    try:
        async with asyncio.timeout(_KILL_TIMEOUT_S):
            code = await process.wait()
    except TimeoutError:
        process.kill()
        raise BatonError(f"--kill-command: no end after {_KILL_TIMEOUT_S:.0f} s") from None
    if code:
        raise BatonError(f"--kill-command: exit code {code}")
