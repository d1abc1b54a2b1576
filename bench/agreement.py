"""Whether the figures of `baton bench serve` are those of an independent client: the openai package, on the same load.

    baton bench agreement --base-url http://127.0.0.1:8000 --concurrency 4 --rounds 3

Both send the same prompts in turns; each figure is the median of its rounds. Exit code 1 where one differs by more than
`--tolerance`. The other client takes more of the CPU: keep the concurrency low where client and
services share cores.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench import serve
from bench._load import workload
from bench._load.figures import figures
from bench._load.workload import Body
from bench._sse_client import Stream

SHOWN = ("output_tokens_per_s", "ttft_p50_s", "tpot_p50_s", "e2e_p50_s", "e2e_p99_s")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; exit code 1 where the two disagree."""
    args = _arguments(argv)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        numbers = progress.track(range(args.rounds + 1), description="rounds")
        _, *rounds = [_round(args, number) for number in numbers]  # the first one warms up
    ours, theirs = zip(*rounds, strict=True)
    print(f"{serve.machine()}\n\n{'':<22}{'ours':>10}{'openai':>10}{'ratio':>8}")
    ratios = [_compare(name, ours, theirs) for name in SHOWN]
    return 0 if all(abs(ratio - 1) <= args.tolerance for ratio in ratios) else 1


def _round(args: argparse.Namespace, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of one load with our client, and of another one like it with the other client."""
    asked = {
        "--url": args.base_url,
        "--seed": number,
        "--requests": args.requests,
        "--output-tokens": args.output_tokens,
        "--concurrency": args.concurrency,
    }
    load = serve.parse([str(part) for flag in asked.items() for part in flag])
    load.model = args.model = args.model or asyncio.run(load.target.first_model())
    mine = asyncio.run(serve.measure(load, args.concurrency))
    load.seed = 1000 + number  # other prompts: the same ones would be cached by now
    return mine, asyncio.run(_with_openai(load, args.concurrency))


def _compare(name: str, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> float:
    first, second = (statistics.median(run[name] for run in runs) for runs in (ours, theirs))
    factor = 1000 if name.endswith("_s") and "per_s" not in name else 1
    print(
        f"{name.removesuffix('_s') + (' ms' if factor > 1 else ''):<22}{first * factor:>10.2f}{second * factor:>10.2f}",
        end="",
    )
    print(f"{first / second:>8.3f}")
    return float(first / second)


async def _with_openai(load: argparse.Namespace, concurrency: int) -> dict[str, Any]:
    from openai import AsyncOpenAI

    shape = workload.Shape(model=load.model, prompt=load.prompt, output=load.output)
    asked = workload.conversations(shape, random.Random(load.seed))
    bodies = [turn for conversation in islice(asked, load.requests) for turn in conversation.turns]
    streams: list[Stream] = []
    client = AsyncOpenAI(base_url=load.target.url + "/v1", api_key=load.target.api_key or "none", max_retries=0)

    async def work() -> None:
        while bodies:
            streams.append(await _ask(client, bodies.pop()))

    async with client:
        began_s = time.monotonic()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return figures(streams, time.monotonic() - began_s)


async def _ask(client: Any, body: Body) -> Stream:
    known = {key: value for key, value in body.items() if key != "ignore_eos"}
    stream = Stream(time.monotonic(), status=200)
    async for chunk in await client.completions.create(**known, extra_body={"ignore_eos": True}):
        if any(choice.text for choice in chunk.choices):
            stream.times.append(time.monotonic())
        if chunk.usage:
            stream.num_prompt_tokens, stream.num_output_tokens = (
                chunk.usage.prompt_tokens,
                chunk.usage.completion_tokens,
            )
    stream.ended = time.monotonic()
    return stream


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="baton bench agreement", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="endpoint, with or without /v1")
    parser.add_argument("--model", default="", help="model name; the first that the endpoint lists")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=48, help="of each client in each round")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="at least 1")
    parser.add_argument("--tolerance", type=float, default=0.05)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
