"""Split or colocated? Runs the same load on a split fleet and on as many colocated nodes, and compares goodput.

    baton bench disagg --nodes 2 --slo-ttft-ms 500 --slo-tpot-ms 20 --html disagg.html

Three fleets are measured in turns: split (half of the nodes prefill), colocated, and colocated without chunked
prefill. Each gets every mix of prompt and output lengths at rising rates (goodput: requests within both limits),
and then a storm: a few streams decode, first alone and then beside long prompts.
"""

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import ConfigError
from baton.process.bounds import positive, whole
from bench import _command, _fleets
from bench._load import arrivals, flags, workload
from bench._load.driver import Driver
from bench._load.figures import figures, percentile
from bench._load.target import Target, target_of
from bench._load.workload import Shape
from bench._machine import machine
from bench._report import disagg as disagg_report
from bench._report import files

TIMEOUT_S = 120.0
UNCHUNKED = 1_000_000  # maximum tokens in a step, so that every prompt takes one step
STORM_STREAMS, STORM_STREAM_TOKENS, STORM_AT_A_TIME = 2, 128, 2


@dataclass(frozen=True)
class Side:
    """One way to run the nodes: split or colocated."""

    name: str
    flags: tuple[str, ...]


def sides(num_nodes: int) -> list[Side]:
    """Return the sides: split, colocated, and colocated without chunks."""
    num_prefill = num_nodes // 2
    together = ("--colocated", "--decode", str(num_nodes))
    return [
        Side("split", ("--prefill", str(num_prefill), "--decode", str(num_nodes - num_prefill))),
        Side("colocated", together),
        Side("unchunked", (*together, "--max-num-batched-tokens", str(UNCHUNKED))),
    ]


def main(argv: Sequence[str]) -> int:
    """Measure all sides; return 1 if requests failed."""
    args = _arguments(argv)
    files.check(args.json, args.html)
    ratios = [_ratio(text) for text in args.ratios]
    chosen = sides(args.nodes)
    results: dict[str, dict[str, Any]] = {}
    num_turns = len(chosen) * (len(ratios) * len(args.rates) + args.rounds)
    with _command.progress() as progress:
        task = progress.add_task("fleets", total=num_turns)
        for side in chosen:
            progress.update(task, description=side.name)
            with _fleets.temporary(*side.flags, model=args.model) as endpoint:
                measuring = _measure(args, target_of(endpoint), ratios, lambda: progress.advance(task))
                results[side.name] = asyncio.run(measuring)
    command = _command.line("disagg", argv)
    report = {"machine": machine(), "command": command, "nodes": args.nodes, "sides": results}
    print(disagg_report.text(report))
    if args.json:
        files.write_json(args.json, report)
    if args.html:
        disagg_report.write_html(Path(args.html), report)
    return 1 if any(run["failed"] for side in results.values() for run in side["runs"]) else 0


async def _measure(
    args: argparse.Namespace, target: Target, ratios: Sequence[tuple[int, int]], on_run: Any
) -> dict[str, Any]:
    shape = Shape(await target.first_model(), vocab_size=args.vocab_size)
    asked = workload.conversations(_sized(shape, 64, 16), random.Random())
    await Driver(target, TIMEOUT_S).closed(itertools.islice(asked, 8), 4)  # warm up
    runs = []
    for (num_prompt, num_output), rate in itertools.product(ratios, args.rates):
        runs.append(await _at_rate(args, target, shape, num_prompt, num_output, rate))
        on_run()
    storms = []
    for _ in range(args.rounds):
        storms.append(await _storm(target, shape, args.storm_prompt_tokens, args.seconds))
        on_run()
    return {"runs": runs, "storms": storms}


async def _at_rate(
    args: argparse.Namespace, target: Target, shape: Shape, num_prompt: int, num_output: int, work: float
) -> dict[str, Any]:
    """Run one rate. `work` is in thousands of tokens per second, prompts plus outputs, to make mixes comparable."""
    rate = 1000 * work / (num_prompt + num_output)
    asked = workload.conversations(_sized(shape, num_prompt, num_output), random.Random(0))
    due = itertools.takewhile(lambda at_s: at_s < args.seconds, arrivals.times(rate, 1.0, random.Random(0)))
    driver, began_s = Driver(target, TIMEOUT_S), time.monotonic()
    await driver.open(zip(due, asked, strict=False))
    limits = {"slo_ttft_s": args.slo_ttft_ms / 1000, "slo_tpot_s": args.slo_tpot_ms / 1000}
    measured = figures(driver.streams, max(args.seconds, time.monotonic() - began_s), **limits)
    return {"prompt_tokens": num_prompt, "output_tokens": num_output, "work": work, "rate": rate} | {
        name: measured[name] for name in ("failed", "goodput_per_s", "good_share", "ttft_p99_s", "tpot_p99_s")
    }


async def _storm(target: Target, shape: Shape, num_prompt: int, seconds: float) -> dict[str, float]:
    """Measure TPOT p99 of streams, alone and beside a continuous load of long prompts."""
    alone = await _streams(target, shape, time.monotonic() + seconds)
    prompts = Driver(target, TIMEOUT_S)
    stop_s = time.monotonic() + seconds
    long = _sized(shape, num_prompt, 1)
    storm = prompts.closed(workload.conversations(long, random.Random()), STORM_AT_A_TIME, stop_s)
    beside, _ = await asyncio.gather(_streams(target, shape, stop_s), storm)
    p99s = [percentile([s.tpot_s for s in driver.streams if s.ok and s.has_tpot], 99) for driver in (alone, beside)]
    return {"idle_s": p99s[0], "storm_s": p99s[1], "ratio": p99s[1] / p99s[0], "prompts": len(prompts.streams)}


async def _streams(target: Target, shape: Shape, stop_s: float) -> Driver:
    driver = Driver(target, TIMEOUT_S)
    asked = workload.conversations(_sized(shape, 16, STORM_STREAM_TOKENS), random.Random())
    await driver.closed(asked, STORM_STREAMS, stop_s)
    return driver


def _sized(shape: Shape, num_prompt: int, num_output: int) -> Shape:
    return Shape.fixed(shape.model, num_prompt, num_output, shape.vocab_size)


def _ratio(text: str) -> tuple[int, int]:
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 7 and int(part) > 0 for part in parts):
        raise ConfigError(f"--ratios: {text}: expected PROMPT:OUTPUT, in tokens")
    return int(parts[0]), int(parts[1])


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _command.parser("disagg", __doc__)
    add = parser.add_argument
    add("--model", default="", help="checkpoint to serve (default: the built-in model)")
    add("--nodes", type=whole(2, 64), default=2, help="nodes of each fleet")
    add("--ratios", nargs="+", default=["1024:16", "512:64", "128:128"], help="PROMPT:OUTPUT, in tokens")
    add(
        "--rates",
        type=positive(),
        nargs="+",
        default=[1.0, 2.0, 4.0],
        help="thousands of tokens per second, in plus out",
    )
    add("--seconds", type=positive(), default=10.0, help="duration of each run")
    add("--rounds", type=whole(), default=2, help="rounds of the storm")
    add("--storm-prompt-tokens", type=whole(), default=1536, help="length of the storm's prompts")
    add("--slo-ttft-ms", type=positive(), default=500.0, help="TTFT limit for goodput")
    add("--slo-tpot-ms", type=positive(), default=20.0, help="TPOT limit for goodput")
    flags.add_vocab_size(parser)
    flags.add_files(parser)
    return parser.parse_args(argv)
