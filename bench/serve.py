"""Load on any OpenAI endpoint: closed-loop concurrency, output tokens per second, TTFT, TPOT and ITL.

    python -m bench.serve --url http://127.0.0.1:8000 --concurrency 1 8 32

Prompts are random tokens (no two alike, so no prefix cache helps); answers are greedy and of full length. In front of
Baton it also tells where TTFT goes, from the router's /metrics.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import random
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import _phases
from bench._sse_client import Stream, StreamClient


def main(argv: Sequence[str] | None = None) -> int:
    """Run each concurrency once; exit code 1 where a request failed."""
    args = parse(argv)
    runs = [asyncio.run(measure(args, concurrency)) for concurrency in args.concurrency]
    command = shlex.join(["python", "-m", "bench.serve", *(sys.argv[1:] if argv is None else argv)])
    report = {"machine": machine(), "command": command, "runs": runs}
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")
    print(_table(report))
    return 1 if any(run["failed"] for run in runs) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.serve", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="endpoint without /v1")
    parser.add_argument("--model", default="", help="model name; the first that the endpoint lists")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=0, help="of each concurrency; 0 is four rounds of it")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=4000, help="prompts are drawn from token ids 100 up to it")
    parser.add_argument("--chat", metavar="TEXT", help="ask this by /v1/chat/completions, instead of random tokens")
    parser.add_argument("--timeout-s", type=float, default=300.0)
    parser.add_argument("--seed", type=int, help="of the prompts; without one, each run has its own")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    args.api_key = os.environ.get("BATON_API_KEY", "")
    args.url = args.url.rstrip("/").removesuffix("/v1")
    return args


async def measure(args: argparse.Namespace, concurrency: int) -> dict[str, Any]:
    parts = urlsplit(args.url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    draw = random.Random(args.seed)
    model = args.model or await _first_model(host, port, args)
    bodies = [_body(args, model, draw) for _ in range(args.requests or 4 * concurrency)]
    before = await _phases.read(host, port, args.api_key)
    began, cpu = time.monotonic(), time.process_time()
    streams = await _closed_loop(args, host, port, concurrency, bodies)
    elapsed_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    phases = _phases.between(before, await _phases.read(host, port, args.api_key))
    return {
        "concurrency": concurrency,
        **figures(streams, elapsed_s),
        "client_cpu_s": round(cpu_s, 3),
        "phases_s": phases,
    }


async def _closed_loop(
    args: argparse.Namespace, host: str, port: int, concurrency: int, bodies: list[dict[str, Any]]
) -> list[Stream]:
    """Every worker sends its next request when its last answer has ended."""
    path = "/v1/chat/completions" if args.chat else "/v1/completions"
    streams: list[Stream] = []

    async def work() -> None:
        client, is_used = await StreamClient.connect(host, port), False
        while bodies:
            body = bodies.pop()
            stream = await client.post(path, body, args.api_key, args.timeout_s)
            if is_used and not stream.status:  # servers may close a connection that lies idle
                client = await StreamClient.connect(host, port)
                stream = await client.post(path, body, args.api_key, args.timeout_s)
            streams.append(stream)
            is_used = True
            if not stream.ok:
                client.close()
                client = await StreamClient.connect(host, port)
        client.close()

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return streams


def _body(args: argparse.Namespace, model: str, draw: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "max_tokens": args.output_tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if args.chat:
        return {**body, "messages": [{"role": "user", "content": args.chat}]}
    prompt = [draw.randrange(100, args.vocab_size) for _ in range(args.prompt_tokens)]
    return {**body, "prompt": prompt, "ignore_eos": True}


async def _first_model(host: str, port: int, args: argparse.Namespace) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    head = f"GET /v1/models HTTP/1.0\r\nHost: {host}\r\n"
    head += f"Authorization: Bearer {args.api_key}\r\n" if args.api_key else ""
    writer.write(head.encode() + b"\r\n")
    body = (await asyncio.wait_for(reader.read(), 10.0)).partition(b"\r\n\r\n")[2]
    writer.close()
    return str(json.loads(body)["data"][0]["id"])


def figures(streams: Sequence[Stream], elapsed_s: float) -> dict[str, Any]:
    """What a run amounts to; latencies in seconds."""
    good = [stream for stream in streams if stream.ok]
    gaps = [gap for stream in good for gap in stream.gaps_s]
    return {
        "requests": len(streams),
        "failed": len(streams) - len(good),
        "error": next((f"{s.status} {s.error}".strip() for s in streams if not s.ok), ""),
        "prompt_tokens": sum(s.num_prompt_tokens for s in good),
        "output_tokens_per_s": sum(s.num_output_tokens for s in good) / elapsed_s,
        "ttft_p50_s": percentile([s.ttft_s for s in good], 50),
        "ttft_p99_s": percentile([s.ttft_s for s in good], 99),
        "tpot_p50_s": percentile([s.tpot_s for s in good], 50),
        "itl_p50_s": percentile(gaps, 50),
        "itl_p99_s": percentile(gaps, 99),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"


def _table(report: dict[str, Any]) -> str:
    head = "   c    tok/s  ratio  TTFT p50      p99     TPOT  ITL p50      p99  failed   (ms; ratio to the first line)"
    lines = [report["machine"], report["command"], "", head]
    base = report["runs"][0]["output_tokens_per_s"] or math.nan
    for run in report["runs"]:
        names = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "itl_p50_s", "itl_p99_s")
        ms = [f"{run[name] * 1000:>{9 if i == 0 else 8}.1f}" for i, name in enumerate(names)]
        rate = run["output_tokens_per_s"]
        lines.append(f"{run['concurrency']:>4} {rate:>8.1f} {rate / base:>6.2f} {' '.join(ms)} {run['failed']:>7}")
        if run["phases_s"]:
            split = ", ".join(f"{name} {value * 1000:.1f}" for name, value in run["phases_s"].items())
            lines.append(f"     TTFT is {split} (means)")
        if run["error"]:
            lines.append(f"     first error: {run['error']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
