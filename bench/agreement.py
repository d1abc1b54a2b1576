"""Compares the figures of `baton bench serve` with those of an independent client: curl's timestamps under equal load.

    baton bench agreement --base-url http://127.0.0.1:8000 --rate 2

Both clients send similar prompts at the same even rate, alternating all the time, so that disturbances affect both.
The exit code is 1 if a figure differs by more than `--tolerance`, and 2 without curl. In a closed loop the loads would
differ: a curl takes 15 ms to start, which spreads requests that ended together. Other clients in Python take so
much more CPU time that, on cores shared with the services, they would measure themselves.
"""

import argparse
import asyncio
import json
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baton.errors import BatonError
from baton.process.bounds import positive, real, whole
from bench import _command
from bench._load import arrivals, lengths, workload
from bench._load.driver import Driver
from bench._load.figures import percentile
from bench._load.sse_client import Stream
from bench._load.target import Target, target_of
from bench._load.workload import Conversation, Shape
from bench._machine import machine

WARM_UP = 8  # requests
TIMEOUT_S = 300.0
SHOWN = (("ttft", 50), ("ttft", 90), ("tpot", 50), ("e2e", 50), ("e2e", 90))
NUM_RESAMPLED = 2000
TOGETHER_S = 0.0005  # less than a step takes
_PIECE = re.compile(
    r"^(\d\d):(\d\d):(\d\d\.\d+) (== Info: Connected|<= Recv data).*\n((?:[0-9a-f]{4,}: .*\n?)*)", re.MULTILINE
)
_HAS_TEXT = re.compile(r'"text": ?"[^"]')
_DAY_S = 86400

Values = NDArray[np.float64]


def main(argv: Sequence[str]) -> int:
    """Print a table; return 1 if the two clients disagree."""
    args = _arguments(argv)
    if shutil.which("curl") is None:
        sys.stderr.write("baton bench agreement: needs curl, which is not on the PATH\n")
        return 2
    seen = asyncio.run(_measure(args, target_of(args.base_url)))
    ours, theirs = ([stream for stream in streams if not was_late(stream)] for streams in seen)
    num_late = len(seen[0]) - len(ours), len(seen[1]) - len(theirs)
    if not ours or not theirs:
        raise BatonError("all first tokens arrived together with others, so their times cannot be compared")
    print(f"{machine()}\n\n{'ms':<12}{'ours':>10}{'curl':>10}{'ratio':>8}  95 % interval")
    ratios = [_compare(name, percent, ours, theirs) for name, percent in SHOWN]
    print(f"\nleft out, as tokens waited for a client that had no CPU: {num_late[0]} of ours, {num_late[1]} of curl's")
    late_ms = percentile([1000 * (stream.sent - stream.began) for stream in ours], 50)
    print(f"ours were sent {late_ms:.2f} ms late (p50), which `baton bench serve` counts in and this table does not")
    return 0 if all(abs(ratio - 1) <= args.tolerance for ratio in ratios) else 1


async def _measure(args: argparse.Namespace, target: Target) -> tuple[list[Stream], list[Stream]]:
    """Run our client and curl, whose requests are sent half way between ours; return the streams of both."""
    name = args.model or await target.first_model()
    shape = Shape(name, output=lengths.parse(str(args.output_tokens)))
    asked = workload.conversations(shape, random.Random())
    await _with_ours(target, list(islice(asked, WARM_UP)), args.rate, lambda _: None)
    loads = [list(islice(asked, args.requests)) for _ in range(2)]
    with _command.progress() as progress:
        bar = progress.add_task("requests", total=2 * args.requests)
        clients = [
            client(target, load, args.rate, lambda _: progress.advance(bar))
            for client, load in zip((_with_ours, _with_curl), loads, strict=True)
        ]
        ours, theirs = await asyncio.gather(*clients)
    failed = [stream for stream in [*ours, *theirs] if not stream.ok]
    if failed:
        raise BatonError(f"{len(failed)} requests failed: {failed[0].status} {failed[0].error}")
    return ours, theirs


def was_late(stream: Stream) -> bool:
    """Return whether the first token arrived together with others, because the client had no CPU before."""
    return sum(at_s - stream.times[0] < TOGETHER_S for at_s in stream.times) > 1


def _compare(name: str, percent: int, ours: Sequence[Stream], theirs: Sequence[Stream]) -> float:
    """Print a row; return the ratio."""
    seen = [np.array([1000 * _latency_s(stream, name) for stream in streams]) for streams in (ours, theirs)]
    figures = [float(_percentile(values, percent)) for values in seen]
    low, high = interval(seen[0], seen[1], percent)
    ratio = figures[0] / figures[1]
    title = f"{name} p{percent}"
    print(f"{title:<12}{figures[0]:>10.2f}{figures[1]:>10.2f}{ratio:>8.3f}  {low:.3f}–{high:.3f}")
    return ratio


def interval(ours: Values, theirs: Values, percent: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the ratio of the two percentiles."""
    source = np.random.default_rng(0)
    drawn = [
        _percentile(values[source.integers(len(values), size=(NUM_RESAMPLED, len(values)))], percent)
        for values in (ours, theirs)
    ]
    low, high = np.percentile(drawn[0] / drawn[1], (2.5, 97.5))
    return float(low), float(high)


def _percentile(values: Values, percent: int) -> Values:
    """Return the nearest-rank percentile of each row."""
    return np.percentile(values, percent, axis=-1, method="inverted_cdf")


def _latency_s(stream: Stream, name: str) -> float:
    """Return a latency, counted from when the request was sent."""
    late_s = 0.0 if name == "tpot" else stream.sent - stream.began
    return float(getattr(stream, f"{name}_s")) - late_s


async def _with_ours(
    target: Target, asked: Sequence[Conversation], rate: float, on_done: Callable[[Stream], None]
) -> list[Stream]:
    driver = Driver(target, TIMEOUT_S, on_done)
    await driver.open(zip(arrivals.times(rate, 0.0, random.Random()), asked, strict=False))
    return driver.streams


async def _with_curl(
    target: Target, asked: Sequence[Conversation], rate: float, on_done: Callable[[Stream], None]
) -> list[Stream]:
    streams: list[Stream] = []

    async def work(number: int, folder: Path) -> None:
        await asyncio.sleep((number + 0.5) / rate)
        streams.append(await _ask(target, asked[number], folder / str(number)))
        on_done(streams[-1])

    with tempfile.TemporaryDirectory() as folder:
        await asyncio.gather(*(work(number, Path(folder)) for number in range(len(asked))))
    return streams


async def _ask(target: Target, conversation: Conversation, trace: Path) -> Stream:
    """Send one request by a new curl process; its trace has the time of each piece."""
    key = f'header = "Authorization: Bearer {target.api_key}"\n' if target.api_key else ""
    config = trace.with_suffix(".curl")
    config.write_text(key + 'header = "Content-Type: application/json"\n')
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--no-buffer", "--max-time", str(TIMEOUT_S), "--config", str(config)),
        *("--trace-ascii", str(trace), "--trace-time", "--data-binary", "@-", target.url + conversation.path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await process.communicate(json.dumps(conversation.turns[0]).encode())
    return _stream(answer.decode(), trace)


def _stream(answer: str, trace: Path) -> Stream:
    """Return the stream as curl saw it.

    Times are counted from when curl was connected. It only notes that it sent the request when it gets the CPU back,
    which may be used for tens of milliseconds by the processes that the request woke up.
    """
    pieces = [
        (int(hours) * 3600 + int(minutes) * 60 + float(seconds), what, re.sub(r"(?m)\n?^[0-9a-f]{4,}: ", "", data))
        for hours, minutes, seconds, what, data in _PIECE.findall(trace.read_text(errors="replace"))
    ]
    connected_s = next((at_s for at_s, what, _ in pieces if what.startswith("==")), 0.0)
    came_s = [(at_s - connected_s) % _DAY_S for at_s, what, data in pieces for _ in _HAS_TEXT.findall(data)]
    is_whole = "data: [DONE]" in answer and bool(came_s)
    stream = Stream(0.0, status=200 if is_whole else 0, error="" if is_whole else answer[:200] or "no answer")
    if is_whole:
        stream.times = came_s
        stream.ended = came_s[-1]
        stream.num_prompt_tokens = int(re.findall(r'"prompt_tokens": ?(\d+)', answer)[-1])
        stream.num_output_tokens = int(re.findall(r'"completion_tokens": ?(\d+)', answer)[-1])
    return stream


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _command.parser("agreement", __doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="endpoint, with or without /v1")
    parser.add_argument("--model", default="", help="model name (default: the first that the endpoint lists)")
    parser.add_argument(
        "--rate", type=positive(), default=2.0, help="even request rate of each client, low enough not to queue"
    )
    parser.add_argument("--requests", type=whole(), default=600, help="number of requests of each client")
    parser.add_argument("--output-tokens", type=whole(2), default=64, help="length of each answer")
    parser.add_argument("--tolerance", type=real(), default=0.05, help="difference that fails, as a share")
    return parser.parse_args(argv)
