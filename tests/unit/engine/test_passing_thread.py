import os
import subprocess
import sys
import threading

import pytest

from engine import passing_thread


def test_returns_the_result_or_error_of_the_function_and_ends_the_thread():
    assert passing_thread.run(lambda: threading.current_thread().name) == "load"
    with pytest.raises(ZeroDivisionError):
        passing_thread.run(lambda: 1 / 0)
    assert "load" not in {thread.name for thread in threading.enumerate()}


def test_openmp_workers_end_with_their_thread():
    """Otherwise there would be more workers than cores, and steps would be slow."""
    script = """
import os, sys, time, torch
from engine import passing_thread
torch.set_num_threads(2)
def threads():
    return len(os.listdir("/proc/self/task"))
def compute():
    torch.ones(2**20).exp()
    return threads()
before = threads()
during = passing_thread.run(compute)
deadline = time.monotonic() + 20
while threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
sys.exit(not (during >= before + 2 and threads() == before))
"""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    assert subprocess.run([sys.executable, "-c", script], env=os.environ, timeout=60).returncode == 0


def test_openmp_workers_sleep_soon_unless_configured_otherwise():
    script = "import os, engine; print(os.environ['GOMP_SPINCOUNT'])"
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    said = [
        subprocess.run([sys.executable, "-c", script], env=env | more, capture_output=True, text=True).stdout.strip()
        for more in ({}, {"GOMP_SPINCOUNT": "7"})
    ]
    assert said == ["5000", "7"]
