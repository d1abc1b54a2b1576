"""Compares Baton's router with others, by added time and CPU; each runs on one core before backends without compute.

    baton bench router --sglang-router ~/peers/bin/sglang-router --vllm-router ~/peers/bin/vllm-router

Each router is pinned to the last core; client and backends share the others. Its CPU time is read from /proc. Requests
per second are what one core could carry (1 / CPU per request), because the client and the backends have fewer
cores than they need. Baton's router talks gRPC to a prefill and a decode node, all others HTTP to one
server; both emit a token of each stream every 10 ms. TTFT is measured with one request at a time; the time that a
router adds is TTFT minus the time of its backend when called directly. Routers take turns, and the best round
counts. Measurements that fail are left out and reported.
"""

import argparse
import asyncio
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from baton.errors import BatonError
from baton.process.bounds import whole
from bench import _command
from bench._load.figures import percentile
from bench._load.sse_client import Stream, StreamClient
from bench._machine import machine, processor
from bench._router.direct import node_ttfts
from bench._router.servers import Running, Server, servers
from bench._turns import in_turns

CHAT = "/v1/chat/completions"
TINY = {"model": "mock", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 1, "temperature": 0}
LONG_TOKENS = 30_000
TIMEOUT_S = 60.0
NUM_SINGLE = 300
RAMP_S, STREAMS_S = 3.0, 2.0  # a stream of 600 tokens lasts for 6 s
COLUMNS = {
    "tiny": ("tiny req/s", 1.0),
    "ttft_p50": ("TTFT p50 ms", 1e3),
    "ttft_p99": ("p99 ms", 1e3),
    "added_p50": ("added p50 ms", 1e3),
    "token": ("µs/token", 1e6),
    "tokens_per_s": ("at tok/s", 1.0),
    "long": ("30k µs", 1e6),
}

Figures = dict[str, float]


def main(argv: Sequence[str]) -> int:
    """Measure all that is installed; exit code 1 where a router did not start or a request failed."""
    args = _parse(argv)
    best: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for server in in_turns(servers(args, Path(scratch)), args.rounds):
            _keep_best(best.setdefault(server.name, {}), _measure(server, args))
    command = _command.line("router", argv)
    print(f"{machine()}, {processor()}\n{command}\n\n{_table(best)}\n")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _command.parser("router", __doc__)
    parser.add_argument("--sglang-router", help="path of its executable", metavar="FILE")
    parser.add_argument("--vllm-router", help="path of its executable", metavar="FILE")
    parser.add_argument("--rounds", type=whole(), default=2, help="rounds for each router")
    parser.add_argument(
        "--requests",
        type=whole(100),
        default=3000,
        help="tiny requests per round",  # CPU is counted in steps of 10 ms
    )
    parser.add_argument(
        "--streams", type=whole(1, 10_000), default=250, help="concurrent streams of 100 tokens a second each"
    )
    parser.add_argument("--stream-tokens", type=whole(), default=600, help="length of these streams")
    return parser.parse_args(argv)


def _measure(server: Server, args: argparse.Namespace) -> Figures:
    with Running(server) as running:
        return asyncio.run(_drive(server, psutil.Process(running.pid), args))


async def _drive(server: Server, router: psutil.Process, args: argparse.Namespace) -> Figures:
    port = server.port
    await _requests(port, 16, 200, TINY)  # warm
    await asyncio.sleep(0.5)
    cpu_s = _cpu_s(router)
    await _requests(port, 16, args.requests, TINY)
    figures = {"tiny": args.requests / (_cpu_s(router) - cpu_s)}
    for measured in (_first_tokens(server), _streams(port, router, args), _long(port, router)):
        try:
            figures |= await measured
        except BatonError as error:  # for example, not every router accepts token ids
            if server.name == "baton":
                raise
            sys.stderr.write(f"{server.name}: {error}\n")
    return figures


async def _first_tokens(server: Server) -> Figures:
    ttfts = await _ttfts(server.port)
    kind, _, where = server.backend.partition("://")
    direct = await (_ttfts(int(where)) if kind == "http" else node_ttfts(server.backend, NUM_SINGLE))
    median = percentile(ttfts, 50)
    return {"ttft_p50": median, "ttft_p99": percentile(ttfts, 99), "added_p50": median - percentile(direct, 50)}


async def _ttfts(port: int) -> list[float]:
    single = await _requests(port, 1, NUM_SINGLE, {**TINY, "stream": True, "max_tokens": 2})
    return [stream.ttft_s for stream in single]


async def _streams(port: int, router: psutil.Process, args: argparse.Namespace) -> Figures:
    """Return the CPU per token while all streams run: after the last one has begun, before the first one ends.

    If a router takes longer than RAMP_S to begin them, the rest of the start is counted too.
    """
    body = {**TINY, "stream": True, "max_tokens": args.stream_tokens}
    clients = [await StreamClient.connect("127.0.0.1", port) for _ in range(args.streams)]
    posts = [asyncio.create_task(client.post(CHAT, body, "", TIMEOUT_S)) for client in clients]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RAMP_S):
            while not all(client.stream.times for client in clients):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    cpu_s, began_s = _cpu_s(router), time.monotonic()
    await asyncio.wait(posts, timeout=STREAMS_S, return_when=asyncio.FIRST_COMPLETED)
    spent_s, ended_s = _cpu_s(router) - cpu_s, time.monotonic()
    streams = await asyncio.gather(*posts)
    for client, stream in zip(clients, streams, strict=True):
        client.close()
        if not stream.ok:
            raise BatonError(stream.error or f"status {stream.status}")
    num_tokens = sum(began_s <= at < ended_s for stream in streams for at in stream.times)
    if not num_tokens:
        return {}
    return {"token": spent_s / num_tokens, "tokens_per_s": num_tokens / (ended_s - began_s)}


async def _long(port: int, router: psutil.Process) -> Figures:
    """Return the CPU of a prompt of LONG_TOKENS token ids, minus that of a tiny one; nothing is tokenized."""
    costs = []
    for num_tokens in (8, LONG_TOKENS):
        prompts: list[dict[str, Any]] = [
            {"model": "mock", "prompt": [1 + (i + at) % 2 for at in range(num_tokens)], "max_tokens": 1}
            for i in range(2)
        ]
        await _requests(port, 1, 2, prompts[0], "/v1/completions")
        cpu_s = _cpu_s(router)
        await _requests(port, 2, 200, prompts[1], "/v1/completions")
        costs.append((_cpu_s(router) - cpu_s) / 200)
    return {"long": costs[1] - costs[0]} if costs[1] > costs[0] else {}  # CPU is counted in steps of 10 ms


async def _requests(
    port: int, concurrency: int, num_requests: int, body: dict[str, Any], path: str = CHAT
) -> list[Stream]:
    """Send requests over several connections. Raises BatonError if one fails."""
    left, done = num_requests, []

    async def client() -> None:
        nonlocal left
        connection = await StreamClient.connect("127.0.0.1", port)
        while left > 0:
            left -= 1
            stream = await connection.post(path, body, "", TIMEOUT_S)
            if stream.error == "the server closed the connection":  # some routers do, after each stream
                connection = await StreamClient.connect("127.0.0.1", port)
                stream = await connection.post(path, body, "", TIMEOUT_S)
            if stream.status != 200 or (body.get("stream") and not stream.ok):
                raise BatonError(stream.error or f"status {stream.status}")
            done.append(stream)
        connection.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return done


def _cpu_s(router: psutil.Process) -> float:
    total = 0.0
    for process in (router, *router.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def _keep_best(best: Figures, new: Figures) -> None:
    for name, value in new.items():
        larger = name in ("tiny", "tokens_per_s")
        best[name] = (max if larger else min)(value, best.get(name, value))


def _table(best: dict[str, Figures]) -> str:
    lines = ["router        " + "".join(f"{title:>13}" for title, _ in COLUMNS.values())]
    for name, figures in best.items():
        cells = (figures.get(column, math.nan) * scale for column, (_, scale) in COLUMNS.items())
        lines.append(f"{name:<14}" + "".join(map(_cell, cells)))
    ours = best.get("baton", {})
    for name, figures in best.items():
        if name != "baton":
            shown = (
                f"{figures[c] / ours[c] if c != 'tiny' else ours[c] / figures[c]:>12.2f}x"
                if c in figures and c in ours and c != "tokens_per_s" and figures[c] > 0 and ours[c] > 0
                else f"{'–':>13}"
                for c in COLUMNS
            )
            lines.append(f"better than {name}: ".ljust(14) + "".join(shown))
    return "\n".join(lines)


def _cell(value: float) -> str:
    if math.isnan(value):
        return f"{'–':>13}"
    return f"{value:>13.3f}" if value < 10 else f"{value:>13.0f}"
