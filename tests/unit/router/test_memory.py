"""Buffers as long prompts need them, from memory that the process already has."""

import platform
import subprocess
import sys

import pytest

_PROMPTS = """
import resource, sys
from router import memory
if sys.argv[1] == "settled":
    memory.settle()
for round in range(40):
    if round == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [b"x" * 120_000 for _ in range(16)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _num_faults(how: str) -> int:
    command = [sys.executable, "-c", _PROMPTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=20).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_that_is_used_again_stays() -> None:
    assert _num_faults("unsettled") > 20 * 100, "the measure shows nothing"
    assert _num_faults("settled") < 100
