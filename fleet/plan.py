"""`baton plan`: how many prefill and decode nodes a workload needs, what they cost, and how they perform.

    baton plan --fit http://127.0.0.1:8000 --node node.json          # measure one node of each pool, keep the figures
    baton plan --node node.json --rate 40 --prompt-tokens 512 --output-tokens 128
    baton plan --node node.json --trace trace.jsonl --cost-prefill-hour 12 --cost-decode-hour 12

Nodes are counted for the peak times --peak-factor, plus --headroom. Outcomes come from a simulator, which runs the
router's own policy over fitted nodes in virtual time. Fitting, simulation and sizing are in `bench/_plan`.
"""

import argparse
import asyncio
import math
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import SpinnerColumn, TextColumn

from baton.errors import ConfigError
from baton.process.bounds import positive, real, whole
from bench._command import progress
from bench._load import flags, lengths
from bench._load.target import target_of
from bench._plan import fitting, node_model, simulation, sizing
from bench._plan.node_model import NodeModel
from bench._plan.simulation import Outcome, Workload
from bench._plan.sizing import Limits, Size
from bench._report import files
from bench._simulated import trace
from bench._simulated.hardware import SimulatedRequest

_HOUR_MS = 3_600_000.0
_MAX_HOURS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for nodes, workload, limits and prices."""
    add = parser.add_argument
    add("--fit", metavar="URL", default="", help="measure a fleet of one prefill and one decode node, and write --node")
    add("--fit-prompt-tokens", type=whole(16), default=1024, help="longest prompt to measure")
    flags.add_vocab_size(parser)
    add("--node", type=Path, help="costs of a node: a file of --fit, or of `baton bench serve --json`")
    add("--prefill-tokens-per-s", type=real(0, 1e9), default=0.0, help="instead of --node: speed of a prefill node")
    add("--decode-base-ms", type=real(), default=0.0, help="instead of --node: time of an empty decode step")
    add("--decode-request-ms", type=real(), default=0.0, help="instead of --node: time that a request adds to a step")
    add("--rate", type=real(), default=0.0, help="requests per second, at the peak")
    add("--burstiness", type=real(0, 1000), default=1.0, help="of arrivals: 1 is Poisson, higher values give bursts")
    flags.add_lengths(parser, "512", "128")
    add("--trace", type=Path, help="instead of a rate and lengths: requests in Mooncake's format")
    add("--trace-speed", type=positive(), default=1.0, help="replay the trace this many times as fast")
    add("--slo-ttft-ms", type=positive(), default=1000.0, help="limit for p99 of TTFT")
    add("--slo-tpot-ms", type=positive(), default=50.0, help="limit for p99 of TPOT")
    add("--peak-factor", type=positive(1000), default=2.0, help="plan for this multiple of the peak")
    add("--headroom", type=real(0, 1000), default=0.3, help="additional share of nodes")
    add("--size", metavar="PREFILL:DECODE", default="", help="simulate these numbers of nodes instead of searching")
    add("--cost-prefill-hour", type=real(), default=0.0, help="price of a prefill node")
    add("--cost-decode-hour", type=real(), default=0.0, help="price of a decode node")
    add("--gpus-per-node", type=whole(0), default=0, help="also print the number of GPUs")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    model = _model(args)
    if args.fit and not args.rate and not args.trace:
        print(msgspec.json.format(msgspec.json.encode(model)).decode())
        return 0
    workload = _workload(args)
    limits = Limits(args.slo_ttft_ms / 1000, args.slo_tpot_ms / 1000)
    if args.size:
        size = _size(args.size)
        outcome, at_peak = sizing.run(model, workload, args.trace_speed, size), size
    else:
        at_peak, outcome = sizing.search(model, workload, args.trace_speed * args.peak_factor, limits)
        size = Size(_with(at_peak.prefill, args.headroom), _with(at_peak.decode, args.headroom))
    hours = _hours(model, workload, args.trace_speed, size)
    if args.json:
        report = {"size": size, "without_headroom": at_peak, "outcome": outcome, "hours": hours, "node": model}
        print(msgspec.json.encode(report).decode())
        return 0
    for line in _plan_lines(args, workload, at_peak, size):
        console.print(line)
    where = "simulated" if args.size else f"simulated at ×{args.peak_factor:g}, without headroom"
    console.print(f"{where}: {_outcome_text(outcome)}")
    for number, hour in enumerate(hours):
        console.print(f"hour {number:>2}: {_outcome_text(hour)}")
    return 0


def _model(args: argparse.Namespace) -> NodeModel:
    if args.fit:
        files.check(str(args.node) if args.node else None)
        model = _fitted(args)
        if args.node:
            node_model.write(args.node, model)
        return model
    if args.node:
        return node_model.read(args.node)
    return node_model.of_rates(args.prefill_tokens_per_s, args.decode_base_ms, args.decode_request_ms)


def _fitted(args: argparse.Namespace) -> NodeModel:
    target = target_of(args.fit)
    with progress(SpinnerColumn(), TextColumn("{task.description}")) as shown:
        task = shown.add_task("warming up")

        async def fit() -> NodeModel:
            return await fitting.fit(
                target,
                await target.first_model(),
                max_prompt_tokens=args.fit_prompt_tokens,
                vocab_size=args.vocab_size,
                on_step=lambda text: shown.update(task, description=text),
            )

        return asyncio.run(fit())


def _workload(args: argparse.Namespace) -> Workload:
    if args.trace:
        return Workload(lines=trace.read(args.trace))
    if not args.rate:
        raise ConfigError("no workload: give --rate with --prompt-tokens and --output-tokens, or --trace")
    prompt, output = lengths.parse(args.prompt_tokens), lengths.parse(args.output_tokens)
    return Workload(rate=args.rate, burstiness=args.burstiness, prompt=prompt, output=output)


def _size(text: str) -> Size:
    parts = text.split(":")
    if len(parts) != 2 or not all(
        part.isdecimal() and len(part) < 9 and 1 <= int(part) <= sizing.MAX_NODES for part in parts
    ):
        raise ConfigError(f"--size: {text}: expected PREFILL:DECODE, each between 1 and {sizing.MAX_NODES}")
    return Size(int(parts[0]), int(parts[1]))


def _with(number: int, headroom: float) -> int:
    return math.ceil(number * (1 + headroom) - 1e-9)


def _hours(model: NodeModel, workload: Workload, speed: float, size: Size) -> list[Outcome]:
    """Simulate the first 24 hours of a trace, hour by hour; empty without a trace."""
    if not workload.lines:
        return []
    start_ms = workload.lines[0].timestamp
    lines = [line for line in workload.lines if line.timestamp - start_ms < _MAX_HOURS * _HOUR_MS]
    asked = trace.requests(lines, speed)
    fleet, requests = simulation.simulate(model, size.prefill, size.decode, asked, workload.block_size)
    hours: dict[int, list[SimulatedRequest]] = {}
    for request in requests:
        hours.setdefault(int(request.arrival_ms * speed // _HOUR_MS), []).append(request)
    return [simulation.outcome(model, fleet, part) for part in hours.values()]


def _plan_lines(args: argparse.Namespace, workload: Workload, at_peak: Size, size: Size) -> list[str]:
    num_prompt, num_output = workload.mean_tokens
    rate = workload.mean_rate * args.trace_speed
    lines = [f"{rate:.2f} requests/s, {num_prompt:.0f} tokens in and {num_output:.0f} out on average"]
    if not args.size:
        lines.append(f"at ×{args.peak_factor:g}: {at_peak.prefill} prefill + {at_peak.decode} decode nodes")
    lines.append(f"nodes: {size.prefill} prefill + {size.decode} decode")
    if args.gpus_per_node:
        lines[-1] += f", {(size.prefill + size.decode) * args.gpus_per_node} GPUs"
    cost = size.prefill * args.cost_prefill_hour + size.decode * args.cost_decode_hour
    if cost:
        per_million = cost / (rate * num_output * 3600 / 1e6)
        lines.append(
            f"cost: {cost:,.2f} an hour, {cost * 730:,.0f} a month, {per_million:,.2f} per million output tokens"
        )
    return lines


def _outcome_text(outcome: Outcome) -> str:
    return (
        f"{outcome.requests_per_s:.2f} requests/s, {outcome.output_tokens_per_s:.0f} tokens/s, "
        f"TTFT p50 {1000 * outcome.ttft_p50_s:.0f} p99 {1000 * outcome.ttft_p99_s:.0f} ms, "
        f"TPOT p50 {1000 * outcome.tpot_p50_s:.1f} p99 {1000 * outcome.tpot_p99_s:.1f} ms, "
        f"prefill busy {outcome.prefill_utilization:.0%}, {outcome.decode_running:.1f} requests on a decode node"
    )
