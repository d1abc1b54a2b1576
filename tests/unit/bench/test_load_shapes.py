"""The load that is generated: lengths, arrivals, conversations, traces."""

import itertools
import random
import statistics

import pytest

from baton.errors import ConfigError
from bench._load import arrivals, lengths, workload
from bench._load.workload import Shape
from bench._simulated.trace import TraceLine


@pytest.mark.parametrize(
    ("text", "mean"), [("128", 128), ("uniform:10-30", 20), ("lognormal:100,0.5", 113.3), ("lognormal:100,0", 100)]
)
def test_lengths_have_the_mean_that_they_report(text: str, mean: float):
    found, source = lengths.parse(text), random.Random(0)
    assert found.mean == pytest.approx(mean, rel=0.001)
    assert statistics.fmean(found.draw(source) for _ in range(5000)) == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize("text", ["", "0", "-3", "1e3", "uniform:9-3", "uniform:0-3", "lognormal:10", "lognormal:9,5"])
def test_invalid_lengths_are_refused(text: str):
    with pytest.raises(ConfigError):
        lengths.parse(text)


@pytest.mark.parametrize(("burstiness", "variation"), [(0, 0.0), (1, 1.0), (4, 2.0)])
def test_arrivals_have_their_rate_and_burstiness(burstiness: float, variation: float):
    due = list(itertools.islice(arrivals.times(20.0, burstiness, random.Random(1)), 20_000))
    gaps = [after - before for before, after in itertools.pairwise(due)]
    assert len(gaps) / due[-1] == pytest.approx(20.0, rel=0.05)
    assert statistics.pstdev(gaps) * 20 == pytest.approx(variation, abs=0.1)


def test_prompts_share_only_their_prefixes():
    shape = Shape("m", lengths.parse("20"), lengths.parse("5"), num_prefixes=2, prefix_tokens=30)
    asked = list(itertools.islice(workload.conversations(shape, random.Random(0)), 6))
    prompts = [conversation.turns[0]["prompt"] for conversation in asked]
    assert {len(prompt) for prompt in prompts} == {50}
    assert len({tuple(prompt[:30]) for prompt in prompts}) == 2
    assert prompts[0][:30] == prompts[2][:30] != prompts[1][:30]
    assert len({tuple(prompt[30:]) for prompt in prompts}) == 6


def test_a_turn_contains_all_earlier_turns():
    shape = Shape("m", lengths.parse("20"), lengths.parse("5"), num_turns=3)
    first, second, third = next(workload.conversations(shape, random.Random(0))).turns
    assert [len(turn["prompt"]) for turn in (first, second, third)] == [20, 45, 70]
    assert second["prompt"][:20] == first["prompt"]
    assert third["prompt"][:45] == second["prompt"]


def test_a_chat_sends_its_text():
    conversation = next(workload.conversations(Shape("m", chat="Why?"), random.Random(0)))
    assert conversation.path == "/v1/chat/completions"
    assert conversation.turns[0]["messages"] == [{"role": "user", "content": "Why?"}]
    assert "ignore_eos" not in conversation.turns[0]


def test_a_trace_keeps_its_times_lengths_and_common_prefixes():
    lines = [TraceLine(1000, 700, 40, [7, 8]), TraceLine(3000, 1030, 20, [7, 8, 9])]
    first, second = workload.of_trace(lines, Shape("m"), speed=2.0, shrink=1)
    assert (first.at_s, second.at_s) == (0.0, 1.0)
    assert (len(first.turns[0]["prompt"]), len(second.turns[0]["prompt"])) == (700, 1030)
    assert (first.turns[0]["max_tokens"], second.turns[0]["max_tokens"]) == (40, 20)
    assert second.turns[0]["prompt"][:700] == first.turns[0]["prompt"]
    small = next(workload.of_trace(lines, Shape("m"), speed=1.0, shrink=10))
    assert (len(small.turns[0]["prompt"]), small.turns[0]["max_tokens"]) == (70, 4)
