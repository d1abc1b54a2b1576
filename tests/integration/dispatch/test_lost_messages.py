"""Messages and rows that come late, twice or never: the client sees every token exactly once."""

import asyncio
from typing import Any

import pytest

from baton.errors import Cancelled, NoCapacity
from baton.request import FinishReason
from baton.v1 import node_pb2
from router.placing.candidates import MAX_FAILED_TRANSFERS
from router.serving import failover

pytestmark = pytest.mark.anyio

PROMPT = list(range(10, 30))
Batch = node_pb2.StepBatch


async def test_tokens_that_overtake_the_first_one_wait_for_it(fleet: Any, until: Any, output_of: Any) -> None:
    prefill = await fleet.add("prefill")
    await fleet.add("decode")
    prefill.first_token_held = asyncio.Event()
    await fleet.start()
    _, sink = fleet.submit(PROMPT, num_logprobs=0)
    links = fleet.dispatcher.links
    await until(lambda: any(len(leg._held) == 12 for link in links for leg in link.legs.values()))
    assert sink.tokens == []
    prefill.first_token_held.set()
    assert (await sink.finished()).num_attempts == 1
    assert sink.tokens == output_of(PROMPT, 12)
    assert sink.logprobs == [-float(index) for index in range(12)]


async def test_messages_and_rows_that_come_twice_are_dropped(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")

    def twice(batch: Batch) -> list[Batch]:
        return [batch, batch]

    def rows_twice(batch: Batch) -> list[Batch]:
        doubled = Batch()
        doubled.CopyFrom(batch)
        for column in ("keys", "attempts", "indices", "token_ids"):
            getattr(doubled, column).extend(getattr(batch, column))
        return [doubled]

    decode.tampers = [twice, rows_twice, twice, rows_twice]
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 1
    assert sink.tokens == output_of(PROMPT, 12)


async def test_rows_of_other_attempts_are_dropped(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")

    def with_strangers(batch: Batch) -> list[Batch]:
        batch.keys.extend([batch.keys[0], 777])
        batch.attempts.extend([batch.attempts[0] + 1, 0])
        batch.indices.extend([batch.indices[0] + 1, 0])
        batch.token_ids.extend([5, 5])
        batch.finished.add(key=batch.keys[0], attempt=batch.attempts[0] + 1, num_output_tokens=1, reason=1)
        return [batch]

    decode.tampers = [lambda batch: [batch], with_strangers, with_strangers]
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 1
    assert sink.tokens == output_of(PROMPT, 12)


async def test_a_lost_row_makes_a_new_attempt(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")

    def without_rows(batch: Batch) -> list[Batch]:
        for column in ("keys", "attempts", "indices", "token_ids"):
            batch.ClearField(column)
        return [batch]

    decode.tampers = [lambda batch: [batch], without_rows]
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 2
    assert sink.tokens == output_of(PROMPT, 12)
    assert (1, 0) in decode.cancelled


async def test_a_lost_last_row_makes_a_new_attempt(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")

    def without_the_last(batch: Batch) -> list[Batch]:
        if batch.finished:
            for column in ("keys", "attempts", "indices", "token_ids"):
                batch.ClearField(column)
        return [batch]

    decode.tampers = [without_the_last] * 11
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 2
    assert sink.tokens == output_of(PROMPT, 12)


async def test_a_request_with_all_tokens_finishes_without_the_nodes_last_message(
    fleet: Any, until: Any, output_of: Any
) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")

    def without_end(batch: Batch) -> list[Batch]:
        batch.ClearField("finished")
        return [batch]

    decode.tampers = [without_end] * 11
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 12)
    await decode.die()
    reason, usage = await sink.outcome()
    assert (reason, usage.num_attempts, sink.tokens) == (FinishReason.LENGTH, 1, output_of(PROMPT, 12))
    assert len(prefill.calls) == 1


async def test_a_lost_message_makes_new_attempts_of_all_on_that_node(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.tampers = [lambda batch: [batch], lambda batch: []]
    await fleet.start()
    sinks = [fleet.submit([n, *PROMPT])[1] for n in range(3)]
    for n, sink in enumerate(sinks):
        await sink.finished()
        assert sink.tokens == output_of([n, *PROMPT], 12)


async def test_a_lost_last_message_is_noticed_by_the_next_one(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.tampers = [lambda batch: [] if batch.finished else [batch]] * 11
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert (await sink.finished()).num_attempts == 2
    assert sink.tokens == output_of(PROMPT, 12)


def lose_row(node: Any, number: int, num_attempts: int) -> None:
    """Drop row `number` of the node in each of the first `num_attempts` attempts."""
    seen: dict[int, int] = {}

    def tamper(batch: Batch) -> list[Batch]:
        node.tampers.append(tamper)
        attempt = batch.attempts[0] if batch.attempts else num_attempts
        seen[attempt] = seen.get(attempt, 0) + 1
        if attempt < num_attempts and seen[attempt] == number:
            for column in ("keys", "attempts", "indices", "token_ids"):
                batch.ClearField(column)
        return [batch]

    node.tampers.append(tamper)


async def test_four_failures_in_vain_end_a_request_besides_transfers_that_failed(fleet: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    lose_row(decode, 1, 9)
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    assert isinstance(await sink.outcome(), NoCapacity)
    assert 4 <= len(decode.calls) <= 4 + MAX_FAILED_TRANSFERS


async def test_a_transfer_that_was_given_up_with_its_node_is_no_failed_transfer(fleet: Any) -> None:
    prefill = await fleet.add("prefill")
    await fleet.add("decode")
    prefill.transfer_errors = [Cancelled("lost") for _ in range(99)]
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 99)
    assert isinstance(await sink.outcome(), NoCapacity)
    assert len(prefill.calls) == failover.MAX_ATTEMPTS


async def test_a_long_request_outlives_more_failures_as_long_as_it_gets_on(fleet: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    lose_row(await fleet.add("decode"), 3, 5)
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 40)
    assert (await sink.finished()).num_attempts == 6
    assert sink.tokens == output_of(PROMPT, 40)


async def test_a_request_that_gets_on_may_fail_often_and_not_for_ever(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "MAX_FAILURES", 6)
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    lose_row(decode, 3, 99)
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 100)
    assert isinstance(await sink.outcome(), NoCapacity)
    assert 4 <= len(decode.calls) <= 4 + MAX_FAILED_TRANSFERS
