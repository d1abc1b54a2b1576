"""What transfers are compared with: memcpy, and, between two processes, a blocking socket and ucx_perftest."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from baton.errors import BatonError
from kernels.cpu.memory import huge_pages

_TIMEOUT_S = 60.0
_PERFTEST_ENV = {  # by way
    "ucx_perftest shm": {"UCX_TLS": "posix,cma,self"},
    "ucx_perftest tcp": {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo", "UCX_RNDV_SCHEME": "put_zcopy"},
}
PERFTESTS = tuple(_PERFTEST_ENV)
_SENDERS: set[int] = set()  # processes that report their own CPU time


class Round(NamedTuple):
    """The time of one round; CPU seconds of both processes together."""

    wall_s: float
    cpu_s: float


class Child:
    """The sending process. It gets commands as lines of JSON, and answers each with its CPU seconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench._transfer.nodes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        _SENDERS.add(self._process.pid)

    def ask(self, **what: Any) -> None:
        """Send a command to the child."""
        assert self._process.stdin is not None  # noqa: S101
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def wait(self) -> float:
        """Wait for the child's answer."""
        assert self._process.stdout is not None  # noqa: S101
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the child."""
        self._process.communicate()


def memory(num_bytes: int, value: int) -> np.ndarray:
    """Return bytes in huge pages, like a KV pool, with every page touched."""
    return huge_pages(num_bytes).fill_(value).numpy()


def memcpy(total: int, size: int) -> Round:
    """Copy between two buffers of `total` bytes, `size` at a time."""
    source, target = memory(total, 1), memory(total, 2)
    wall_s, cpu_s = time.perf_counter(), cpu()
    for start in range(0, total, size):
        target[start : start + size] = source[start : start + size]
    return Round(time.perf_counter() - wall_s, cpu() - cpu_s)


def device_copy(total: int, size: int) -> Round:
    """Copy between two buffers of `total` bytes on the GPU, `size` at a time."""
    source, target = (torch.full((total,), value, dtype=torch.uint8, device="cuda") for value in (1, 2))
    torch.cuda.synchronize()
    wall_s, cpu_s = time.perf_counter(), cpu()
    for start in range(0, total, size):
        target[start : start + size].copy_(source[start : start + size])
    torch.cuda.synchronize()
    return Round(time.perf_counter() - wall_s, cpu() - cpu_s)


def blocking_socket(child: Child, total: int, size: int) -> Round:
    """Receive into one buffer what the other process sends."""
    buffer = memory(total, 2).data
    with socket.create_server(("127.0.0.1", 0)) as server:
        child.ask(way="socket", port=server.getsockname()[1], total=total, size=size)
        connection, _ = server.accept()
        with connection:
            child.wait()  # until it has connected and touched its memory
            wall_s, cpu_s = time.perf_counter(), cpu()
            child.ask()
            for start in range(0, total, size):
                _receive_exactly(connection, buffer[start : start + size])
            wall_s = time.perf_counter() - wall_s
            return Round(wall_s, cpu() - cpu_s + child.wait())


def send_over_socket(port: int, total: int, size: int) -> None:
    """Send `total` bytes with `sendall`, when told to; runs in the other process."""
    buffer = memory(total, 1).data
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(0.0, flush=True)
        sys.stdin.readline()
        cpu_s = cpu()
        for start in range(0, total, size):
            connection.sendall(buffer[start : start + size])
        print(cpu() - cpu_s, flush=True)


def why_no_perftest() -> str:
    """Return why ucx_perftest cannot be run, or an empty string."""
    return "" if _perftest() else "ucx_perftest is not installed: it comes with ucxx (libucx)"


def ucx_perftest(way: str, total: int, size: int) -> Round:
    """Run UCX's own bandwidth test with tag messages, without digests; CPU seconds include its start."""
    program = _perftest()
    env = {**os.environ, **_PERFTEST_ENV[way], "LD_LIBRARY_PATH": str(Path(program).parents[1] / "lib")}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["-p", str(port), "-t", "tag_bw", "-s", str(size), "-n", str(total // size), "-w", "4", "-f", "-v"]
    before = os.times()
    server = subprocess.Popen([program, *flags], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        megabytes_per_s = _client(program, flags, env)
        server.wait(_TIMEOUT_S)
    finally:
        server.kill()
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Round(total / 2**20 / megabytes_per_s, used)


def helpers() -> list[psutil.Process]:
    """Return this process's helpers, because UCX may run in a child process. Takes milliseconds."""
    return [child for child in psutil.Process().children() if child.pid not in _SENDERS]


def cpu(of: Sequence[psutil.Process] = ()) -> float:
    """Return the CPU seconds of this process and of its helpers so far."""
    times = [process.cpu_times() for process in of]
    return time.process_time() + sum(each.user + each.system for each in times)


def _client(program: str, flags: list[str], env: dict[str, str]) -> float:
    """Run the client once the server listens; return MB/s."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while True:
        done = subprocess.run(
            [program, "127.0.0.1", *flags], env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        last = done.stdout.strip().rpartition("\n")[2].split(",")
        if done.returncode == 0 and len(last) > 5:
            return float(last[5])  # bandwidth, overall
        if time.monotonic() > deadline_s:
            raise BatonError(f"ucx_perftest failed: {done.stderr.strip()[-500:]}")
        time.sleep(0.05)


def _perftest() -> str:
    spec = importlib.util.find_spec("libucx")
    folders = (spec.submodule_search_locations or []) if spec else []
    programs = (f"{folder}/bin/ucx_perftest" for folder in folders)
    return next((program for program in programs if os.access(program, os.X_OK)), "")


def _receive_exactly(connection: socket.socket, view: memoryview) -> None:
    while view:
        view = view[connection.recv_into(view) :]
