"""BATON_HOME: where one local fleet keeps its state, its logs and its sockets, apart from every other fleet.

    fleet.json   what runs (fleet.state), for `status`, `scale`, `down` and `chat`; 0600, it holds Redis' password
    lock         held by the supervisor for as long as it lives
    logs/        one file per service
    run/         sockets

What it leaves to others: the content of fleet.json.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from baton.errors import ConfigError

_MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 107
_TRIAL_BYTES = 4096


@dataclass(frozen=True)
class Home:
    """The folder of one local fleet."""

    path: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Home":
        """BATON_HOME, else ~/.baton."""
        return cls(Path(env.get("BATON_HOME") or "~/.baton").expanduser().absolute())

    @property
    def state_file(self) -> Path:
        """What runs."""
        return self.path / "fleet.json"

    @property
    def logs(self) -> Path:
        """One file per service."""
        return self.path / "logs"

    def create(self) -> None:
        """Make the folders, readable by their owner alone; ConfigError unless logs can be written there."""
        trial = self.logs / ".trial"  # logs may have a disk of their own, and say why a service has ended
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            trial.write_bytes(bytes(_TRIAL_BYTES))
            trial.unlink(missing_ok=True)
        except OSError as error:
            with contextlib.suppress(OSError):
                trial.unlink()
            raise ConfigError(f"cannot write to BATON_HOME {self.path}: {error.strerror}") from None

    def make_run_dir(self) -> Path:
        """A folder for sockets: `run/`, or a temporary one where that path is too long for a socket."""
        path = self.path / "run"
        if len(os.fsencode(path / "control.sock")) > _MAX_SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix="baton-"))
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return path

    def rotate_logs(self) -> None:
        """Keep the logs of the fleet before this one as `*.log.1`, and those of older ones not at all."""
        for log in self.logs.glob("*.log"):
            if log.name != "supervisor.log":  # in which the supervisor itself writes by now
                log.replace(log.with_name(log.name + ".1"))

    def lock(self) -> int | None:
        """Take the lock that says a supervisor lives; a file descriptor, or None where somebody else has it.

        ConfigError where the home is somebody else's, or a disk that takes nothing.
        """
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot use BATON_HOME {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def is_locked(self) -> bool:
        """Whether a supervisor lives; ConfigError where the home is somebody else's."""
        with contextlib.suppress(PermissionError):  # then `lock` says so
            if not (self.path / "lock").exists():
                return False
        descriptor = self.lock()
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None


def remove_run_dir(path: Path) -> None:
    """Remove a folder that `make_run_dir` made."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path)
