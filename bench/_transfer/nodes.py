"""The receiving end of measured transfers, and, run as a module, the sending process."""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import psutil
import torch
import uvloop

from baton.kv.layout import KVLayout
from baton.net import rpc
from baton.v1 import transfer_pb2
from bench._transfer.ways import Child, Round, cpu, helpers, send_over_socket
from kernels.cpu.memory import huge_pages
from kv_transfer.pool import Pool
from kv_transfer.pools import pool_of
from kv_transfer.receiver import KVReceiver
from kv_transfer.sender import KVSender
from kv_transfer.service import add_transfer_service

LAYOUT = KVLayout(  # one layer group with blocks of 64 KiB
    num_layers=1,
    layers_per_group=1,
    block_size=16,
    num_kv_heads=8,
    head_dim=128,
    dtype="bfloat16",
    model_fingerprint="00",
)
_TIMEOUT_S = 60.0
_T = TypeVar("_T")


def transfers(child: Child, way: str, total: int, size: int, rounds: int, device: str) -> list[Round]:
    """Run transfers of `total` bytes over one transport in messages of `size`, on the event loop that nodes use."""
    return _run(_receive(child, way, total, size, rounds, device))


async def _receive(child: Child, way: str, total: int, size: int, rounds: int, device: str) -> list[Round]:
    """Receive from the child, which acts as prefill node. The first transfer connects, and is not counted."""
    settle()
    num_blocks = total // LAYOUT.block_bytes
    pool = _pool(total, device)
    receiver = KVReceiver(pool, "decode", 1, "127.0.0.1", way, max_message_bytes=size)
    server = rpc.server()
    add_transfer_service(receiver, server)
    receiver.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    await receiver.start()
    child.ask(way=way, total=total, device=device)
    try:
        await _transfer(child, receiver, num_blocks, [])
        working = helpers()
        measured = [await _transfer(child, receiver, num_blocks, working) for _ in range(rounds)]
        child.ask()
        await asyncio.to_thread(child.wait)
    finally:
        await receiver.close()
        await server.stop(None)
        pool.close()
    return measured


async def _transfer(child: Child, receiver: KVReceiver, num_blocks: int, working: Sequence[psutil.Process]) -> Round:
    incoming = receiver.grant(list(range(num_blocks)), 0, "prefill", 1, _TIMEOUT_S, b"")
    wall_s, cpu_s = time.perf_counter(), cpu(working)
    child.ask(grant=incoming.grant.SerializeToString().hex())
    await incoming.committed()
    wall_s = time.perf_counter() - wall_s
    return Round(wall_s, cpu(working) - cpu_s + await asyncio.to_thread(child.wait))


async def _send(way: str, total: int, device: str) -> None:
    """Send one transfer per grant, until there are no more grants."""
    settle()
    pool = _pool(total, device)
    sender = KVSender(pool, "prefill", 1, way, "")
    working: list[psutil.Process] | None = None
    while task := json.loads(await asyncio.to_thread(sys.stdin.readline)):
        grant = transfer_pb2.Grant.FromString(bytes.fromhex(task["grant"]))
        cpu_s = cpu(working or ())
        outgoing = sender.open(grant, list(range(pool.num_blocks)))
        outgoing.ready(0, pool.num_blocks)
        await outgoing.commit(0, b"", 0, _TIMEOUT_S)
        working = helpers() if working is None else working  # found during the uncounted transfer
        print(cpu(working) - cpu_s, flush=True)
    await sender.close()
    pool.close()
    print(0.0, flush=True)


def _pool(num_bytes: int, device: str) -> Pool:
    """Return a KV pool as in nodes, with every page touched."""
    buffer = huge_pages(num_bytes) if device == "cpu" else torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return pool_of(buffer.fill_(1), LAYOUT, num_bytes // LAYOUT.block_bytes)


def settle() -> None:
    """Freeze loaded objects for the garbage collector, as in nodes; collect first, to free earlier transfers' pools."""
    gc.collect()
    gc.freeze()


def _run(main: Coroutine[Any, Any, _T]) -> _T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _main() -> None:
    """Run the child: socket rounds, or a prefill node."""
    while line := sys.stdin.readline():
        task = json.loads(line)
        if task["way"] == "socket":
            send_over_socket(**{key: task[key] for key in ("port", "total", "size")})
        else:
            _run(_send(task["way"], task["total"], task["device"]))


if __name__ == "__main__":
    _main()
