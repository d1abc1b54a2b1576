"""A plan compared with a run: the table, the exit code, and the input of the simulator."""

import argparse

import pytest

from baton.step_cost import StepCost
from bench import plan
from bench._plan import probes
from bench._plan.node_model import NodeModel
from tests.unit.bench.test_load_driver import NUM_TOKENS

MODEL = NodeModel(cost=StepCost(prefill_token_ms=0.1, decode_base_ms=10), noise=0.0)


def test_a_fit_and_its_loads_take_turns_and_are_compared(endpoint, capsys, monkeypatch):
    for name, value in {"SINGLES": 2, "PROMPTS": 4, "QUIET_S": 0.05, "PAUSE_S": (0.0, 0.01)}.items():
        monkeypatch.setattr(probes, name, value)
    paced, url = endpoint
    flags = f"--base-url {url} --fit-prompt-tokens 16 --rounds 1 --seconds 0.1 --tolerance 1e6"
    assert plan.main([*flags.split(), "--loads", f"50:8:{NUM_TOKENS}"]) == 0
    table = capsys.readouterr().out
    assert f"50/s 8:{NUM_TOKENS}" in table
    assert table.count("–") == len(plan.SHOWN)  # the range of each figure
    assert len(paced.sent) > plan.MIN_REQUESTS


def test_one_ratio_beyond_the_tolerance_fails_all(capsys):
    load = plan.parse("1:400:11")
    due_s = [0.0, 5.0, 9.0]
    exact = plan.predicted(MODEL, load, due_s)
    slower = exact | {"ttft_p50_s": 1.25 * exact["ttft_p50_s"]}
    outlier = dict.fromkeys(exact, 1e3)  # an outlier in one round does not change a median
    for measured, is_within in ((exact, True), (slower, False)):
        runs = [plan.Run(due_s, figures) for figures in (measured, measured, outlier)]
        assert plan._table(MODEL, {load: 1.0}, {load: runs}, 0.15) == is_within
    assert " 0.80" in capsys.readouterr().out


def test_a_load_is_a_rate_or_a_share_of_capacity():
    assert plan.parse("2.5:256:48").per_s(MODEL) == 2.5
    assert plan.parse("50%:400:1").per_s(MODEL) == pytest.approx(0.5 * 1000 / 40)
    for text in ("2:256", "0:1:1", "2:256:0", "x:1:1"):
        with pytest.raises(argparse.ArgumentTypeError):
            plan.parse(text)


def test_the_simulator_gets_the_arrivals_of_the_run():
    load = plan.parse("1:400:11")
    found = plan.predicted(MODEL, load, [0.0, 0.0, 5.0])
    assert found["ttft_p50_s"] == pytest.approx(0.040)  # the second waits for the first
    assert found["tpot_p50_s"] == pytest.approx(0.010)
    assert found["output_tokens_per_s"] == pytest.approx(33 / 5.14, rel=0.01)
