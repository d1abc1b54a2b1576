"""BATON_HOME: the folder where one local fleet keeps its state, logs and sockets, separate from other fleets.

    fleet.json   its processes (fleet.state), for `status`, `scale`, `down`, `chat`; mode 0600: has Redis' password
    lock         locked by the supervisor while it lives
    logs/        one file per service
    run/         sockets

The content of fleet.json is defined in fleet.state.
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
    """The BATON_HOME of one local fleet."""

    path: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Home":
        """Return the home named by BATON_HOME, or ~/.baton."""
        return cls(Path(env.get("BATON_HOME") or "~/.baton").expanduser().absolute())

    @property
    def state_file(self) -> Path:
        """The path of fleet.json."""
        return self.path / "fleet.json"

    @property
    def logs(self) -> Path:
        """The folder of log files, one per service."""
        return self.path / "logs"

    def create(self) -> None:
        """Create the folders, accessible to their owner only. Raises ConfigError if logs cannot be written there."""
        trial = self.logs / ".trial"  # logs may be on another disk, and are needed to explain failures
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
        """Create a folder for sockets: `run/`, or a temporary one if that path is too long for a socket."""
        path = self.path / "run"
        if len(os.fsencode(path / "control.sock")) > _MAX_SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix="baton-"))
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return path

    def rotate_logs(self) -> None:
        """Rename the previous fleet's logs to `*.log.1`, replacing those of the fleet before it."""
        for log in self.logs.glob("*.log"):
            if log.name != "supervisor.log":  # the supervisor is already writing to it
                log.replace(log.with_name(log.name + ".1"))

    def lock(self) -> int | None:
        """Take the supervisor's lock; return a file descriptor, or None if another supervisor holds it.

        Raises ConfigError if the home belongs to somebody else, or its disk cannot be written.
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
        """Return whether a supervisor is alive. Raises ConfigError if the home belongs to somebody else."""
        with contextlib.suppress(PermissionError):  # `lock` reports it
            if not (self.path / "lock").exists():
                return False
        descriptor = self.lock()
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None


def remove_run_dir(path: Path) -> None:
    """Remove a folder created by `make_run_dir`."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path)
