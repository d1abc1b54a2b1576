"""Measures placement: replays a trace through the router's own policy, on simulated nodes in virtual time.

`baton bench routing --trace FILE` (Mooncake's format) compares it with round robin, least loaded and plain prefix
affinity. The trace is sped up until computing its prompts, with all hits of an unbounded cache, would keep the
prefill nodes busy for `--utilization` of the time. Results repeat exactly, except `choice µs`.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.progress import Progress

from baton.process.bounds import positive, real, whole
from bench import _command
from bench._load.figures import nearest_rank
from bench._simulated import trace
from bench._simulated.fleet import Place, Pools, SimulatedFleet
from bench._simulated.hardware import Hardware, SimulatedRequest
from bench._simulated.policies import POLICIES
from bench._simulated.trace import TraceLine
from router.placing.policy import Ask, NodeChoice

PREFILL_SHARE = 0.75  # share of prefill nodes
BOUNDLESS = 10**9


class Row(msgspec.Struct, frozen=True):
    """The results of one policy."""

    name: str
    hit_rate: float  # hits as a share of all blocks
    ideal_rate: float
    ttft_s: tuple[float, float, float]  # p50, p90, p99
    tpot_ms: float  # mean
    imbalance: tuple[float, float]  # most work over mean: prefill, decode
    num_refused: int
    num_alone: int
    choice_us: float

    def line(self) -> str:
        """Return the line of the table."""
        ttft = "  " + "".join(f"{seconds:>8.2f}" for seconds in self.ttft_s)
        return (
            f"{self.name:<16}{self.hit_rate:>7.3f}{self.hit_rate / self.ideal_rate:>8.1%}{ttft}{self.tpot_ms:>8.1f}"
            f"{self.imbalance[0]:>9.2f}{self.imbalance[1]:>8.2f}{self.num_refused:>9}{self.num_alone:>7}"
            f"{self.choice_us:>8.0f}"
        )


HEAD = (
    f"{'policy':<16}{'hits':>7}{'of max':>8}{'TTFT p50':>10}{'p90':>8}{'p99':>8}{'TPOT ms':>8}{'prefill':>9}"
    f"{'decode':>8}"
    f"{'refused':>9}{'alone':>7}{'µs':>8}"
)


def main(argv: Sequence[str]) -> int:
    """Print a table for each number of nodes."""
    args = _arguments(argv)
    lines = trace.read(args.trace)[: args.max_requests or None]
    hits, blocks = trace.ideal_hits(lines)
    print(f"# {platform.processor() or platform.machine()}, python {platform.python_version()}")
    print(f"# {_command.line('routing', argv)}")
    print(f"# {len(lines)} requests, {blocks} blocks; a boundless cache would hit {hits / blocks:.3f} of them")
    print("# hits: of all blocks; TTFT in seconds; prefill, decode: most work on a node over the mean of its pool")
    with _command.progress() as progress:
        for capacity in args.blocks:
            for num_nodes in args.nodes:
                _print_table(args, lines, hits / blocks, num_nodes, capacity or BOUNDLESS, progress)
    return 0


def replay(
    lines: Sequence[TraceLine],
    place: Place,
    *,
    num_nodes: int,
    hardware: Hardware,
    utilization: float,
    max_ttft_ms: float = 0.0,
    on_arrival: Callable[[], None] = lambda: None,
) -> tuple[SimulatedFleet, list[SimulatedRequest], float]:
    """Return the fleet after the trace, its requests, and the mean time of a choice in µs."""
    num_prefill = max(round(PREFILL_SHARE * num_nodes), 1)
    timed = _Timed(place)
    fleet = SimulatedFleet(num_prefill, max(num_nodes - num_prefill, 1), hardware, place=timed, max_waiting=100_000)
    requests: list[SimulatedRequest] = []

    def arriving() -> Iterator[SimulatedRequest]:
        for request in trace.requests(lines, _speed(lines, hardware, num_prefill, utilization)):
            request.max_ttft_ms = max_ttft_ms
            requests.append(request)
            yield request

    fleet.run(arriving(), on_arrival)
    return fleet, requests, timed.mean_us


def summary(
    name: str, fleet: SimulatedFleet, requests: Sequence[SimulatedRequest], ideal_rate: float, choice_us: float
) -> Row:
    """Return the figures of a replay."""
    served = [request for request in requests if request.refused_ms < 0]
    ttft = sorted(request.ttft_ms / 1000 for request in served)
    tpot = [(r.end_ms - r.first_token_ms) / (r.num_output_tokens - 1) for r in served if r.num_output_tokens > 1]
    num_blocks = sum(len(request.hashes) for request in served)
    return Row(
        name=name,
        hit_rate=sum(request.num_cached_blocks for request in served) / num_blocks,
        ideal_rate=ideal_rate,
        ttft_s=(nearest_rank(ttft, 50), nearest_rank(ttft, 90), nearest_rank(ttft, 99)),
        tpot_ms=sum(tpot) / max(len(tpot), 1),
        imbalance=(
            _imbalance([node.work_ms for node in fleet.prefills]),
            _imbalance([node.work_ms for node in fleet.decodes]),
        ),
        num_refused=len(requests) - len(served),
        num_alone=sum(request.is_alone for request in served),
        choice_us=choice_us,
    )


class _Timed:
    """A policy that measures its own time."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._total_s, self._num_calls = 0.0, 0

    def __call__(self, ask: Ask, pools: Pools) -> NodeChoice | None:
        began_s = time.perf_counter()
        choice = self._place(ask, pools)
        self._total_s += time.perf_counter() - began_s
        self._num_calls += 1
        return choice

    @property
    def mean_us(self) -> float:
        return 1e6 * self._total_s / max(self._num_calls, 1)


def _print_table(
    args: argparse.Namespace,
    lines: Sequence[TraceLine],
    ideal_rate: float,
    num_nodes: int,
    capacity: int,
    progress: Progress,
) -> None:
    hardware = Hardware(num_blocks=capacity)
    num_prefill = max(round(PREFILL_SHARE * num_nodes), 1)
    size = "boundless" if capacity == BOUNDLESS else f"{capacity} blocks"
    print(f"\n{num_nodes} nodes ({num_prefill} prefill), caches {size}, utilization {args.utilization:g}\n{HEAD}")
    for name, place in POLICIES.items():
        if args.policies and name not in args.policies:
            continue
        task = progress.add_task(f"{num_nodes} nodes, {name}", total=len(lines))
        fleet, requests, choice_us = replay(
            lines,
            place,
            num_nodes=num_nodes,
            hardware=hardware,
            utilization=args.utilization,
            max_ttft_ms=1000 * args.max_ttft_s,
            on_arrival=lambda task=task: progress.advance(task),  # type: ignore[misc]
        )
        progress.remove_task(task)
        print(summary(name, fleet, requests, ideal_rate, choice_us).line(), flush=True)


def _speed(lines: Sequence[TraceLine], hardware: Hardware, num_prefill: int, utilization: float) -> float:
    """Return the factor by which to speed the trace up."""
    span_ms = max(lines[-1].timestamp - lines[0].timestamp, 1.0)
    return utilization * num_prefill * span_ms / trace.ideal_work_ms(lines, hardware)


def _imbalance(loads: Sequence[float]) -> float:
    mean = sum(loads) / len(loads)
    return max(loads) / mean if mean else 1.0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _command.parser("routing", __doc__)
    parser.add_argument("--trace", type=Path, required=True, help="trace in Mooncake's format")
    parser.add_argument("--nodes", type=whole(1, 1000), nargs="+", default=[4, 8, 16, 32, 64], help="numbers of nodes")
    parser.add_argument(
        "--blocks", type=whole(0), nargs="+", default=[0], help="blocks in each node's pool; 0: unbounded"
    )
    parser.add_argument("--utilization", type=positive(), default=0.7, help="of prefill nodes, with all possible hits")
    parser.add_argument("--max-requests", type=whole(0), default=0, help="use only the first requests; 0: all")
    parser.add_argument(
        "--max-ttft-s", type=real(), default=0.0, help="refuse requests with a longer predicted TTFT; 0: none"
    )
    parser.add_argument("--policies", nargs="+", default=[], choices=list(POLICIES), help="only these policies")
    return parser.parse_args(argv)
