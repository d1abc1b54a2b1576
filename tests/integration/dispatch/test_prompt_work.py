"""Prompt work through the dispatcher: on a single node, with each position once, despite failures."""

from typing import Any

import pytest

from baton.errors import BatonError, Cancelled, InvalidRequest, NumericalError, Overloaded
from baton.request import Grammar, GrammarKind
from router.job import PromptWork
from router.placing import prefix_replica
from router.serving.failover import MAX_ATTEMPTS

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PROMPT = list(range(20, 30))
SCORES = PromptWork(num_logprobs=0)


def positions(result: Any) -> list[int]:
    return [-int(logprob) for part in result.logprobs for logprob in part.logprobs]


async def test_a_scored_prompt_needs_a_prefill_node_alone(fleet: Any) -> None:
    prefill = await fleet.add("prefill")
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 0, work=SCORES)
    usage = await sink.finished()
    assert [positions(result) for result in sink.prompts] == [list(range(1, 10))]
    assert (sink.tokens, usage.num_output_tokens, usage.num_cached_tokens) == ([], 0, 1)
    assert usage.timings == {"queue_s": 0.5, "prefill_s": 0.25}
    assert [name for name, _ in prefill.calls] == ["prompt"]


async def test_a_colocated_fleet_does_it_on_its_nodes(fleet: Any, output_of: Any) -> None:
    decode = await fleet.add("decode")
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 6, work=SCORES)
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 6)
    assert [name for name, _ in decode.calls] == ["prompt", "generate"]
    assert list(decode.seen("generate")[0].token_ids) == PROMPT + sink.tokens[:1]  # it goes on from the first token


@pytest.mark.parametrize(("max_tokens", "legs"), [(1, ["prompt"]), (5, ["prompt", "run"])])
async def test_tokens_follow_the_scores(fleet: Any, output_of: Any, max_tokens: int, legs: list[str]) -> None:
    prefills = [await fleet.add("prefill") for _ in range(3)]
    await fleet.add("decode")
    await fleet.start()
    _, sink = fleet.submit(PROMPT, max_tokens, work=SCORES)
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, max_tokens)
    assert len(sink.prompts) == 1
    by_node = [[name for name, _ in node.calls] for node in prefills]
    assert sorted(by_node) == [[], [], legs]  # the node that has the blocks computes the rest


async def test_they_follow_on_the_same_node_though_no_index_says_that_it_has_the_blocks(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_replica, "STALE_S", 0.0)
    prefills = [await fleet.add("prefill") for _ in range(3)]
    await fleet.add("decode")
    await fleet.start()
    await fleet.submit(PROMPT, 5, work=SCORES)[1].finished()
    assert sorted([name for name, _ in node.calls] for node in prefills) == [[], [], ["prompt", "run"]]


@pytest.mark.parametrize("how", ["dies", "freezes"])
async def test_a_node_lost_in_the_middle_costs_no_position_and_repeats_none(fleet: Any, until: Any, how: str) -> None:
    first = await fleet.add("prefill")
    first.prompt_stops_at = 4
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 0, work=SCORES)
    await until(lambda: first.seen("prompt"))
    second = await fleet.add("prefill")
    await fleet.alive(2)
    if how == "dies":
        await first.die()
    else:
        first.warm.clear()
    await sink.finished()
    assert [positions(result) for result in sink.prompts] == [list(range(1, 10))]
    assert [generation.attempt for generation in second.seen("prompt")] == [1]


async def test_lost_positions_are_noticed(fleet: Any) -> None:
    node = await fleet.add("prefill")
    await fleet.start()
    for lost in (3, 9):
        node.lost_positions = {lost}
        _, sink = fleet.submit(PROMPT, 0, work=SCORES)
        outcome = await sink.outcome()
        assert isinstance(outcome, BatonError)
        assert sink.prompts == []
    assert len(node.seen("prompt")) == 2 * MAX_ATTEMPTS


async def test_embeddings_are_retried_and_come_once(fleet: Any) -> None:
    node = await fleet.add("prefill")
    node.refusals = [Overloaded("full"), Cancelled("lost")]
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 0, work=PromptWork(embeds=True, dimensions=3))
    await sink.finished()
    assert [len(result.embedding) for result in sink.prompts] == [12]
    assert len(node.seen("prompt")) == 3


@pytest.mark.parametrize(
    "error", [NumericalError("NaN"), InvalidRequest("this model's embeddings have 8 dimensions", param="dimensions")]
)
async def test_the_requests_own_errors_are_final(fleet: Any, error: BatonError) -> None:
    node = await fleet.add("prefill")
    node.refusals = [error]
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 0, work=SCORES)
    outcome = await sink.outcome()
    assert (outcome.code, outcome.message, outcome.param) == (error.code, error.message, error.param)
    assert len(node.calls) == 1


async def test_a_cancelled_request_ends_its_call_and_a_late_one_its_time(fleet: Any, until: Any) -> None:
    node = await fleet.add("prefill")
    node.prompt_stops_at = 4
    await fleet.start()
    handle, sink = fleet.submit(PROMPT, 0, work=SCORES)
    await until(lambda: node.seen("prompt"))
    handle.cancel()
    await until(lambda: node.num_broken_runs == 1)
    assert not sink.ended.done()
    _, late = fleet.submit(PROMPT, 0, work=SCORES, timeout_s=0.5)
    assert (await late.outcome()).code == "deadline_exceeded"
    await until(lambda: node.num_broken_runs == 2)


async def test_where_a_grammar_governs_the_output_the_prompts_node_draws_nothing(fleet: Any, output_of: Any) -> None:
    prefill, _ = await fleet.add("prefill"), await fleet.add("decode")
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 4, work=SCORES, grammar=Grammar(GrammarKind.REGEX, "a+", "regex"))
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 4)
    [scored], [run] = prefill.seen("prompt"), prefill.seen("run")
    assert (scored.sampling.max_tokens, scored.sampling.grammar) == (0, None)
    assert (run.sampling.max_tokens, run.sampling.grammar is not None) == (4, True)
