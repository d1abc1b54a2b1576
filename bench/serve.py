"""Loads any OpenAI endpoint, in a closed or open loop; reports latencies, throughput, goodput and errors by code.

    baton bench serve --base-url http://127.0.0.1:8000 --concurrency 1 8 32
    baton bench serve --rate 2 4 8 --burstiness 4 --slo-ttft-ms 500 --slo-tpot-ms 50 --html report.html
    baton bench serve --trace trace.jsonl --trace-speed 2

Prompts are random tokens, so that a prefix cache has no effect unless prefixes or turns are requested. Answers are
greedy and of full length. For Baton, the phases of TTFT are read from the router's /metrics.
"""

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.process.bounds import positive, real, whole
from baton.process.config import MAX_INT32
from bench import _command
from bench._load import arrivals, flags, lengths, phases, workload
from bench._load import report as reports
from bench._load.driver import Driver
from bench._load.figures import figures, timeline
from bench._load.sse_client import Stream
from bench._load.target import target_of
from bench._load.workload import Conversation, Shape
from bench._machine import machine
from bench._report import files
from bench._simulated import trace


def main(argv: Sequence[str]) -> int:
    """Run each load once; return 1 if a request failed."""
    try:
        return _main(argv)
    except BatonError as error:
        print(f"baton: error: {error.message}", file=sys.stderr)
        return 2


def _main(argv: Sequence[str]) -> int:
    args = parse(argv)
    files.check(args.json, args.html)
    args.model = args.model or asyncio.run(args.target.first_model())
    runs = []
    with _command.progress() as progress:
        for load in _loads(args):
            task = progress.add_task(f"{load:g}", total=args.requests or None)
            runs.append(asyncio.run(measure(args, load, lambda _, task=task: progress.advance(task))))  # type: ignore[misc]
            progress.remove_task(task)
    report = {
        "machine": machine(),
        "command": _command.line("serve", argv),
        "model": args.model,
        "slo_ttft_s": args.slo_ttft_ms / 1000,
        "slo_tpot_s": args.slo_tpot_ms / 1000,
        "runs": runs,
    }
    if args.html:
        reports.write_html(Path(args.html), report)
    if args.json:
        files.write_json(args.json, report)
    print(reports.text(report))
    return 1 if any(run["failed"] for run in runs) else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags, and derive `target`, `prompt` and `output` from them."""
    parser = _command.parser("serve", __doc__)
    add = parser.add_argument
    add("--base-url", "--url", dest="url", default="http://127.0.0.1:8000", help="endpoint, with or without /v1")
    flags.add_key(parser)
    add("--model", default="", help="model name (default: the first that the endpoint lists)")
    _add_load(parser)
    _add_shape(parser)
    add("--slo-ttft-ms", type=real(), default=0.0, help="TTFT limit for goodput; 0: none")
    add("--slo-tpot-ms", type=real(), default=0.0, help="TPOT limit for goodput; 0: none")
    add("--timeout-s", type=positive(), default=300.0, help="timeout of a request")
    flags.add_files(parser)
    args = parser.parse_args(argv)
    if not args.rate and not args.trace and not args.concurrency:
        args.concurrency = [1, 8, 32]
    args.target = target_of(args.url, args.api_key_env)
    args.prompt, args.output = lengths.parse(args.prompt_tokens), lengths.parse(args.output_tokens)
    return args


def _add_load(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the number of requests and their arrivals."""
    add = parser.add_argument
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency", type=whole(1, 100_000), nargs="+", help="closed loop: concurrent requests (default: 1 8 32)"
    )
    loop.add_argument("--rate", type=positive(), nargs="+", help="open loop: conversations per second")
    loop.add_argument("--trace", type=Path, help="open loop: a trace in Mooncake's format, with its arrival times")
    add(
        "--burstiness",
        type=real(0, 1000),
        default=1.0,
        help="of --rate: 1 is Poisson, higher values give bursts, 0 even gaps",
    )
    add("--trace-speed", type=positive(), default=1.0, help="replay the trace this many times as fast")
    add("--trace-shrink", type=whole(), default=1, help="divide the trace's lengths by this")
    add("--requests", type=whole(0), default=0, help="conversations per load; 0: four rounds, 30 s, or the whole trace")


def _add_shape(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the shape of requests."""
    add = parser.add_argument
    flags.add_lengths(parser, "128", "64")
    add("--prefixes", type=whole(0), default=0, help="number of shared prefixes that prompts begin with, in turn")
    add("--prefix-tokens", type=whole(), default=512, help="length of these prefixes")
    add("--turns", type=whole(), default=1, help="requests per conversation, each including all earlier turns")
    flags.add_vocab_size(parser)
    add("--chat", metavar="TEXT", default="", help="send this text to /v1/chat/completions, instead of random tokens")
    add("--no-ignore-eos", action="store_true", help="for endpoints that do not support ignore_eos")
    add("--seed", type=whole(0, MAX_INT32), help="seed of the prompts (default: a new one for each run)")


def _loads(args: argparse.Namespace) -> list[float]:
    return [args.trace_speed] if args.trace else list(args.rate or args.concurrency)


async def measure(
    args: argparse.Namespace, load: float, on_done: Callable[[Stream], None] = lambda _: None
) -> dict[str, Any]:
    """Run one load (a concurrency, a rate, or the speed of a trace) and return its figures."""
    target = args.target
    shape = _shape(args, args.model or await target.first_model())
    before = await phases.read(target)
    driver = Driver(target, args.timeout_s, on_done)
    began, cpu, waited_s = time.monotonic(), time.process_time(), _waited_s()
    name = await _drive(args, shape, load, driver)
    elapsed_s, cpu_s, waited_s = time.monotonic() - began, time.process_time() - cpu, _waited_s() - waited_s
    phases_s = phases.between(before, await phases.read(target))
    slo = {"slo_ttft_s": args.slo_ttft_ms / 1000, "slo_tpot_s": args.slo_tpot_ms / 1000}
    return {
        "name": name,
        **figures(driver.streams, elapsed_s, **slo),
        "prompt_tokens_mean": args.prompt.mean,
        "output_tokens_mean": args.output.mean,
        "client_cpu_s": round(cpu_s, 3),
        "client_waited_s": round(waited_s, 3),
        "late_s": driver.late_s,
        "phases_s": phases_s,
        "timeline": timeline(driver.streams, began),
    }


async def _drive(args: argparse.Namespace, shape: Shape, load: float, driver: Driver) -> str:
    source = random.Random(args.seed)
    if args.trace:
        asked = workload.of_trace(trace.read(args.trace), shape, speed=args.trace_speed, shrink=args.trace_shrink)
        await driver.open(_timed(itertools.islice(asked, args.requests or None)))
        return f"×{args.trace_speed:g}"
    asked = workload.conversations(shape, source)
    if args.rate:
        number = args.requests or max(round(30 * load), 1)
        due = arrivals.times(load, args.burstiness, random.Random(args.seed))
        await driver.open(itertools.islice(zip(due, asked, strict=False), number))
        return f"{load:g}/s"
    number = args.requests or 4 * int(load)
    bodies = list(itertools.islice(asked, number))  # created before the clock starts
    await driver.closed(bodies, int(load))
    return f"c{load:g}"


def _waited_s() -> float:
    """Return how long this thread was ready to run, but waited for a core; 0 where Linux does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _timed(asked: Iterator[Conversation]) -> Iterator[tuple[float, Conversation]]:
    return ((conversation.at_s, conversation) for conversation in asked)


def _shape(args: argparse.Namespace, model: str) -> Shape:
    return Shape(
        model=model,
        prompt=args.prompt,
        output=args.output,
        vocab_size=args.vocab_size,
        num_prefixes=args.prefixes,
        prefix_tokens=args.prefix_tokens,
        num_turns=args.turns,
        chat=args.chat,
        ignore_eos=not args.no_ignore_eos,
    )
