"""Reading another process's memory: any runs into any runs, and an error if there is nothing to read."""

import os
import random
import signal
import subprocess
import sys

import pytest

from kv_transfer.shm import process_memory
from kv_transfer.shm.process_memory import read, runs_of

CHILD = """
import random, sys
from kv_transfer.shm.process_memory import runs_of
memory = bytearray(random.Random(1).randbytes(3 * 2**20))
print(runs_of([memoryview(memory)])[0][0], flush=True)
sys.stdin.read()
"""
SIZE = 3 * 2**20


@pytest.fixture(scope="module")
def child():
    """(pid, address of SIZE random bytes)"""
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process.pid, int(process.stdout.readline())
    process.communicate()


@pytest.mark.parametrize("seed", range(5))
def test_any_runs_are_copied_into_any_runs(child, seed):
    """However both sides are split, the pieces come in order, and together they are everything."""
    pid, address = child
    random_ = random.Random(seed)
    expected = random.Random(1).randbytes(SIZE)
    source, gathered, left = [], b"", SIZE // 2
    while left:
        length = min(left, random_.choice([1, 100, 5000, 2**20]))
        start = random_.randrange(SIZE - length)
        source.append((address + start, length))
        gathered += expected[start : start + length]
        left -= length
    target = memoryview(bytearray(SIZE // 2 + 2))
    inner, cuts = target[1:-1], sorted(random_.sample(range(1, SIZE // 2), 1500))
    views = [inner[a:b] for a, b in zip([0, *cuts], [*cuts, SIZE // 2], strict=True)]
    pieces = [part for parts in read(pid, source, views) for part in parts]
    assert bytes(target) == b"\0" + gathered + b"\0"
    assert b"".join(pieces) == gathered


def test_reading_unmapped_memory_is_an_error(child):
    pid, address = child
    with pytest.raises(OSError, match="Bad address"):
        list(read(pid, [(8, 100)], [memoryview(bytearray(100))]))
    with pytest.raises(OSError, match="Bad address"):
        list(read(pid, [(address, 50), (8, 50)], [memoryview(bytearray(100))]))


def test_reading_an_ended_process_is_an_error():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(OSError, match="No such process"):
        list(read(gone.pid, [(8, 8)], [memoryview(bytearray(8))]))


def test_a_frozen_process_can_be_read(child):
    """This is why a copy never waits for the other side."""
    pid, address = child
    os.kill(pid, signal.SIGSTOP)
    try:
        target = memoryview(bytearray(1000))
        list(read(pid, [(address, 1000)], [target]))
        assert bytes(target) == random.Random(1).randbytes(SIZE)[:1000]
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_read_only_view_has_an_address_too():
    assert runs_of([memoryview(b"abc")])[0][1] == 3


def test_siblings_are_allowed_to_ptrace_only_under_yama(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(process_memory, "_YAMA", tmp_path / "ptrace_scope")
    prctl = lambda *args: calls.append([getattr(arg, "value", arg) for arg in args])  # noqa: E731
    monkeypatch.setattr(process_memory._libc, "prctl", prctl)
    process_memory.allow_siblings()
    (tmp_path / "ptrace_scope").write_text("0\n")
    process_memory.allow_siblings()
    assert calls == []
    (tmp_path / "ptrace_scope").write_text("1\n")
    process_memory.allow_siblings()
    assert calls == [[0x59616D61, os.getppid(), 0, 0, 0]]
