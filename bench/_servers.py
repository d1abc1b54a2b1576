"""Waits for servers that a benchmark starts, and stops them."""

import subprocess
import time
import urllib.request

from baton.errors import BatonError

Process = subprocess.Popen[bytes]


def wait_until_ready(name: str, process: Process, asked: str | urllib.request.Request, within_s: float) -> None:
    """Wait until it answers an HTTP request. Raises BatonError if it ends or takes too long."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise BatonError(f"{name} ended with exit code {process.returncode} instead of serving")
        try:
            with urllib.request.urlopen(asked, timeout=5):  # noqa: S310
                return
        except OSError:  # HTTPError is a subclass
            time.sleep(0.2)
    raise BatonError(f"{name} did not start within {within_s:.0f} s")


def end(processes: list[Process], within_s: float) -> None:
    """Terminate the processes, last one first; kill those that do not end in time."""
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
