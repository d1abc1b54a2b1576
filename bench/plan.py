"""Compares `baton plan` with a real fleet: fits, predicts and runs loads, and prints ratios of predicted to measured.

    baton bench plan                                     # a fleet of its own, one prefill and one decode node
    baton bench plan --model llama-107m --loads 50%:256:48 50%:64:64

A round runs every probe of the fit once and then every load for some seconds, so that disturbances affect both. The
simulator gets the same arrivals as the fleet. Figures are medians over the rounds, followed by the range of the
measured ones in brackets. The exit code is 1 if a ratio is off by more than `--tolerance`.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.progress import SpinnerColumn, TextColumn

from baton.errors import BatonError
from baton.process.bounds import positive, real, whole
from bench import _command, _fleets
from bench._load import arrivals, flags, workload
from bench._load.driver import Driver
from bench._load.figures import figures
from bench._load.target import Target, target_of
from bench._load.workload import Shape
from bench._machine import machine
from bench._plan import simulation, sizing
from bench._plan.fitting import Fit
from bench._plan.node_model import NodeModel
from bench._plan.probes import TIMEOUT_S, Probe
from bench._simulated.hardware import SimulatedRequest

LOADS = ("2:256:48", "6:256:48", "10:256:48", "15:64:64", "2:1024:32")
MIN_REQUESTS = 6  # per load and round
SHOWN = {"output_tokens_per_s": ("tok/s", 1.0), "ttft_p50_s": ("TTFT p50 ms", 1e3), "tpot_p50_s": ("TPOT p50 ms", 1e3)}

Figures = dict[str, float]


@dataclass(frozen=True)
class Load:
    """A load: a request rate, or a share of the capacity of one node per pool, and the tokens per request."""

    text: str
    rate: float
    share: float
    num_prompt: int
    num_output: int

    def per_s(self, model: NodeModel) -> float:
        """Return the request rate on nodes of this model."""
        return self.rate or self.share * sizing.capacity(model, self.num_prompt, self.num_output)


@dataclass(frozen=True)
class Run:
    """One round of a load: when requests arrived, and the fleet's figures."""

    due_s: Sequence[float]
    measured: Figures


def main(argv: Sequence[str]) -> int:
    """Print a table; return 1 if a prediction is off."""
    args = _arguments(argv)
    with _command.progress(SpinnerColumn(), TextColumn("{task.description}")) as progress:
        task = progress.add_task("starting")
        with contextlib.nullcontext(args.base_url) if args.base_url else _fleets.temporary(model=args.model) as url:
            measuring = _measure(args, target_of(url), lambda text: progress.update(task, description=text))
            model, rates, runs = asyncio.run(measuring)
    print(f"{machine()}\n{_command.line('plan', argv)}\n\n{_node_lines(model)}\n")
    return 0 if _table(model, rates, runs, args.tolerance) else 1


async def _measure(
    args: argparse.Namespace, target: Target, on_step: Callable[[str], None]
) -> tuple[NodeModel, dict[Load, float], dict[Load, list[Run]]]:
    """Return the fitted model, the request rate of each load, and its rounds."""
    name, rates, runs = await target.first_model(), dict[Load, float](), defaultdict[Load, list[Run]](list)
    fit = Fit(Probe(target, name, args.vocab_size), args.fit_prompt_tokens, on_step)
    await fit.warm_up()
    for number in range(args.rounds):
        await fit.round()
        for load in args.loads:
            on_step(f"{load.text}, round {number + 1} of {args.rounds}")
            rate = rates.setdefault(load, load.per_s(fit.model()))
            shape = Shape.fixed(name, load.num_prompt, load.num_output, args.vocab_size)
            runs[load].append(await _run(target, shape, rate, args.seconds, number))
    return fit.model(), rates, runs


async def _run(target: Target, shape: Shape, rate: float, seconds: float, seed: int) -> Run:
    source = random.Random(seed)
    due_s = list(itertools.islice(arrivals.times(rate, 1.0, source), max(round(rate * seconds), MIN_REQUESTS)))
    asked = list(itertools.islice(workload.conversations(shape, random.Random()), len(due_s)))
    driver, began_s = Driver(target, TIMEOUT_S), time.monotonic()
    await driver.open(zip(due_s, asked, strict=True))
    measured = figures(driver.streams, time.monotonic() - began_s)
    if measured["failed"]:
        raise BatonError(f"{measured['failed']} requests failed: {measured['error']}")
    return Run(due_s, measured)


def predicted(model: NodeModel, load: Load, due_s: Sequence[float]) -> Figures:
    """Simulate the same requests on one node of each pool; return the figures."""
    asked = [
        SimulatedRequest(
            arrival_ms=1000 * at_s, num_prompt_tokens=load.num_prompt, num_output_tokens=load.num_output, hashes=[]
        )
        for at_s in due_s
    ]
    fleet, requests = simulation.simulate(model, 1, 1, asked, 0)
    outcome = simulation.outcome(model, fleet, requests)
    return {name: getattr(outcome, name) for name in SHOWN}


def _table(model: NodeModel, rates: dict[Load, float], runs: dict[Load, list[Run]], tolerance: float) -> bool:
    """Print the table; return whether all ratios are within the tolerance."""
    print(f"{'':<18}" + "".join(f"{title:>30}" for title, _ in SHOWN.values()))
    print(f"{'predicted/measured':<18}" + f"{'(rounds) ratio':>30}" * len(SHOWN))
    are_within = True
    for load, rate in rates.items():
        line = f"{f'{rate:.3g}/s {load.num_prompt}:{load.num_output}':<18}"
        rounds = [predicted(model, load, run.due_s) for run in runs[load]]
        for name, (_, unit) in SHOWN.items():
            measured = sorted(unit * run.measured[name] for run in runs[load])
            ours, theirs = (
                unit * statistics.median(prediction[name] for prediction in rounds),
                statistics.median(measured),
            )
            are_within &= abs(ours / theirs - 1) <= tolerance
            cell = f"{_short(ours)}/{_short(theirs)} ({_short(measured[0])}–{_short(measured[-1])})"
            line += f"{cell:>25}{ours / theirs:>5.2f}"
        print(line)
    return are_within


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _node_lines(model: NodeModel) -> str:
    cost = model.cost
    on_top = f"{model.overhead_ms:.1f} ms on top of TTFT"
    joins = f"{model.latency_ms:.1f} ms to the first, {model.join_ms:.1f} ms for each request that joins"
    return (
        f"a prompt: {cost.prefill_base_ms:.1f} ms and {cost.prefill_token_ms:.3f} ms a token, {on_top}, "
        f"× {model.prefill_beside:.2f} beside decoding\n"
        f"a step: {cost.decode_base_ms:.2f} ms and {cost.decode_request_ms:.3f} ms a request, {joins}, "
        f"× {model.decode_beside:.2f} beside prompts"
    )


def parse(text: str) -> Load:
    """Parse `RATE:PROMPT:OUTPUT`. Raises ArgumentTypeError if it has another form."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)(%?):(\d{1,6}):(\d{1,6})", text)
    if not match or not all(float(match[part]) for part in (1, 3, 4)):
        raise argparse.ArgumentTypeError(f"{text[:40]}: expected RATE:PROMPT:OUTPUT or SHARE%:PROMPT:OUTPUT")
    number = float(match[1])
    rate, share = (0.0, number / 100) if match[2] else (number, 0.0)
    return Load(text, rate, share, int(match[3]), int(match[4]))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _command.parser("plan", __doc__)
    add = parser.add_argument
    add(
        "--base-url",
        default="",
        help="running fleet of one prefill and one decode node (default: start one)",
    )
    add("--model", default="", help="checkpoint for the started fleet (default: the built-in model)")
    add(
        "--loads",
        nargs="+",
        type=parse,
        default=[*map(parse, LOADS)],
        metavar="RATE:PROMPT:OUTPUT",
        help="requests per second, or N%% of the capacity of one node per pool; then tokens in and out "
        f"(default: {' '.join(LOADS)})",
    )
    add("--rounds", type=whole(), default=5, help="rounds of the fit and of all loads")
    add("--seconds", type=positive(), default=8.0, help="duration of a load in a round")
    add("--fit-prompt-tokens", type=whole(16), default=1024, help="longest prompt to measure")
    flags.add_vocab_size(parser)
    add("--tolerance", type=real(), default=0.15, help="error of a prediction that fails, as a share")
    return parser.parse_args(argv)
