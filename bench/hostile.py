"""A well-behaved client beside hostile ones: latencies of its streams, relative to those without an attack.

    baton bench hostile --attacks 20 --rounds 20

Starts a fleet, and sends streams at an even rate, alone and beside attackers, in turns. The attackers send bodies that
take long to read or to compile, and keep connections whose headers never end. They have a low priority, so that they
use the processor time that the fleet leaves: on a machine with few cores the time that sending takes would otherwise be
measured, too. Each percentile is the median of those of all turns, so that a disturbance of the machine counts in one
turn only. Exit code 1 if a stream failed, or a hostile body was not refused.
"""

import argparse
import asyncio
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from baton.process.bounds import positive, real, whole
from bench import _command, _fleets
from bench._load import arrivals, workload
from bench._load.driver import Driver
from bench._load.figures import percentile
from bench._load.sse_client import Stream
from bench._load.target import Target, target_of
from bench._load.workload import Shape
from bench._machine import machine

TIMEOUT_S = 60.0
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 16
PERCENTS = (50, 90, 99)
ALONE, BESIDE = "alone", "beside attackers"


def main(argv: Sequence[str]) -> int:
    """Measure; return 1 if a stream failed or a hostile body was not refused."""
    args = _arguments(argv)
    turns: dict[str, list[list[Stream]]] = {ALONE: [], BESIDE: []}
    statuses: Counter[str] = Counter()
    with _fleets.temporary(model=args.model) as endpoint:
        target = target_of(endpoint)
        model = asyncio.run(target.first_model())
        asyncio.run(_streams(target, model, args.rate, args.seconds / 4))  # warm up
        for number in range(args.rounds):
            for side in (ALONE, BESIDE) if number % 2 else (BESIDE, ALONE):
                with _attacked(target, model, args.attacks if side == BESIDE else 0.0, statuses):
                    turns[side].append(asyncio.run(_streams(target, model, args.rate, args.seconds)))
    print(f"{machine()}\n{_command.line('hostile', argv)}\n\n{_table(turns)}")
    print(f"answers to hostile bodies: {', '.join(f'{n} × {status}' for status, n in sorted(statuses.items()))}")
    is_good = all(stream.ok for side in turns.values() for turn in side for stream in turn)
    return 0 if is_good and all(status.startswith("4") for status in statuses) else 1


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _command.parser("hostile", __doc__)
    parser.add_argument("--model", default="", help="checkpoint to serve (default: the built-in model)")
    parser.add_argument("--rate", type=positive(), default=30.0, help="streams per second")
    parser.add_argument("--attacks", type=real(), default=20.0, help="hostile bodies per second")
    parser.add_argument("--seconds", type=positive(), default=6.0, help="length of a turn")
    parser.add_argument("--rounds", type=whole(), default=20, help="turns of each kind")
    return parser.parse_args(argv)


async def _streams(target: Target, model: str, rate: float, seconds: float) -> list[Stream]:
    shape = Shape.fixed(model, PROMPT_TOKENS, OUTPUT_TOKENS, 4000)
    due = itertools.takewhile(lambda at_s: at_s < seconds, arrivals.times(rate, 0, random.Random(0)))
    driver = Driver(target, TIMEOUT_S)
    await driver.open(zip(due, workload.conversations(shape, random.Random()), strict=False))
    return driver.streams


@contextmanager
def _attacked(target: Target, model: str, rate: float, statuses: Counter[str]) -> Iterator[None]:
    """Attack meanwhile, unless `rate` is 0, and count the answers."""
    if not rate:
        yield
        return
    command = [sys.executable, "-m", "bench._hostile.attacker", target.host, str(target.port), model, str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
        try:
            if attacker.stdout is not None:
                attacker.stdout.readline()
            yield
        finally:
            attacker.terminate()
            statuses.update(json.loads(attacker.communicate()[0] or "{}"))


def _table(turns: dict[str, list[list[Stream]]]) -> str:
    lines = [f"{'':20}" + "".join(f"{f'{name} p{p}':>12}" for name in ("TTFT", "E2E") for p in PERCENTS)]
    rows = {side: list(map(median, zip(*map(_row, measured), strict=True))) for side, measured in turns.items()}
    for side, row in rows.items():
        lines.append(f"{side:20}" + "".join(f"{value * 1e3:>9.1f} ms" for value in row))
    ratios = (beside / alone for alone, beside in zip(rows[ALONE], rows[BESIDE], strict=True))
    lines.append(f"{'':20}" + "".join(f"{ratio:>10.2f} ×" for ratio in ratios))
    counts = (f"{sum(s.ok for turn in m for s in turn)} of {sum(map(len, m))} {side}" for side, m in turns.items())
    return "\n".join([*lines, f"complete streams: {', '.join(counts)}"])


def _row(turn: Sequence[Stream]) -> list[float]:
    good = [stream for stream in turn if stream.ok]
    times = ([s.ttft_s for s in good], [s.e2e_s for s in good])
    return [percentile(values, p) for values in times for p in PERCENTS]
