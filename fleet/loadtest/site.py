"""The fleets that `baton loadtest` tests: an endpoint, memory that can be read, and nodes that can be killed."""

import contextlib
import re
import shlex
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence

import psutil

from baton.errors import BatonError, ConfigError
from baton.net.failure import reason
from bench._load.target import Target, target_of
from fleet.chaos.fleet import PrivateFleet
from fleet.http_ask import scrape
from fleet.memory import resident_bytes

_TIMEOUT_S = 3.0
_KILL_TIMEOUT_S = 30.0
_RESIDENT = re.compile(r"^process_resident_memory_bytes(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Site(ABC):
    """A fleet under test. Its methods may block for a second or two, so they are called in threads."""

    def __init__(self, target: Target) -> None:
        self.target = target

    @abstractmethod
    def memory_bytes(self) -> dict[str, float]:
        """Return the resident memory of each service that can be read, by name."""

    @abstractmethod
    def kill(self) -> str:
        """Kill a node; return what was killed, or "" if there is no way to. Raises BatonError if killing fails."""

    @abstractmethod
    def is_whole(self) -> bool:
        """Return whether every service that can be checked is back."""


class LocalSite(Site):
    """A local fleet, started by this command."""

    def __init__(self, fleet: PrivateFleet) -> None:
        super().__init__(target_of(fleet.endpoint))
        self._fleet = fleet
        self._killed: set[int] = set()

    def memory_bytes(self) -> dict[str, float]:
        """See Site."""
        sizes = {}
        for process in self._fleet.services():
            with contextlib.suppress(psutil.Error):
                if process.pid is not None:
                    sizes[process.id] = resident_bytes(process.pid)
        return sizes

    def kill(self) -> str:
        """See Site."""
        self._killed.add(self._fleet.signal("decode", 0, signal.SIGKILL))
        return "decode-0, by SIGKILL"

    def is_whole(self) -> bool:
        """See Site."""
        return self._fleet.is_whole(self._killed)


class RemoteSite(Site):
    """Any endpoint. Its operator says how to read memory and how to kill a node."""

    def __init__(self, target: Target, metrics_urls: Sequence[str], kill_command: str) -> None:
        super().__init__(target)
        self._metrics_urls, self._kill_command = metrics_urls, kill_command

    def memory_bytes(self) -> dict[str, float]:
        """See Site."""
        sizes = {}
        for url in self._metrics_urls:
            if match := _RESIDENT.search(scrape(url, self.target.api_key, _TIMEOUT_S)):
                sizes[url] = float(match[1])
        return sizes

    def kill(self) -> str:
        """See Site."""
        if not self._kill_command:
            return ""
        try:
            subprocess.run(parse_command(self._kill_command), check=True, timeout=_KILL_TIMEOUT_S)
        except OSError as error:
            raise BatonError(f"--kill-command: {self._kill_command}: {reason(error)}") from None
        except subprocess.TimeoutExpired:
            raise BatonError(f"--kill-command: still running after {_KILL_TIMEOUT_S:.0f} s") from None
        except subprocess.CalledProcessError as error:
            raise BatonError(f"--kill-command: exit code {error.returncode}") from None
        return self._kill_command

    def is_whole(self) -> bool:
        """See Site."""
        return True


def parse_command(text: str) -> list[str]:
    """Return the words of --kill-command. Raises ConfigError if a quotation mark is missing."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--kill-command: {text!r}: {str(error).lower()}") from None
