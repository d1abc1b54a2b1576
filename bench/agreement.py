"""Whether the figures of `baton bench serve` are those of an independent client: curl and its timestamps, same load.

    baton bench agreement --base-url http://127.0.0.1:8000 --rate 2 --rounds 3

Both send like prompts at the same even rate, in turns; each figure is the median of its rounds. Exit code 1 where one
differs by more than `--tolerance`, 2 without curl. In a closed loop the two would not be the same load: a curl takes
15 ms to start, which spreads requests that ended together. Clients in Python take so much more of the CPU that, on
cores they share with the services, they measure themselves.
"""

import argparse
import asyncio
import json
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
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

SHOWN = ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "e2e_p50_s", "e2e_p90_s")
_PIECE = re.compile(
    r"^(\d\d):(\d\d):(\d\d\.\d+) (=> Send header|<= Recv data).*\n((?:[0-9a-f]{4,}: .*\n?)*)", re.MULTILINE
)
_HAS_TEXT = re.compile(r'"text": ?"[^"]')
_DAY_S = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; exit code 1 where the two disagree."""
    args = _arguments(argv)
    args.first_seed = random.randrange(2**30)  # those of an earlier run would be cached as well
    if shutil.which("curl") is None:
        sys.stderr.write("baton bench agreement: curl is what it compares with, and it is not on the PATH\n")
        return 2
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        numbers = progress.track(range(args.rounds + 1), description="rounds")
        _, *rounds = [_round(args, number) for number in numbers]  # the first one warms up
    ours, theirs = zip(*rounds, strict=True)
    print(f"{serve.machine()}\n\n{'':<22}{'ours':>10}{'curl':>10}{'ratio':>8}")
    ratios = [_compare(name, ours, theirs) for name in SHOWN]
    return 0 if all(abs(ratio - 1) <= args.tolerance for ratio in ratios) else 1


def _round(args: argparse.Namespace, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of one load with our client, and of another one like it with the other client."""
    asked = {
        "--url": args.base_url,
        "--seed": args.first_seed + number,
        "--requests": args.requests,
        "--output-tokens": args.output_tokens,
        "--rate": args.rate,
        "--burstiness": 0,
    }
    load = serve.parse([str(part) for flag in asked.items() for part in flag])
    load.model = args.model = args.model or asyncio.run(load.target.first_model())
    mine = asyncio.run(serve.measure(load, args.rate))
    load.seed += args.rounds + 1  # other prompts: the same ones would be cached by now
    return mine, asyncio.run(_with_curl(load, args.rate))


def _compare(name: str, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> float:
    first, second = (statistics.median(run[name] for run in runs) for runs in (ours, theirs))
    print(f"{name.removesuffix('_s') + ' ms':<22}{first * 1000:>10.2f}{second * 1000:>10.2f}{first / second:>8.3f}")
    return float(first / second)


async def _with_curl(load: argparse.Namespace, rate: float) -> dict[str, Any]:
    shape = workload.Shape(model=load.model, prompt=load.prompt, output=load.output)
    asked = workload.conversations(shape, random.Random(load.seed))
    bodies = [turn for conversation in islice(asked, load.requests) for turn in conversation.turns]
    streams: list[Stream] = []

    async def work(number: int, folder: Path) -> None:
        await asyncio.sleep((number + 1) / rate)
        streams.append(await _ask(load, bodies[number], folder / str(number)))

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
    """What curl saw; of the times of tokens only the first and the last."""
    pieces = [
        (int(hours) * 3600 + int(minutes) * 60 + float(seconds), what, re.sub(r"(?m)\n?^[0-9a-f]{4,}: ", "", data))
        for hours, minutes, seconds, what, data in _PIECE.findall(trace.read_text(errors="replace"))
    ]
    sent_s = next((at_s for at_s, what, _ in pieces if what.startswith("=>")), 0.0)
    came_s = [(at_s - sent_s) % _DAY_S for at_s, what, data in pieces if _HAS_TEXT.search(data)]
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
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second, evenly; less than would queue up")
    parser.add_argument("--requests", type=int, default=48, help="of each client in each round")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="at least 1")
    parser.add_argument("--tolerance", type=float, default=0.05)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.rate <= 0:
        parser.error("--rounds: at least 1; --rate: more than 0")
    return args


if __name__ == "__main__":
    sys.exit(main())
