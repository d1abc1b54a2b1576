"""Sends hostile bodies to an endpoint at a low priority: `python -m bench._hostile.attacker HOST PORT MODEL RATE`.

Besides, it keeps a hundred connections open whose headers never end. It says that it is ready by an empty line, runs
until it is terminated, and prints how many of its bodies got which status (0: the connection was cut).
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter

from baton.process.tasks import wait
from bench._hostile.bodies import Attack, attacks

NICENESS = 19
NUM_SLOW, SLOW_S = 100, 1.0


async def main(host: str, port: int, model: str, rate: float) -> None:
    """Attack until SIGTERM."""
    statuses: Counter[int] = Counter()
    bodies = attacks(model)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    tasks = {asyncio.create_task(_never_end(host, port)) for _ in range(NUM_SLOW)}
    attack = next(bodies)  # builds them all
    print(flush=True)
    while not ended.is_set():
        tasks.add(asyncio.create_task(_send(host, port, attack, statuses)))
        attack = next(bodies)
        await wait(ended, 1 / rate)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(statuses))


async def _send(host: str, port: int, attack: Attack, statuses: Counter[int]) -> None:
    path, body = attack
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = b""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
    statuses[int(answer[9:12] or 0)] += 1


async def _never_end(host: str, port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /health HTTP/1.1\r\n")
                while not writer.is_closing():
                    await asyncio.sleep(SLOW_S)
                    writer.write(b"A: b\r\n")
                    await writer.drain()
            finally:
                writer.close()


if __name__ == "__main__":
    os.nice(NICENESS)
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
