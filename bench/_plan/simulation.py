"""Simulates a workload on a number of nodes in virtual time, with the router's own policy (`bench._simulated`)."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from bench._load import arrivals
from bench._load.figures import nearest_rank
from bench._load.lengths import Lengths
from bench._plan.node_model import NodeModel
from bench._simulated import trace
from bench._simulated.fleet import SimulatedFleet
from bench._simulated.hardware import SimulatedRequest
from bench._simulated.trace import TraceLine


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a simulation. Times are in seconds; utilization is the share of time that a pool's nodes worked."""

    num_requests: int
    requests_per_s: float
    output_tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    e2e_p50_s: float
    prefill_utilization: float
    decode_running: float  # average number of requests on a decode node


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A workload: arrivals at a rate with distributed lengths, or a trace."""

    rate: float = 0.0
    burstiness: float = 1.0
    prompt: Lengths | None = None
    output: Lengths | None = None
    lines: Sequence[TraceLine] = ()

    @property
    def mean_rate(self) -> float:
        """Requests per second."""
        if not self.lines:
            return self.rate
        return len(self.lines) / max((self.lines[-1].timestamp - self.lines[0].timestamp) / 1000, 1e-3)

    @property
    def mean_tokens(self) -> tuple[float, float]:
        """The mean tokens of prompts and of answers."""
        if self.lines:
            number = len(self.lines)
            return sum(x.input_length for x in self.lines) / number, sum(x.output_length for x in self.lines) / number
        return (self.prompt.mean if self.prompt else 0.0), (self.output.mean if self.output else 0.0)

    @property
    def block_size(self) -> int:
        """Tokens per hash of the trace; 0: a node's own block size."""
        return trace.BLOCK_TOKENS if self.lines else 0

    def requests(self, speed: float, number: int) -> Iterator[SimulatedRequest]:
        """Yield at most `number` requests, arriving `speed` times as fast."""
        if self.lines:
            return itertools.islice(trace.requests(self.lines, speed), number)
        return itertools.islice(self._drawn(speed), number)

    def _drawn(self, speed: float) -> Iterator[SimulatedRequest]:
        source = random.Random(0)
        if self.prompt is None or self.output is None:
            return
        for at_s in arrivals.times(self.rate * speed, self.burstiness, source):
            yield SimulatedRequest(
                arrival_ms=1000 * at_s,
                num_prompt_tokens=self.prompt.draw(source),
                num_output_tokens=self.output.draw(source),
                hashes=[],
            )


def simulate(
    model: NodeModel, num_prefill: int, num_decode: int, asked: Iterable[SimulatedRequest], block_size: int
) -> tuple[SimulatedFleet, list[SimulatedRequest]]:
    """Run the simulation; return the fleet and its requests. Nothing is refused."""
    fleet = SimulatedFleet(num_prefill, num_decode, model.hardware(block_size), max_waiting=10**7)
    requests: list[SimulatedRequest] = []

    def kept() -> Iterator[SimulatedRequest]:
        for request in asked:
            requests.append(request)
            yield request

    fleet.run(kept())
    return fleet, requests


def outcome(model: NodeModel, fleet: SimulatedFleet, requests: Sequence[SimulatedRequest]) -> Outcome:
    """Return the figures of all requests, or of some of them."""
    began_ms, ended_ms = requests[0].arrival_ms, max(request.end_ms for request in requests)
    took_s = max(ended_ms - began_ms, 1e-3) / 1000
    ttft = sorted((request.ttft_ms + model.overhead_ms) / 1000 for request in requests)
    tpot = sorted(
        (r.end_ms - r.first_token_ms) / (r.num_output_tokens - 1) / 1000 for r in requests if r.num_output_tokens > 1
    )
    e2e = sorted((request.latency_ms + model.overhead_ms) / 1000 for request in requests)
    decoding_s = sum(request.end_ms - request.first_token_ms for request in requests) / 1000
    return Outcome(
        num_requests=len(requests),
        requests_per_s=len(requests) / took_s,
        output_tokens_per_s=sum(request.num_output_tokens for request in requests) / took_s,
        ttft_p50_s=nearest_rank(ttft, 50),
        ttft_p99_s=nearest_rank(ttft, 99),
        tpot_p50_s=nearest_rank(tpot, 50),
        tpot_p99_s=nearest_rank(tpot, 99),
        e2e_p50_s=nearest_rank(e2e, 50),
        prefill_utilization=sum(n.work_ms for n in fleet.prefills) / 1000 / took_s / max(len(fleet.prefills), 1),
        decode_running=decoding_s / took_s / max(len(fleet.decodes), 1),
    )
