"""Fleets for benchmarks, started as a user would, by `baton up`, in a BATON_HOME of their own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from baton.errors import BatonError

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 60.0


@contextlib.contextmanager
def started(home: Path, *flags: str) -> Iterator[str]:
    """Start a fleet, yield its endpoint, and stop it afterwards. Raises BatonError if it does not start."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    env |= {"BATON_HOME": str(home), "NO_COLOR": "1"}
    try:
        up = _baton(env, "up", "--detach", "--port", "0", *flags, timeout_s=_START_TIMEOUT_S)
        if up.returncode:
            message = (up.stderr or up.stdout).strip().removeprefix("baton: error: ")
            raise BatonError(f"the fleet did not start: {message[-500:]}")
        yield str(json.loads(_baton(env, "status", "--json", timeout_s=_STOP_TIMEOUT_S).stdout)["endpoint"])
    finally:
        with contextlib.suppress(BatonError):
            _baton(env, "down", timeout_s=_STOP_TIMEOUT_S)


@contextlib.contextmanager
def temporary(*flags: str, model: str = "") -> Iterator[str]:
    """As `started`, in a BATON_HOME that is removed afterwards. Without a `model`, the default one is served."""
    served = ("--model", model) if model else ()
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-") as folder,
        started(Path(folder) / "home", *flags, *served) as endpoint,
    ):
        yield endpoint


def _baton(env: dict[str, str], *args: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleet", *args]
    try:
        return subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise BatonError(f"`baton {args[0]}` took longer than {timeout_s:.0f} s") from None
