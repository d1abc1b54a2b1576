"""Buffers of the size that long prompts need come from memory that the process already has."""

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
    buffers = [b"x" * int(sys.argv[2]) for _ in range(16)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _num_faults(how: str, num_bytes: int) -> int:
    command = [sys.executable, "-c", _PROMPTS, how, str(num_bytes)]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=20).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize("num_bytes", [120_000, 4_000_000], ids=["ids of a long prompt", "a large body"])
def test_memory_that_is_used_again_stays(num_bytes: int) -> None:
    assert _num_faults("unsettled", num_bytes) > 20 * 100, "the measure shows nothing"
    assert _num_faults("settled", num_bytes) < 100
