"""`baton down`: drains and stops the running fleet, and returns when all of its processes have ended."""

import argparse
import contextlib
import os
import signal
import time

from baton.errors import ConfigError
from fleet import control, state
from fleet.home import Home

_ASK_TIMEOUT_S = 2.0
_DRAIN_TIMEOUT_S = 12.0
_FROZEN_TIMEOUT_S = 3.0
_KILL_TIMEOUT_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no flags."""


def run(args: argparse.Namespace) -> int:
    """Stop the fleet; return 0, also if none was running."""
    home = Home.from_env()
    fleet = state.read(home)
    if not home.is_locked() or fleet is None:
        print(f"no fleet is running (BATON_HOME is {home.path})")
        return 0
    agreed = _ask(fleet)
    if not _gone(home, _DRAIN_TIMEOUT_S if agreed else _FROZEN_TIMEOUT_S):
        with contextlib.suppress(ProcessLookupError):
            os.kill(fleet.pid, signal.SIGKILL)  # the supervisor is frozen; its services die with it
        if not _gone(home, _KILL_TIMEOUT_S):
            raise ConfigError(f"the supervisor (process {fleet.pid}) cannot be stopped")
    print("stopped")
    return 0


def _ask(fleet: state.FleetState) -> bool:
    """Ask the supervisor to stop; return whether it agreed."""
    try:
        control.ask(fleet.control, {"command": "down"}, _ASK_TIMEOUT_S)
        return True
    except ConfigError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(fleet.pid, signal.SIGTERM)
        return False


def _gone(home: Home, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while home.is_locked():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
