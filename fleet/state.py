"""fleet.json: written by the supervisor to describe its fleet, and read by the other commands.

While the file is up to date, the supervisor sets its time of modification every two seconds. So a reader can tell when
the supervisor is frozen or cannot write.
"""

import contextlib
import os
import time

import msgspec

from baton.errors import ConfigError
from fleet.home import Home


class ProcessState(msgspec.Struct):
    """A service of the fleet. Epoch, address and metrics are set once it is ready."""

    id: str
    role: str  # redis, router, prefill, decode
    pid: int | None
    state: str  # starting, ready, restarting, draining, failed
    epoch: int | None = None
    address: str | None = None
    metrics: str | None = None
    restarts: int = 0


class FleetState(msgspec.Struct):
    """The fleet as a whole."""

    pid: int  # the supervisor's
    state: str  # starting, ready, stopping
    endpoint: str
    redis_url: str
    run_dir: str
    model: str
    served_model_name: tuple[str, ...]
    api_key_file: str = ""
    processes: list[ProcessState] = []

    @property
    def control(self) -> str:
        """The path of the supervisor's control socket."""
        return os.path.join(self.run_dir, "control.sock")


def write(home: Home, state: FleetState) -> None:
    """Replace fleet.json atomically: a reader sees the old file or the new one."""
    partial = home.path / "fleet.json.partial"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(state)))
    partial.replace(home.state_file)


def confirm(home: Home) -> None:
    """Record that fleet.json is up to date at this moment."""
    with contextlib.suppress(OSError):
        os.utime(home.state_file)


def age_s(home: Home) -> float:
    """Return the seconds since fleet.json was last known to be up to date; 0 if there is no file."""
    try:
        return max(0.0, time.time() - home.state_file.stat().st_mtime)
    except OSError:
        return 0.0


def read(home: Home) -> FleetState | None:
    """Return what was last written, even by a supervisor that has ended; None if there is no valid file."""
    try:
        return msgspec.json.decode(home.state_file.read_bytes(), type=FleetState)
    except (OSError, msgspec.DecodeError):
        return None


def running(home: Home) -> FleetState:
    """Return the running fleet. Raises ConfigError if there is none."""
    state = read(home)
    if state is None or not home.is_locked():
        raise ConfigError(f"no fleet is running (BATON_HOME is {home.path}): start one with `baton up`")
    return state


def serving(home: Home) -> FleetState:
    """Return the running fleet, if it is ready. Raises ConfigError otherwise."""
    state = running(home)
    if state.state != "ready":
        raise ConfigError(f"the fleet is {state.state}: `baton status` says when it is ready")
    return state
