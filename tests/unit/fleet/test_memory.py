import os

import psutil
import pytest

from fleet.chaos.memory import Memory
from fleet.loadtest.site import LocalSite
from fleet.loadtest.watch import MemoryWatch
from fleet.memory import growth, resident_bytes
from fleet.state import ProcessState

MIB = 2.0**20
GROWING = [(200 + 10 * i) * MIB for i in range(12)]


@pytest.mark.parametrize(
    ("sizes_mib", "is_too_much"),
    [
        ([100] * 12, False),
        ([50] * 3 + [200] * 9, False),  # it grew only while warming up
        ([100 + 10 * i for i in range(6)] + [180 + i % 3 for i in range(18)], False),
        ([200 + 10 * i for i in range(12)], True),
        ([200 + i for i in range(12)], False),  # by 4 %
        ([100 + 2 * i for i in range(12)], False),  # by 12 %, and 12 MiB
        ([1000 + 5 * i for i in range(12)], False),  # by 30 MiB, and 3 %
    ],
)
def test_growing_memory_is_distinguished_from_filling_caches(sizes_mib: list[int], is_too_much: bool):
    found = growth([size * MIB for size in sizes_mib])
    assert found is not None
    assert found.is_too_much is is_too_much


def test_a_short_lived_incarnation_is_not_judged():
    assert growth([100.0, 900.0] * 5) is None


def test_each_incarnation_is_judged_separately():
    memory = Memory()
    memory.samples["decode-0", 1] = [100 * MIB] * 12
    memory.samples["decode-0", 2] = [300 * MIB] * 12
    memory.samples["decode-1", 3] = GROWING
    assert memory.described()[:2] == ["decode-0: 100 MiB, at the end 100 MiB", "decode-0: 300 MiB, at the end 300 MiB"]
    assert memory.grown() == ["decode-1 grew from 240 MiB to 300 MiB"]


def test_a_service_that_grew_too_much_is_the_worst():
    watch = MemoryWatch(LocalSite(Fleet([])), 10.0)
    assert watch.worst_growth() is None
    watch.samples = {"large": GROWING, "small": [MIB] * 6 + [2 * MIB] * 6}
    name, _ = watch.worst_growth() or ("", None)
    assert name == "large"


class Fleet:
    endpoint = "http://127.0.0.1:1"

    def __init__(self, services):
        self.services = lambda: services


def test_memory_includes_living_children():
    gone = max(psutil.pids()) + 1_000_000
    services = [
        ProcessState(name, "router", pid, "ready") for name, pid in (("me", os.getpid()), ("no", None), ("gone", gone))
    ]
    memory = Memory()
    memory.sample(services)
    ((_, (sample,)),) = memory.samples.items()
    found = LocalSite(Fleet(services)).memory_bytes()
    assert list(found) == ["me"]
    assert min(sample, found["me"], resident_bytes(os.getpid())) > 10 * MIB
