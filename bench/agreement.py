"""Whether the figures of `baton bench serve` are those of an independent client: curl and its timestamps, same load.

    baton bench agreement --base-url http://127.0.0.1:8000 --rate 2

Both send like prompts at the same even rate, one after the other all the time: what the machine does meanwhile, it does
to both. Exit code 1 where a figure differs by more than `--tolerance`, 2 without curl. In a closed loop the two would
not be the same load: a curl takes 15 ms to start, which spreads requests that ended together. Clients in Python take so
much more of the CPU that, on cores they share with the services, they measure themselves.
"""

import argparse
import asyncio
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench import serve
from bench._load import workload
from bench._load.figures import figures
from bench._load.sse_client import Stream
from bench._load.workload import Body

WARM_UP = 8  # requests
SHOWN = ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "e2e_p50_s", "e2e_p90_s")
_PIECE = re.compile(
    r"^(\d\d):(\d\d):(\d\d\.\d+) (== Info: Connected|<= Recv data).*\n((?:[0-9a-f]{4,}: .*\n?)*)", re.MULTILINE
)
_HAS_TEXT = re.compile(r'"text": ?"[^"]')
_DAY_S = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; exit code 1 where the two disagree."""
    args = _arguments(argv)
    if shutil.which("curl") is None:
        sys.stderr.write("baton bench agreement: curl is what it compares with, and it is not on the PATH\n")
        return 2
    ours, theirs = asyncio.run(_measure(args))
    print(f"{serve.machine()}\n\n{'':<22}{'ours':>10}{'curl':>10}{'ratio':>8}")
    ratios = [_compare(name, ours[name], theirs[name]) for name in SHOWN]
    return 0 if all(abs(ratio - 1) <= args.tolerance for ratio in ratios) else 1


async def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of our client and of the other one, whose requests come half way between ours."""
    seeds = random.sample(range(2**30), 3)  # prompts of an earlier run would be cached, and those of the other client
    await serve.measure(await _load(args, seeds[0], WARM_UP), args.rate)
    ours, theirs = [await _load(args, seed, args.requests) for seed in seeds[1:]]
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("requests", total=2 * args.requests)
        measured = serve.measure(ours, args.rate, lambda _: progress.advance(bar))
        return await asyncio.gather(measured, _with_curl(theirs, args.rate, lambda _: progress.advance(bar)))


async def _load(args: argparse.Namespace, seed: int, num_requests: int) -> argparse.Namespace:
    asked = {
        "--url": args.base_url,
        "--seed": seed,
        "--requests": num_requests,
        "--output-tokens": args.output_tokens,
        "--rate": args.rate,
        "--burstiness": 0,
    }
    load = serve.parse([str(part) for flag in asked.items() for part in flag])
    load.model = args.model or await load.target.first_model()
    return load


def _compare(name: str, ours_s: float, theirs_s: float) -> float:
    ratio = ours_s / theirs_s
    print(f"{name.removesuffix('_s') + ' ms':<22}{ours_s * 1000:>10.2f}{theirs_s * 1000:>10.2f}{ratio:>8.3f}")
    return ratio


async def _with_curl(load: argparse.Namespace, rate: float, on_done: Callable[[Stream], None]) -> dict[str, Any]:
    shape = workload.Shape(model=load.model, prompt=load.prompt, output=load.output)
    asked = workload.conversations(shape, random.Random(load.seed))
    bodies = [turn for conversation in islice(asked, load.requests) for turn in conversation.turns]
    streams: list[Stream] = []

    async def work(number: int, folder: Path) -> None:
        await asyncio.sleep((number + 0.5) / rate)
        streams.append(await _ask(load, bodies[number], folder / str(number)))
        on_done(streams[-1])

    with tempfile.TemporaryDirectory() as folder:
        began_s = time.monotonic()
        await asyncio.gather(*(work(number, Path(folder)) for number in range(len(bodies))))
        return figures(streams, time.monotonic() - began_s)


async def _ask(load: argparse.Namespace, body: Body, trace: Path) -> Stream:
    """One request by a curl of its own, whose trace says when each piece came."""
    key = f'header = "Authorization: Bearer {load.target.api_key}"\n' if load.target.api_key else ""
    config = trace.with_suffix(".curl")
    config.write_text(key + 'header = "Content-Type: application/json"\n')
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--no-buffer", "--max-time", str(load.timeout_s), "--config", str(config)),
        *("--trace-ascii", str(trace), "--trace-time", "--data-binary", "@-", load.target.url + "/v1/completions"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await process.communicate(json.dumps(body).encode())
    return _stream(answer.decode(), trace)


def _stream(answer: str, trace: Path) -> Stream:
    """What curl saw; of the times of tokens only the first and the last.

    They count from when it was connected: it notes that it has sent the request when it gets the CPU back, which those
    that the request woke up may have for tens of milliseconds.
    """
    pieces = [
        (int(hours) * 3600 + int(minutes) * 60 + float(seconds), what, re.sub(r"(?m)\n?^[0-9a-f]{4,}: ", "", data))
        for hours, minutes, seconds, what, data in _PIECE.findall(trace.read_text(errors="replace"))
    ]
    connected_s = next((at_s for at_s, what, _ in pieces if what.startswith("==")), 0.0)
    came_s = [(at_s - connected_s) % _DAY_S for at_s, what, data in pieces if _HAS_TEXT.search(data)]
    is_whole = "data: [DONE]" in answer and bool(came_s)
    stream = Stream(0.0, status=200 if is_whole else 0, error="" if is_whole else answer[:200] or "no answer")
    if is_whole:
        stream.times = [came_s[0], came_s[-1]]
        stream.ended = came_s[-1]
        stream.num_prompt_tokens = int(re.findall(r'"prompt_tokens": ?(\d+)', answer)[-1])
        stream.num_output_tokens = int(re.findall(r'"completion_tokens": ?(\d+)', answer)[-1])
    return stream


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="baton bench agreement", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="endpoint, with or without /v1")
    parser.add_argument("--model", default="", help="model name; the first that the endpoint lists")
    parser.add_argument("--rate", type=float, default=2.0, help="of each client, evenly; less than would queue up")
    parser.add_argument("--requests", type=int, default=150, help="of each client, at least 1")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=0.05)
    args = parser.parse_args(argv)
    if args.requests < 1 or args.rate <= 0:
        parser.error("--requests: at least 1; --rate: more than 0")
    return args


if __name__ == "__main__":
    sys.exit(main())
