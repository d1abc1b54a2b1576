"""Messages of two nodes, in any order: each token is delivered once, and both nodes learn of the end."""

import asyncio
from typing import Any

import pytest

from baton.errors import BatonError, InvalidRequest, NodeUnavailable, NumericalError, TransferError
from baton.request import FinishReason, Grammar, GrammarKind
from baton.v1 import node_pb2, types_pb2
from tests.unit.router.serving.one_attempt import ERROR, IDS, Case

pytestmark = pytest.mark.anyio


async def test_words_in_their_order(case: Case) -> None:
    assert case.decode.prefill is case.prefill.record
    case.hear(case.decode, granted=[node_pb2.Granted(**IDS)])
    case.first()
    case.transferred()
    assert case.prefill.leg is None
    case.hear(case.decode, started=[types_pb2.Started(**IDS, num_cached_tokens=2)])
    case.tokens(2, 11, 12)
    assert not case.outcome.done()
    case.finished(4)
    assert await case.end() is FinishReason.LENGTH
    assert (case.owner.tokens, case.num_computed, case.owner.num_cached_tokens) == ([10, 11, 12], 1, 1)
    assert (case.prefill.told, case.decode.told) == (["start", "grant"], ["start"])


async def test_what_comes_before_the_first_token_waits_for_it(case: Case) -> None:
    case.tokens(2, 11)
    case.tokens(3, 12)
    case.finished(4)
    await asyncio.sleep(0)
    assert (case.owner.tokens, case.outcome.done()) == ([], False)
    case.first()
    assert await case.end() is FinishReason.LENGTH
    assert case.owner.tokens == [10, 11, 12]


async def test_words_that_come_twice_count_once(case: Case) -> None:
    for _ in range(2):
        case.first()
    for _ in range(2):
        case.tokens(2, 11, 12)
    for _ in range(2):
        case.finished(4)
    assert await case.end() is FinishReason.LENGTH
    assert (case.owner.tokens, case.num_computed) == ([10, 11, 12], 1)


async def test_a_first_token_that_is_the_last_cancels_the_reservation(case: Case) -> None:
    case.first(finish_reason=FinishReason.STOP.value)
    assert await case.end() is FinishReason.STOP
    assert (case.owner.tokens, case.decode.told) == ([10], ["start", "cancel"])
    assert case.prefill.told == ["start"]


async def test_where_one_token_is_wanted_the_prefill_node_is_enough() -> None:
    case = Case(decode=False)
    await asyncio.sleep(0)
    case.first()
    assert await case.end() is FinishReason.LENGTH
    assert case.owner.tokens == [10]


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"index": 0}, TransferError), ({"index": 2}, TransferError), ({"finish_reason": ERROR}, NumericalError)],
)
async def test_a_first_token_that_is_none(case: Case, fields: dict[str, int], error: type[BatonError]) -> None:
    case.first(**fields)
    assert await case.end() is error
    assert case.owner.tokens == []
    assert (case.prefill.told, case.decode.told) == (["start", "cancel"], ["start", "cancel"])


@pytest.mark.parametrize(
    ("num_tokens", "reason", "error"),
    [(3, FinishReason.LENGTH, TransferError), (5, FinishReason.LENGTH, TransferError),
     (4, FinishReason.ABORT, NodeUnavailable)],
)  # fmt: skip
async def test_an_end_that_is_none(case: Case, num_tokens: int, reason: FinishReason, error: type[BatonError]) -> None:
    case.first()
    case.tokens(2, 11, 12)
    case.finished(num_tokens, reason.value)
    assert await case.end() is error
    assert case.decode.told == ["start"]  # it has forgotten the request by itself


async def test_an_error_at_the_end_does_not_wait_for_the_first_token(case: Case) -> None:
    case.finished(1, ERROR, "numerical_error")
    assert await case.end() is NumericalError
    assert (case.prefill.told, case.decode.told) == (["start", "cancel"], ["start"])


async def test_a_grammar_that_a_node_cannot_follow_is_named_by_the_clients_field() -> None:
    case = Case(prefill=False, grammar=Grammar(GrammarKind.REGEX, "a*", "guided_regex"))
    await asyncio.sleep(0)
    case.finished(1, ERROR, "invalid_value")
    with pytest.raises(InvalidRequest) as caught:
        await case.outcome
    assert caught.value.param == "guided_regex"


async def test_on_one_node_alone_tokens_begin_at_once() -> None:
    case = Case(prefill=False)
    await asyncio.sleep(0)
    case.hear(case.decode, granted=[node_pb2.Granted(**IDS)], started=[types_pb2.Started(**IDS, num_cached_tokens=2)])
    case.tokens(1, 10, 11)
    case.finished(3)
    assert await case.end() is FinishReason.LENGTH
    assert (case.owner.tokens, case.num_computed, case.owner.num_cached_tokens) == ([10, 11], 1, 2)


@pytest.mark.parametrize(("num_rows", "outcome"), [(0, TransferError), (1, TransferError), (2, FinishReason.LENGTH)])
async def test_log_probabilities_that_are_wanted_come_with_their_tokens(num_rows: int, outcome: Any) -> None:
    case = Case(num_logprobs=0)
    await asyncio.sleep(0)
    case.first()
    columns = {"keys": [1, 1], "attempts": [2, 2], "indices": [2, 3], "token_ids": [11, 12]}
    rows = [types_pb2.TokenLogprobs(**IDS, index=index) for index in (3, 2)]
    case.hear(case.decode, **columns, logprobs=rows[:num_rows])
    case.finished(4)
    assert await case.end() is outcome
    assert case.owner.tokens == ([10, 11, 12] if num_rows == 2 else [10])


async def test_what_is_said_of_others_and_of_other_attempts_is_not_heard(case: Case) -> None:
    case.first()
    for key, attempt in ((1, 1), (1, 3), (8, 2)):
        case.hear(case.decode, finished=[types_pb2.Finished(key=key, attempt=attempt, num_output_tokens=2)])
    case.hear(case.decode, keys=[1, 8, 1, 1], attempts=[1, 2, 3, 2], indices=[2, 2, 2, 2], token_ids=[90, 91, 92, 11])
    case.finished(3)
    assert await case.end() is FinishReason.LENGTH
    assert case.owner.tokens == [10, 11]


async def test_a_row_that_is_missing_ends_it(case: Case) -> None:
    case.first()
    case.tokens(2, 11)
    case.tokens(4, 13)
    assert await case.end() is TransferError
    assert case.owner.tokens == [10, 11]
