"""The fit, on nodes with known costs; and its probes, on an endpoint with known times."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from baton.errors import BatonError
from baton.step_cost import StepCost
from bench._load.sse_client import Stream
from bench._load.target import Target
from bench._plan import probes
from bench._plan.fitting import Fit
from bench._plan.node_model import NodeModel
from bench._plan.probes import Alone, Beside, Decoding, Pace, Probe, pace, spacing_ms
from tests.unit.bench.test_load_driver import FIRST_S, GAP_S, NUM_TOKENS, Paced, serve

Found = TypeVar("Found")

COST = StepCost(
    prefill_base_ms=6.0,
    prefill_token_ms=0.1,
    prefill_context_ms=1e-4,
    decode_base_ms=2.0,
    decode_request_ms=0.15,
    decode_token_ms=0.0005,
)
OVERHEAD, LATENCY, JOIN, PREFILL_BESIDE, DECODE_BESIDE = 3.0, 4.0, 5.0, 1.2, 1.1


class Known(Probe):
    """Return what probes would measure on nodes with these costs, on cores that are `slow` times as slow."""

    def __init__(self) -> None:
        self.slow = 1.0

    async def alone(self, num_prompt: int) -> Alone:
        work = COST.prefill_ms(num_prompt, 0, 2048)
        return Alone(self.slow * (OVERHEAD + work), self.slow * (LATENCY + COST.decode_step_ms(1, num_prompt)), 0.1)

    async def beside(self, num_prompt: int, stream_tokens: int) -> Beside:
        work = PREFILL_BESIDE * COST.prefill_ms(num_prompt, 0, 2048)
        step = COST.decode_base_ms + 2 * COST.decode_request_ms
        busy = DECODE_BESIDE * step / (1 - JOIN / work)  # share of the time that is left for steps
        quiet_pace, busy_pace = Pace(self.slow * step, 2.0), Pace(self.slow * busy, 2.0)
        return Beside(self.slow * (OVERHEAD + work), self.slow * work, quiet_pace, busy_pace)

    async def decoding(self, kind: Decoding) -> Pace:
        context = kind.concurrency * (kind.prompt_tokens + kind.output_tokens / 2)
        step = COST.decode_base_ms + COST.decode_request_ms * kind.concurrency + COST.decode_token_ms * context
        return Pace(self.slow * step, kind.concurrency)


def test_a_fit_recovers_costs_although_the_machine_is_slow_for_a_while() -> None:
    async def fitted() -> NodeModel:
        probe = Known()
        fit = Fit(probe, 1024)
        for probe.slow in (1.0, 2.0, 1.0):
            await fit.round()
        return fit.model()

    found = asyncio.run(fitted())
    for name in COST.__struct_fields__:
        assert getattr(found.cost, name) == pytest.approx(getattr(COST, name), rel=0.02), name
    assert found.overhead_ms == pytest.approx(OVERHEAD)
    assert found.prefill_beside == pytest.approx(PREFILL_BESIDE)
    assert found.decode_beside == pytest.approx(DECODE_BESIDE, rel=0.02)
    assert found.join_ms == pytest.approx(JOIN, rel=0.02)
    assert found.latency_ms == pytest.approx(LATENCY, abs=0.5)


def test_a_pace_covers_only_its_time_window() -> None:
    steady = Stream(0.0, [1 + 0.01 * i for i in range(101)])
    late = Stream(0.0, [1.5 + 0.01 * i for i in range(101)])
    found = pace([steady, late, Stream(0.0)], 1.0, 2.0)
    assert found.event_ms == pytest.approx(10, rel=0.02)
    assert found.num_running == pytest.approx(1.5)
    assert pace([], 1.0, 2.0).event_ms == 0


def test_work_is_the_time_between_first_tokens() -> None:
    assert spacing_ms([Stream(0.0, [at]) for at in (0.4, 0.1, 0.25, 0.31)]) == pytest.approx(100)


def probed(endpoint: Paced, ask: Callable[[Probe], Awaitable[Found]]) -> Found:
    async def run() -> Found:
        serving = serve(endpoint)
        target: Target = await anext(serving)
        try:
            return await ask(Probe(target, "m", 4000))
        finally:
            await serving.aclose()  # type: ignore[attr-defined] # it is a generator

    return asyncio.run(run())


def test_probes_measure_the_times_of_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PAUSE_S", (0.0, 0.01))
    alone = probed(Paced(), lambda probe: probe.alone(8))
    assert 1000 * FIRST_S <= alone.ttft_ms < 2000 * FIRST_S
    endpoint = Paced()
    decoding = probed(endpoint, lambda probe: probe.decoding(Decoding(3, 8, NUM_TOKENS)))
    begin_s, end_s = max(times[0] for times in endpoint.sent), min(times[-1] for times in endpoint.sent)
    sent = pace([Stream(0.0, times) for times in endpoint.sent], begin_s, end_s)
    assert decoding.event_ms == pytest.approx(sent.event_ms, rel=0.5)


def test_streams_end_with_the_prompts_beside_them() -> None:
    endpoint = Paced()
    found = probed(endpoint, lambda probe: probe.beside(8, NUM_TOKENS))
    assert found.single_ms >= 1000 * FIRST_S
    assert found.busy.num_running > 0
    assert found.quiet.event_ms > 500 * GAP_S
    assert endpoint.most_open == probes.STREAMS + probes.PROMPTS_AT_A_TIME


def test_a_failed_probe_is_reported() -> None:
    refusing = Paced(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    with pytest.raises(BatonError, match="503"):
        probed(refusing, lambda probe: probe.run(1, 8, 2, 1))
