"""Requests that end before their last token: cancelled, refused, late, or with their router."""

import time
from typing import Any

import pytest

from baton.errors import DeadlineExceeded, InvalidRequest, NoCapacity, NumericalError, TransferError
from baton.net.registry import list_nodes
from router.job import PromptWork
from router.placing.placement import Placement

pytestmark = pytest.mark.anyio

PROMPT = list(range(10, 30))


@pytest.mark.parametrize("when", ["computing", "decoding"])
async def test_cancel_reaches_both_legs(fleet: Any, until: Any, when: str) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    decode.pause_at = 4
    await fleet.start()
    if when == "computing":
        prefill.compute.clear()
    handle, sink = fleet.submit(PROMPT)
    await until(lambda: len(decode.seen("reserve")) == 1 and len(prefill.seen("run")) == 1)
    if when == "decoding":
        await until(lambda: len(sink.tokens) == 4)
    handle.cancel()
    handle.cancel()
    await until(lambda: decode.cancelled == [(1, 0)])
    await until(lambda: prefill.num_broken_runs == (when == "computing"))
    assert fleet.dispatcher.num_in_flight == 0
    assert not sink.num_ends


async def test_an_attempt_counts_on_its_nodes_until_its_end(
    fleet: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Placement] = []
    monkeypatch.setattr(Placement, "begin", lambda placement: counted.append(placement))
    monkeypatch.setattr(Placement, "end", lambda placement: counted.remove(placement))
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    decode.pause_at = 4
    await fleet.start()
    handle, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 4)
    assert len(counted) == 1
    handle.cancel()
    await until(lambda: not fleet.dispatcher.num_in_flight)
    assert not counted
    decode.go.set()
    prefill.transfer_errors = [TransferError("digest")]
    await fleet.submit(PROMPT)[1].finished()
    assert not counted


async def test_a_handle_can_be_cancelled_from_its_own_sink(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    await fleet.start()
    handle, sink = fleet.submit(PROMPT, 1000)
    record = sink.on_tokens

    def stop_at_five(tokens: list[int], logprobs: Any) -> None:
        record(tokens, logprobs)
        if len(sink.tokens) == 5:
            handle.cancel()

    sink.on_tokens = stop_at_five
    await until(lambda: decode.cancelled == [(1, 0)])
    assert len(sink.tokens) == 5
    assert not sink.num_ends


async def test_a_request_whose_cancellation_was_lost_is_not_placed(fleet: Any, until: Any) -> None:
    dispatcher = await fleet.start()
    handle, _ = fleet.submit(PROMPT)
    handle._task = None  # to cancel
    handle.cancel()
    decode = await fleet.add("decode")
    await until(lambda: dispatcher.num_in_flight == 0)
    assert not decode.calls


async def test_a_sink_that_raises_ends_its_own_request_only(fleet: Any, until: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    await fleet.start()
    _, bad = fleet.submit(PROMPT)
    bad.on_tokens = None
    _, good = fleet.submit(PROMPT)
    await good.finished()
    assert good.tokens == output_of(PROMPT, 12)
    await until(lambda: (1, 0) in decode.cancelled)


async def test_errors_of_a_request_go_to_the_client_and_are_not_retried(fleet: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    await fleet.start()
    decode.finish_error = "numerical_error"
    assert isinstance(await fleet.submit(PROMPT)[1].outcome(), NumericalError)
    assert [g.attempt for g in prefill.seen("run")] == [0]
    decode.finish_error = ""
    prefill.refusals = [InvalidRequest("too odd", param="prompt")]
    error = await fleet.submit(PROMPT)[1].outcome()
    assert isinstance(error, InvalidRequest)
    assert (error.message, error.param) == ("too odd", "prompt")


async def test_the_deadline_holds_while_tokens_flow(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.pause_at = 3
    await fleet.start()
    _, sink = fleet.submit(PROMPT, timeout_s=0.5)
    assert isinstance(await sink.outcome(), DeadlineExceeded)
    assert len(sink.tokens) == 3
    await until(lambda: decode.cancelled == [(1, 0)])


async def test_a_router_that_leaves_finishes_what_it_has(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.pause_at = 2
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 2)
    fleet.dispatcher.leave()
    deadline = time.monotonic() + 5
    while "draining" not in [n.state for n in await list_nodes(fleet.redis) if n.role == "router"]:
        assert time.monotonic() < deadline
    decode.go.set()
    await sink.finished()
    assert len(sink.tokens) == 12


async def test_stopping_tells_every_sink(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.pause_at = 2
    await fleet.start()
    handle, cancelled = fleet.submit(PROMPT)
    _, kept = fleet.submit(PROMPT)
    await until(lambda: len(kept.tokens) == 2)
    handle.cancel()
    await fleet.dispatcher.stop()
    assert isinstance(await kept.outcome(), NoCapacity)
    assert not cancelled.num_ends
    assert [n for n in await list_nodes(fleet.redis) if n.role == "router"] == []


@pytest.mark.parametrize(
    ("call", "work"), [("on_tokens", None), ("on_finish", None), ("on_prompt", PromptWork(num_logprobs=0))]
)
async def test_a_client_whose_answer_cannot_be_made_is_told_so(
    fleet: Any, until: Any, monkeypatch: pytest.MonkeyPatch, call: str, work: PromptWork | None
) -> None:
    await fleet.add("prefill")
    await fleet.add("decode")
    dispatcher = await fleet.start()
    _, sink = fleet.submit(PROMPT, 12, work=work)
    monkeypatch.setattr(sink, call, lambda *args: 1 / 0)
    error = await sink.outcome()
    assert (error.code, error.message) == ("internal_error", "internal error")
    await until(lambda: dispatcher.num_in_flight == 0)
    assert sink.num_ends == 1
