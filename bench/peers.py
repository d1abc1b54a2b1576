"""Compares Baton with other servers on the same cores, by tokens per second over HTTP.

    baton bench peers --vllm ~/vllm/bin/vllm --llama-server ~/llama.cpp/build/bin/llama-server --gguf llama-107m.gguf

Every server has all cores, the same bf16 model (a random 107M Llama, or --model) and the same client. Waves: 1, 8 or
32 requests at once with 128 random tokens in and 64 out, greedy, one server after another; the best round counts.
Prompts: single prompts of 512 and 2048 tokens, with all servers running, sent to them in turns so that a slow minute
affects all; the median counts. transformers runs in this process, without HTTP.
"""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.process.bounds import whole
from bench import _command, _servers, serve
from bench._machine import free_port, machine
from bench._turns import in_turns
from engine import random_checkpoint

START_TIMEOUT_S = 300.0
WAVES = (1, 8, 32)
PROMPTS = (512, 2048)
PROMPT_TURNS = 25
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64

Figures = dict[str, float]  # column -> tokens per second


@dataclass(frozen=True)
class Server:
    """A server of the model: its command, or none for transformers."""

    name: str
    command: tuple[str, ...]
    port: int
    environment: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Measure all that is installed; return 1 if a server did not start or a request failed."""
    args = _parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or str(random_checkpoint.write(Path(scratch) / "llama-107m", random_checkpoint.LLAMA_107M))
        servers = _installed(args, model, scratch)
        best: dict[str, Figures] = {server.name: {} for server in servers}
        for server in in_turns(servers, args.rounds):
            for column, value in _waves(server, model).items():
                best[server.name][column] = max(value, best[server.name].get(column, 0.0))
        for name, figures in _prompts(servers, model).items():
            best[name] |= figures
    print(f"{machine()}\n{_command.line('peers', argv)}\n")
    print(_table(best))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _command.parser("peers", __doc__)
    parser.add_argument("--model", help="checkpoint (default: a random 107M Llama)")
    parser.add_argument("--vllm", help="vLLM's executable, with its CPU backend", metavar="FILE")
    parser.add_argument("--llama-server", help="llama.cpp's server executable", metavar="FILE")
    parser.add_argument("--gguf", help="the same model in bf16, for llama.cpp", metavar="FILE")
    parser.add_argument("--rounds", type=whole(), default=2, help="rounds for each server")
    args = parser.parse_args(argv)
    if bool(args.llama_server) != bool(args.gguf):
        parser.error("--llama-server and --gguf must be given together")
    return args


def _installed(args: argparse.Namespace, model: str, scratch: str) -> list[Server]:
    cores = sorted(os.sched_getaffinity(0))
    threads, port = str(len(cores)), free_port()
    up = ("baton", "up", "--colocated", "--model", model, "--port", str(port), "--log-level", "error")
    servers = [Server("baton", (sys.executable, "-m", "fleet", *up[1:]), port, {"BATON_HOME": f"{scratch}/home"})]
    if args.vllm:
        flags = ("--dtype", "bfloat16", "--max-model-len", "4096", "--no-enable-prefix-caching")
        bind = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_CPU_KVCACHE_SPACE": "2"}
        port = free_port()
        servers.append(Server("vllm", (args.vllm, "serve", model, "--port", str(port), *flags), port, bind))
    if args.llama_server:
        slots = str(max(WAVES))
        port = free_port()
        context = str(max(WAVES) * max(PROMPTS) * 2)
        slotted = ("-m", args.gguf, "-t", threads, "-np", slots, "-c", context, "--no-webui", "--port", str(port))
        servers.append(Server("llama.cpp", (args.llama_server, *slotted), port))
    if find_spec("transformers"):
        servers.append(Server("transformers", (), 0))
    return servers


def _waves(server: Server, model: str) -> Figures:
    if not server.command:
        run = _transformers(model)
        return {f"c{n}": n * OUTPUT_TOKENS / run(n, PROMPT_TOKENS, OUTPUT_TOKENS) for n in WAVES}
    with _running(server):
        _drive(server, 1, 64, 2, requests=2)  # the first request compiles and warms up
        return {f"c{n}": _drive(server, n, PROMPT_TOKENS, OUTPUT_TOKENS, requests=max(n, 4)) for n in WAVES}


def _prompts(servers: list[Server], model: str) -> dict[str, Figures]:
    """Return, for each server and prompt length, the prompt tokens per second until the first token."""
    with contextlib.ExitStack() as running:
        rates: dict[str, Callable[[int], float]] = {}
        for server in servers:
            if server.command:
                running.enter_context(_running(server))
                rates[server.name] = partial(_prompt_rate, server)
            else:
                rates[server.name] = partial(_rate_of, _transformers(model))
        for rate in rates.values():
            rate(max(PROMPTS))  # warms up
        taken: dict[tuple[str, int], list[float]] = {(name, n): [] for name in rates for n in PROMPTS}
        for _ in range(PROMPT_TURNS):
            for name, n in random.sample(sorted(taken), len(taken)):
                taken[name, n].append(rates[name](n))
    return {name: {f"prefill {n}": statistics.median(taken[name, n]) for n in PROMPTS} for name in rates}


def _rate_of(seconds: Callable[[int, int, int], float], num_tokens: int) -> float:
    return num_tokens / seconds(1, num_tokens, 1)


@contextlib.contextmanager
def _running(server: Server) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        environment = os.environ | server.environment
        process = subprocess.Popen(server.command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            models = f"http://127.0.0.1:{server.port}/v1/models"
            _servers.wait_until_ready(server.name, process, models, START_TIMEOUT_S)
            yield
        except BatonError:
            log.seek(0)
            sys.stderr.write(log.read()[-3000:].decode(errors="replace"))
            raise
        finally:
            _servers.end([process], 30)


def _drive(server: Server, concurrency: int, num_in: int, num_out: int, *, requests: int) -> float:
    """Return output tokens per second over the whole wave."""
    run = _load(server, concurrency=concurrency, requests=requests, prompt_tokens=num_in, output_tokens=num_out)
    return float(run["output_tokens_per_s"])


def _prompt_rate(server: Server, num_tokens: int) -> float:
    """Return prompt tokens per second until the first token."""
    run = _load(server, concurrency=1, requests=1, prompt_tokens=num_tokens, output_tokens=1)
    return float(num_tokens / run["ttft_p50_s"])


def _load(server: Server, concurrency: int, **flags: int) -> dict[str, Any]:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in ({"concurrency": concurrency} | flags).items()]
    run = asyncio.run(serve.measure(serve.parse([f"--url=http://127.0.0.1:{server.port}", *words]), concurrency))
    if run["failed"]:
        raise BatonError(f"{server.name}: {run['failed']} requests failed: {run['error']}")
    return run


def _transformers(model: str) -> Callable[[int, int, int], float]:
    """Return `Transformers.seconds` of a warmed-up model."""
    import torch

    from bench._transformers import Transformers

    seconds = Transformers(model, torch.bfloat16).seconds
    seconds(1, 64, 2)
    return seconds


def _table(best: dict[str, Figures]) -> str:
    columns = [*(f"c{n}" for n in WAVES), *(f"prefill {n}" for n in PROMPTS)]
    lines = ["tokens/s     " + "".join(f"{column:>14}" for column in columns)]
    lines += [f"{name:<13}" + "".join(f"{row[column]:>14.0f}" for column in columns) for name, row in best.items()]
    peers = [row for name, row in best.items() if name != "baton"]
    if peers:
        ratios = [best["baton"][column] / max(row[column] for row in peers) for column in columns]
        lines.append("baton / best " + "".join(f"{ratio:>13.2f}x" for ratio in ratios))
    return "\n".join(lines)
