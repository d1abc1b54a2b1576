"""KV transfers between two processes of this machine, beside what anyone knows: memcpy and a plain blocking socket.

    python -m bench.transfer [--megabytes 256] [--rounds 3]

A round moves the same bytes in messages of one size. Baton's figures are of whole transfers: grant, messages, digests
on both sides, commit. CPU seconds are of both processes together.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import uvloop

from baton import rpc
from baton.kv_layout import KVLayout
from baton.v1 import transfer_pb2
from kv_transfer import KVPool, KVReceiver, KVSender, choose

SIZES = [2**16, 2**18, 2**20, 2**22, 2**24, 2**26]
WAYS = ["memcpy", "socket", "tcp", "ucx"]
LAYOUT = KVLayout(  # 64 KiB for one block of the one layer group
    num_layers=1,
    layers_per_group=1,
    block_size=16,
    num_kv_heads=8,
    head_dim=128,
    dtype="bfloat16",
    model_fingerprint="00",
)
TIMEOUT_S = 60.0


class Round(NamedTuple):
    """What one round took."""

    wall_s: float
    cpu_s: float


def memcpy(total: int, size: int) -> Round:
    """Copies between two buffers of `total` bytes, `size` at a time."""
    source, target = np.ones(total, np.uint8), np.zeros(total, np.uint8)
    target[:] = source  # touch every page
    wall_s, cpu_s = time.perf_counter(), cpu()
    for start in range(0, total, size):
        target[start : start + size] = source[start : start + size]
    return Round(time.perf_counter() - wall_s, cpu() - cpu_s)


def blocking_socket(child: "Child", total: int, size: int) -> Round:
    """The child sends, this process receives into one buffer."""
    buffer = memoryview(bytearray(b"\x02") * total)  # every page touched
    with socket.create_server(("127.0.0.1", 0)) as server:
        child.ask(way="socket", port=server.getsockname()[1], total=total, size=size)
        connection, _ = server.accept()
        with connection:
            child.wait()  # it is connected, and its memory touched
            wall_s, cpu_s = time.perf_counter(), cpu()
            child.ask()
            for start in range(0, total, size):
                receive_exactly(connection, buffer[start : start + size])
            wall_s = time.perf_counter() - wall_s
            return Round(wall_s, cpu() - cpu_s + child.wait())


async def baton(child: "Child", way: str, total: int, size: int, rounds: int) -> list[Round]:
    """The child is the prefill node, this process the decode node; the first transfer connects and is not counted."""
    num_blocks = total // LAYOUT.block_bytes
    pool = KVPool(torch.zeros(total, dtype=torch.uint8), LAYOUT, num_blocks)
    receiver = KVReceiver(pool, "decode", 1, "127.0.0.1", way, max_message_bytes=size)
    server = rpc.server()
    receiver.add_to(server)
    receiver.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    await receiver.start()
    child.ask(way=way, total=total)
    measured = []
    for _ in range(rounds + 1):
        incoming = receiver.grant(list(range(num_blocks)), 0, "prefill", 1, TIMEOUT_S, b"")
        wall_s, cpu_s = time.perf_counter(), cpu()
        child.ask(grant=incoming.grant.SerializeToString().hex())
        await incoming.committed()
        wall_s = time.perf_counter() - wall_s
        measured.append(Round(wall_s, cpu() - cpu_s + await asyncio.to_thread(child.wait)))
    child.ask()
    await asyncio.to_thread(child.wait)
    await receiver.close()
    await server.stop(None)
    return measured[1:]


class Child:
    """The sending process: told what to do in lines of JSON, answers each with its CPU seconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.transfer", "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **what: Any) -> None:
        """One line to the child."""
        assert self._process.stdin is not None  # noqa: S101
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def wait(self) -> float:
        """Its answer."""
        assert self._process.stdout is not None  # noqa: S101
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def child_main() -> None:
    """What the child does: socket rounds, or a prefill node."""
    while line := sys.stdin.readline():
        task = json.loads(line)
        if task["way"] == "socket":
            send_over_socket(**{key: task[key] for key in ("port", "total", "size")})
        else:
            uvloop.run(send_transfers(task["way"], task["total"]))


def send_over_socket(port: int, total: int, size: int) -> None:
    """`total` bytes with `sendall`, when told to."""
    buffer = memoryview(bytearray(b"\x01") * total)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with answering():
            pass
        sys.stdin.readline()
        with answering():
            for start in range(0, total, size):
                connection.sendall(buffer[start : start + size])


async def send_transfers(way: str, total: int) -> None:
    """One whole transfer per grant, until there is none."""
    pool = KVPool(torch.ones(total, dtype=torch.uint8), LAYOUT, total // LAYOUT.block_bytes)
    sender = KVSender(pool, "prefill", 1, way, "")
    while task := json.loads(await asyncio.to_thread(sys.stdin.readline)):
        grant = transfer_pb2.Grant.FromString(bytes.fromhex(task["grant"]))
        with answering():
            outgoing = sender.open(grant, list(range(pool.num_blocks)))
            outgoing.ready(0, pool.num_blocks)
            await outgoing.commit(0, b"", 0, TIMEOUT_S)
    await sender.close()
    with answering():
        pass


@contextmanager
def answering() -> Iterator[None]:
    """Answer with the CPU seconds of the block."""
    cpu_s = cpu()
    yield
    print(cpu() - cpu_s, flush=True)


def receive_exactly(connection: socket.socket, view: memoryview) -> None:
    """Fill the view."""
    while view:
        view = view[connection.recv_into(view) :]


def cpu() -> float:
    """CPU seconds of this process so far."""
    used = os.times()
    return used.user + used.system


def measure(child: Child, total: int, size: int, rounds: int) -> dict[str, Round]:
    """The median round of each way, all in turn."""
    ways: dict[str, Callable[[], list[Round]]] = {
        "memcpy": lambda: [memcpy(total, size) for _ in range(rounds)],
        "socket": lambda: [blocking_socket(child, total, size) for _ in range(rounds)],
        "tcp": lambda: run(baton(child, "tcp", total, size, rounds)),
    }
    if choose("auto")[0] == "ucx":
        ways["ucx"] = lambda: run(baton(child, "ucx", total, size, rounds))
    return {way: statistics.median_low(sorted(measured())) for way, measured in ways.items()}


def run(main: Coroutine[Any, Any, list[Round]]) -> list[Round]:
    """`main`, on the loop that nodes use."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def main() -> None:
    """Prints one row per message size: GB/s (and CPU seconds per GB), then Baton's ratio to the socket."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256, help="moved in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child_main()
    total = args.megabytes * 2**20
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    )
    print(f"python -m bench.transfer --megabytes {args.megabytes} --rounds {args.rounds}\n")
    print("GB/s (CPU s/GB) | " + " | ".join(WAYS) + " | tcp/socket | ucx/socket | ucx/memcpy")
    print("|".join(["---"] * (len(WAYS) + 4)))
    child = Child()
    for size in SIZES:
        found = measure(child, total, size, args.rounds)
        cells = [f"{total / 1e9 / r.wall_s:.2f} ({r.cpu_s / (total / 1e9):.2f})" for r in found.values()]
        ratios = [found[b].wall_s / found[a].wall_s for a, b in RATIOS if a in found]
        print(" | ".join([f"{size // 1024} KiB", *cells, *(f"{ratio:.2f}" for ratio in ratios)]), flush=True)
    return child.close()


RATIOS = [("tcp", "socket"), ("ucx", "socket"), ("ucx", "memcpy")]


if __name__ == "__main__":
    main()
