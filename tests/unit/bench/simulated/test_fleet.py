"""The router's policy on simulated nodes, at loads that no test machine could produce."""

import random
from collections.abc import Iterator

import msgspec
import pytest

from bench._simulated.fleet import Place, Pools, SimulatedFleet, place_by_cost
from bench._simulated.hardware import Hardware, SimulatedRequest
from router.placing import policy
from router.placing.policy import Ask, NodeChoice

HARDWARE = Hardware(noise=0.0)


def conversations(
    rate_per_s: float, num_requests: int, suffix_tokens: int, seed: int = 1, max_ttft_ms: float = 0.0
) -> Iterator[SimulatedRequest]:
    """Yield turns of forty conversations in random order; each adds `suffix_tokens` to the conversation so far."""
    rng, now_ms, serial = random.Random(seed), 0.0, 0
    histories: list[list[int]] = [[] for _ in range(40)]
    extra = [0] * 40
    for _ in range(num_requests):
        now_ms += rng.expovariate(rate_per_s / 1000)
        at = rng.randrange(40)
        if extra[at] + suffix_tokens + 200 > 40_000:
            histories[at], extra[at] = [], 0
        num_tokens = extra[at] + suffix_tokens
        while len(histories[at]) < num_tokens // HARDWARE.block_size:
            serial += 1
            histories[at].append(serial)
        extra[at] = num_tokens
        yield SimulatedRequest(
            arrival_ms=now_ms,
            num_prompt_tokens=num_tokens,
            num_output_tokens=rng.randint(20, 200),
            hashes=list(histories[at]),
            max_ttft_ms=max_ttft_ms,
        )


def never_alone(ask: Ask, pools: Pools) -> NodeChoice | None:
    busy = [msgspec.structs.replace(node, queue_ms=1e9) for node in pools.decodes]  # this affects prompts only
    return policy.choose(ask, pools.prefills, pools.prefill_cached, busy, pools.decode_cached)


def always_alone(ask: Ask, pools: Pools) -> NodeChoice | None:
    return policy.choose(ask, [], [], pools.decodes, pools.decode_cached)


def run(place: Place, requests: Iterator[SimulatedRequest]) -> tuple[SimulatedFleet, list[SimulatedRequest]]:
    fleet, seen = SimulatedFleet(2, 2, HARDWARE, place=place, max_waiting=10_000), list(requests)
    fleet.run(seen)
    return fleet, seen


def mean_latency_ms(place: Place, rate_per_s: float, suffix_tokens: int) -> float:
    _, requests = run(place, conversations(rate_per_s, 250, suffix_tokens))
    assert all(request.end_ms >= request.first_token_ms >= request.arrival_ms for request in requests)
    return sum(request.latency_ms for request in requests) / len(requests)


@pytest.mark.parametrize("rate_per_s", [0.5, 3.0])
@pytest.mark.parametrize("suffix_tokens", [16, 128, 600, 2500, 8000])
def test_choosing_is_never_much_slower_than_always_or_never_prefilling_on_decode_nodes(
    rate_per_s: float, suffix_tokens: int
) -> None:
    chosen = mean_latency_ms(place_by_cost, rate_per_s, suffix_tokens)
    fixed = min(mean_latency_ms(place, rate_per_s, suffix_tokens) for place in (never_alone, always_alone))
    assert chosen <= 1.1 * fixed + 20


def test_conversations_stay_with_their_blocks() -> None:
    _, requests = run(place_by_cost, conversations(2.0, 400, 600))
    late = requests[200:]
    held = sum(request.num_cached_blocks for request in late)
    assert held > 0.9 * sum(len(request.hashes) - 2 for request in late)


def test_the_same_seed_gives_the_same_run() -> None:
    first, again = (run(place_by_cost, conversations(2.0, 100, 600))[1] for _ in range(2))
    assert [request.end_ms for request in first] == [request.end_ms for request in again]


def goodput(fleet_and_requests: tuple[SimulatedFleet, list[SimulatedRequest]], limit_ms: float) -> float:
    """Return goodput: prompt tokens per second of requests whose first token came in time."""
    _, requests = fleet_and_requests
    good = sum(r.num_prompt_tokens for r in requests if r.refused_ms < 0 and r.ttft_ms <= limit_ms)
    return 1000 * good / max(requests[-1].arrival_ms, 1.0)


def fresh(rate_per_s: float, duration_s: float, max_ttft_ms: float, start_ms: float = 0.0) -> list[SimulatedRequest]:
    """Yield prompts of 4,000 tokens that are not cached anywhere."""
    rng, now_ms, found = random.Random(3), start_ms, list[SimulatedRequest]()
    while (now_ms := now_ms + rng.expovariate(rate_per_s / 1000)) < start_ms + 1000 * duration_s:
        hashes = [hash((start_ms, len(found), i)) for i in range(7)]
        found.append(
            SimulatedRequest(
                arrival_ms=now_ms,
                num_prompt_tokens=4000,
                num_output_tokens=50,
                hashes=hashes,
                max_ttft_ms=max_ttft_ms,
            )
        )
    return found


CAPACITY_PER_S = 2 * 1000 / HARDWARE.cost.prefill_ms(4000, 0, HARDWARE.chunk_tokens)
LIMIT_MS = 3000.0


@pytest.mark.parametrize("overload", [2.0, 5.0])
def test_overload_costs_no_goodput_and_recovery_is_immediate(overload: float) -> None:
    peak = max(
        goodput(run(place_by_cost, iter(fresh(share * CAPACITY_PER_S, 120, LIMIT_MS))), LIMIT_MS)
        for share in (0.8, 1.0)
    )
    before = fresh(
        0.6 * CAPACITY_PER_S, 60, LIMIT_MS
    )  # most are placed at once, which tells nothing about the speed of the queue
    storm = fresh(overload * CAPACITY_PER_S, 120, LIMIT_MS, start_ms=before[-1].arrival_ms)
    calm = fresh(0.5 * CAPACITY_PER_S, 60, LIMIT_MS, start_ms=storm[-1].arrival_ms)
    _, requests = run(place_by_cost, iter(before + storm + calm))
    served = [request for request in storm if request.refused_ms < 0]
    in_time = [request for request in served if request.ttft_ms <= LIMIT_MS]
    assert len(in_time) >= 0.95 * len(served)
    assert 1000 * sum(r.num_prompt_tokens for r in in_time) / (calm[0].arrival_ms - storm[0].arrival_ms) >= 0.9 * peak
    refused = [request for request in requests if request.refused_ms >= 0]
    assert refused
    assert all(request.refused_ms == request.arrival_ms for request in refused)  # at once
    after = [request for request in calm if request.arrival_ms > storm[-1].arrival_ms + 15_000]
    assert not [request for request in after if request.refused_ms >= 0]
    assert max(request.ttft_ms for request in after) < LIMIT_MS
