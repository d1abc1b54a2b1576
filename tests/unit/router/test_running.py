"""The state of a request in flight, whatever happens to its nodes."""

import asyncio
from typing import Any

import pytest

from baton.errors import NoCapacity
from baton.request import FinishReason, SamplingParams
from router.job import Job, PromptResult, PromptWork
from router.running import Paused, Running

pytestmark = pytest.mark.anyio

EOS = 9


class Sink:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_prompt(self, result: PromptResult) -> None:
        self.heard.append(result)

    def on_tokens(self, tokens: list[int], logprobs: Any) -> None:
        self.heard += tokens

    def on_finish(self, reason: FinishReason, usage: Any) -> None:
        self.heard.append((reason, usage.num_output_tokens))

    def on_error(self, error: Exception) -> None:
        self.heard.append(type(error))


def make(work: PromptWork | None = None, **sampling: Any) -> tuple[Running, Sink]:
    parameters = SamplingParams(**({"max_tokens": 4, "stop_token_ids": (EOS,)} | sampling))
    job = Job(request_id="r", token_ids=[1, 2, 3], sampling=parameters, prompt_work=work, deadline_s=0.0)
    sink = Sink()
    return Running(job, sink, 1), sink


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ([], None),
        ([5], None),
        ([5, EOS], FinishReason.STOP),
        ([EOS, 5], None),
        ([5, 5, 5, 5], FinishReason.LENGTH),
        ([5, 5, 5, 5, 5], FinishReason.LENGTH),
    ],
)
async def test_its_end_is_known_where_the_node_was_lost_before_it_could_say_so(
    output: list[int], reason: FinishReason | None
) -> None:
    running, sink = make()
    running.emit(output, None)
    assert running.reached_end is reason
    assert (sink.heard, list(running.token_ids)) == (output, [1, 2, 3, *output])
    assert (running.num_tokens, running.num_tokens_left) == (3 + len(output), 4 - len(output))


async def test_a_grammar_that_leaves_nothing_else_ends_it_before_min_tokens() -> None:
    running, _ = make(min_tokens=3)
    running.emit([5, EOS], None)
    assert running.reached_end is FinishReason.STOP


async def test_no_end_before_the_prompts_work_is_done() -> None:
    running, sink = make(PromptWork(num_logprobs=0), max_tokens=0)
    assert running.reached_end is None
    result = PromptResult([], b"")
    running.emit_prompt(result)
    assert running.reached_end is FinishReason.LENGTH
    assert sink.heard == [result]


@pytest.mark.parametrize(("cached", "counted"), [(2, 2), (7, 3)])
async def test_of_several_attempts_the_first_report_counts_and_no_more_than_the_prompt_was_cached(
    cached: int, counted: int
) -> None:
    running, _ = make()
    running.note(0, queue_s=1.0)
    running.note(cached, queue_s=2.0, prefill_s=3.0)
    running.note(1)
    assert running.usage.num_cached_tokens == counted
    assert running.usage.timings == {"queue_s": 1.0, "prefill_s": 3.0}


async def test_phases_are_in_the_order_of_a_requests_life_in_whatever_order_they_are_reported() -> None:
    running, _ = make()
    running.note(0, first_decode_s=4.0)
    running.note(0, transfer_s=3.0)
    running.note(0, prefill_s=2.0, queue_s=1.0)
    assert list(running.usage.timings.items()) == [
        ("queue_s", 1.0),
        ("prefill_s", 2.0),
        ("transfer_s", 3.0),
        ("first_decode_s", 4.0),
    ]


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_request_that_is_cancelled_or_late_is_not_begun_again(
    is_cancelled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """This holds even if its task has lost the cancellation."""
    running, sink = make()
    running.check_wanted()
    ended, outcomes = asyncio.Event(), []

    async def live() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            outcomes.append(error)
            raise

    running.start(live(), ended.set)  # its deadline has passed already
    await asyncio.sleep(0)
    if is_cancelled:
        running.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    assert len(outcomes) == 1
    with pytest.raises(asyncio.CancelledError):
        running.check_wanted()
    running.emit([5], None)
    running.fail(NoCapacity("late"))
    running.finish(FinishReason.LENGTH)
    assert sink.heard == ([] if is_cancelled else [5, NoCapacity])
    assert not caplog.records


async def test_a_request_ends_once() -> None:
    running, sink = make()
    running.emit([5, 6], None)
    running.finish(FinishReason.LENGTH)
    running.emit([7], None)
    running.finish(FinishReason.STOP)
    running.fail(NoCapacity("late"))
    assert sink.heard == [5, 6, (FinishReason.LENGTH, 2)]


async def test_a_pause_ends_the_attempt_and_holds_until_it_is_over() -> None:
    running, _ = make()
    errors: list[Exception] = []
    running.fail_attempt = errors.append
    running.pause()
    running.pause()
    assert [type(error) for error in errors] == [Paused] * 2
    waiting = asyncio.create_task(running.resumed())
    await asyncio.sleep(0)
    assert not waiting.done()
    running.resume()
    running.resume()
    await asyncio.wait_for(waiting, 1)
    await running.resumed()


async def test_work_on_a_prompt_is_not_interrupted_by_a_pause() -> None:
    """All of it would have to be repeated, and nothing of it is sent before it is complete."""
    running, _ = make(PromptWork(num_logprobs=0))
    running.fail_attempt = lambda error: pytest.fail("interrupted")
    running.pause()
