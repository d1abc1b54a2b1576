"""Node models, the search for a size, and simulated fleets."""

import itertools
from pathlib import Path

import pytest

from baton.errors import ConfigError
from baton.step_cost import StepCost
from bench._load import lengths
from bench._plan import node_model, sizing
from bench._plan.least_squares import non_negative
from bench._plan.node_model import NodeModel
from bench._plan.simulation import Workload
from bench._plan.sizing import Limits, Size
from bench._simulated.trace import TraceLine

MODEL = NodeModel(
    cost=StepCost(prefill_base_ms=5, prefill_token_ms=0.1, decode_base_ms=10, decode_request_ms=0.2), overhead_ms=3
)
LIMITS = Limits(ttft_s=0.5, tpot_s=0.03)


def load(rate: float) -> Workload:
    return Workload(rate=rate, prompt=lengths.parse("400"), output=lengths.parse("100"))


def test_least_squares_are_exact_and_never_negative():
    rows = [(1, x, x * x) for x in (1.0, 2.0, 5.0, 9.0)]
    assert non_negative(rows, [3 + 2 * x + 0.5 * x * x for _, x, _ in rows]) == pytest.approx([3, 2, 0.5])
    base, slope = non_negative([(1, 1), (1, 2), (1, 3)], [3, 2, 1])
    assert slope == 0.0
    assert base > 0
    assert non_negative([(1, 1), (2, 1)], [0.1, -5.0], keep=1)[0] == 0.0


def test_pools_slow_each_other_when_both_work():
    quiet = NodeModel(cost=MODEL.cost, noise=0.0)
    shared = NodeModel(cost=MODEL.cost, noise=0.0, prefill_beside=1.5, decode_beside=1.2)
    alone, beside = (sizing.run(model, load(0.1), 1.0, Size(1, 1), number=100) for model in (quiet, shared))
    assert beside.ttft_p50_s == pytest.approx(alone.ttft_p50_s, rel=0.01)
    assert beside.tpot_p50_s == pytest.approx(alone.tpot_p50_s, rel=0.01)
    alone, beside = (sizing.run(model, load(8.0), 1.0, Size(1, 1)) for model in (quiet, shared))
    assert beside.prefill_utilization == pytest.approx(1.5 * alone.prefill_utilization, rel=0.02)
    assert 1.05 * alone.tpot_p50_s < beside.tpot_p50_s < 1.25 * alone.tpot_p50_s
    paired = [sizing.run(model, load(16.0), 1.0, Size(2, 2)).prefill_utilization for model in (quiet, shared)]
    assert paired[1] == pytest.approx(1.5 * paired[0], rel=0.02)


def test_an_arriving_request_holds_up_decoding():
    still = NodeModel(cost=MODEL.cost, noise=0.0, latency_ms=8.0)
    held = NodeModel(cost=MODEL.cost, noise=0.0, latency_ms=8.0, join_ms=8.0)
    for rate in (0.1, 8.0):
        before, after = (sizing.run(model, load(rate), 1.0, Size(1, 1)) for model in (still, held))
        others_s = rate * 0.008 * after.tpot_p50_s  # requests that arrive during a token, each of which takes 8 ms
        assert after.tpot_p50_s - before.tpot_p50_s == pytest.approx(others_s, rel=0.3, abs=1e-5)


def test_the_capacity_of_a_pair_is_that_of_the_busier_node():
    assert sizing.capacity(MODEL, 400, 1) == pytest.approx(1000 / 45)
    step_ms = 10 + 0.2 * sizing.FULL_BATCH
    assert sizing.capacity(MODEL, 16, 500) == pytest.approx(1000 * sizing.FULL_BATCH / 500 / step_ms)


def test_times_vary_as_much_as_measured():
    p99s = [
        sizing.run(NodeModel(cost=MODEL.cost, noise=noise), load(0.2), 1.0, Size(1, 1)).ttft_p99_s
        for noise in (0.0, 0.3)
    ]
    assert 1.5 * p99s[0] < p99s[1]


def test_models_are_written_and_read(tmp_path: Path):
    node_model.write(tmp_path / "node.json", MODEL)
    assert node_model.read(tmp_path / "node.json") == MODEL
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="neither"):
        node_model.read(tmp_path / "other.json")


def test_a_report_of_a_benchmark_is_a_rough_model():
    runs = [
        {"requests": 10, "failed": 0, "prompt_tokens": 1280, "prompt_tokens_per_s": rate * 128, "ttft_p50_s": ttft}
        | {"requests_per_s": rate, "e2e_mean_s": 1.0 + ttft, "ttft_mean_s": ttft, "tpot_p50_s": tpot}
        for rate, ttft, tpot in ((1.0, 0.05, 0.011), (20.0, 0.3, 0.030))
    ]
    found = node_model.of_report({"runs": runs})
    assert found.cost.prefill_token_ms == pytest.approx(1000 / 2560)
    assert found.cost.decode_base_ms == pytest.approx(10.0)
    assert found.cost.decode_request_ms == pytest.approx(1.0)
    with pytest.raises(ConfigError):
        node_model.of_report({"runs": []})


def test_twice_the_load_takes_about_twice_the_nodes():
    small, big = (sizing.search(MODEL, load(rate), 1.0, LIMITS)[0] for rate in (20, 40))
    assert small.prefill < big.prefill <= 2 * small.prefill + 1
    assert small.decode <= big.decode <= 2 * small.decode + 1


def test_the_found_size_keeps_both_limits_and_a_smaller_one_does_not():
    size, found = sizing.search(MODEL, load(40), 1.0, LIMITS)
    assert found.ttft_p99_s <= LIMITS.ttft_s
    assert found.tpot_p99_s <= LIMITS.tpot_s
    starved = sizing.run(MODEL, load(40), 1.0, Size(1, size.decode))  # 45 ms each, so at most 22 a second
    assert starved.ttft_p99_s > LIMITS.ttft_s


def test_a_simulated_node_takes_what_its_model_says():
    found = sizing.run(MODEL, load(0.2), 1.0, Size(1, 1))
    assert found.ttft_p50_s == pytest.approx((5 + 40 + 3) / 1000, rel=0.05)
    assert found.tpot_p50_s == pytest.approx(0.0102, rel=0.05)
    assert found.requests_per_s == pytest.approx(0.2, rel=0.1)


def test_limits_that_a_single_request_exceeds_are_refused():
    with pytest.raises(ConfigError, match="slo-tpot"):
        sizing.search(MODEL, load(1), 1.0, Limits(1.0, 0.005))


def test_blocks_bound_a_batch_too():
    tight = NodeModel(cost=MODEL.cost, num_blocks=100)
    assert sizing.largest_batch(tight, 450, 500, 1.0) == 3
    assert sizing.largest_batch(MODEL, 450, 500, 0.03) == 100


def test_a_trace_is_a_workload():
    blocks = itertools.count()
    lines = [TraceLine(i * 100.0, 700, 20, [0, next(blocks) + 1]) for i in range(300)]
    asked = Workload(lines=lines)
    assert asked.mean_rate == pytest.approx(10, rel=0.01)
    assert asked.mean_tokens == (700, 20)
    found = sizing.run(MODEL, asked, 1.0, Size(2, 1))
    assert found.num_requests == 300
    assert found.ttft_p50_s < 0.05  # the first block of 512 tokens is cached


def test_a_thousand_nodes_are_simulated():
    found = sizing.run(MODEL, load(4000), 1.0, Size(400, 600), number=100)
    assert found.num_requests == 100
    assert found.ttft_p99_s < 0.2
