"""What the words of two nodes come to, in whatever order they arrive: tokens once, and both nodes told of the end."""

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from baton.errors import BatonError, NodeUnavailable, NumericalError, Overloaded, TransferError
from baton.request import FinishReason, Generation, SamplingParams
from baton.v1 import node_pb2, types_pb2
from router.nodes.errors import Refused
from router.nodes.step_batch import tell_legs
from router.serving.attempt import Attempt

pytestmark = pytest.mark.anyio

IDS = {"key": 1, "attempt": 2}
LENGTH, ERROR = FinishReason.LENGTH.value, FinishReason.ERROR.value


class Link:
    """Remembers what the node is told."""

    def __init__(self, node_id: str) -> None:
        self.record = SimpleNamespace(node_id=node_id)
        self.told: list[str] = []
        self.leg: Any = None
        self.prefill: Any = None  # that ships to it
        self.is_full = False

    def start(self, leg: Any, generation: Any, prefill: Any = None) -> None:
        if self.is_full:
            raise Overloaded("the node does not read")
        self.told.append("start")
        self.leg, self.prefill = leg, prefill

    def grant(self, granted: Any) -> None:
        self.told.append("grant")

    def cancel(self, leg: Any) -> None:
        self.told.append("cancel")

    def detach(self, leg: Any) -> None:
        self.leg = None

    def avoid(self) -> None:
        pass


class Owner:
    """Remembers the tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.num_cached_tokens = 0

    def emit(self, tokens: list[int], logprobs: Any) -> None:
        self.tokens += tokens

    def note(self, num_cached_tokens: int, **timings: float) -> None:
        self.num_cached_tokens += num_cached_tokens

    def mark(self, name: str, **attributes: Any) -> None:
        pass


class Case:
    """An attempt that goes on from one output token, and has begun."""

    def __init__(self, *, prefill: bool = True, decode: bool = True, **sampling: Any) -> None:
        self.prefill, self.decode = Link("p"), Link("d")
        self.owner, self.num_computed = Owner(), 0
        generation = Generation(
            request_id="r", **IDS, token_ids=[5, 6, 7], num_prompt_tokens=2,
            sampling=SamplingParams(max_tokens=9, **sampling), router_id="router",
        )  # fmt: skip
        links: Any = self.prefill if prefill else None, self.decode if decode else None
        self.attempt = Attempt(generation, *links, self.owner, self._computed, 1.0)
        self.outcome = asyncio.create_task(self.attempt.run())

    def _computed(self) -> None:
        self.num_computed += 1

    def hear(self, link: Any, **words: Any) -> None:
        tell_legs(node_pb2.StepBatch(**words), {1: self.attempt}, link)

    def first(self, token_id: int = 10, index: int = 1, **fields: Any) -> None:
        word = types_pb2.FirstToken(**IDS, token_id=token_id, index=index, num_cached_tokens=1, **fields)
        self.hear(self.prefill, first_tokens=[word])

    def tokens(self, first: int, *token_ids: int) -> None:
        columns = {"keys": [1], "attempts": [2]}
        for index, token_id in enumerate(token_ids, first):
            self.hear(self.decode, **columns, indices=[index], token_ids=[token_id])

    def finished(self, num_output_tokens: int, reason: int = LENGTH, code: str = "") -> None:
        fields: dict[str, Any] = {"num_output_tokens": num_output_tokens, "reason": reason, "error_code": code}
        word = types_pb2.Finished(**IDS, **fields)
        self.hear(self.decode, finished=[word])

    def transferred(self) -> None:
        self.hear(self.prefill, transferred=[node_pb2.Transferred(**IDS)])

    async def end(self) -> FinishReason | type[BatonError]:
        async with asyncio.timeout(1):
            try:
                return await self.outcome
            except BatonError as error:
                return type(error)
            finally:
                assert self.prefill.leg is self.decode.leg is None


@pytest.fixture
async def case() -> Case:
    made = Case()
    await asyncio.sleep(0)
    return made


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


@pytest.mark.parametrize("says", ["transferred", "started"])
async def test_a_prefill_node_matters_until_the_decode_node_has_all(case: Case, says: str) -> None:
    case.first()
    if says == "transferred":
        case.transferred()
    else:
        case.hear(case.decode, started=[types_pb2.Started(**IDS)])
    failed = node_pb2.Failed(**IDS, code="transfer_failed")
    case.hear(case.prefill, failed=[failed])
    case.attempt.on_lost(case.prefill)  # type: ignore[arg-type]
    case.tokens(2, 11)
    case.finished(3)
    assert await case.end() is FinishReason.LENGTH
    assert case.prefill.told == ["start"]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("node", ["prefill", "decode"])
async def test_a_node_that_is_lost_before(case: Case, node: str, begins: bool) -> None:
    if begins:
        case.first()
    case.attempt.on_lost(getattr(case, node))
    assert await case.end() is NodeUnavailable


async def test_a_decode_node_is_lost_at_any_time(case: Case) -> None:
    case.first()
    case.transferred()
    case.attempt.on_lost(case.decode)  # type: ignore[arg-type]
    assert await case.end() is NodeUnavailable


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


@pytest.mark.parametrize("node", ["prefill", "decode"])
async def test_a_node_that_fails_it_is_not_told_of_its_end(case: Case, node: str) -> None:
    failing, other = (case.prefill, case.decode) if node == "prefill" else (case.decode, case.prefill)
    case.hear(failing, failed=[node_pb2.Failed(**IDS, code="transfer_failed")])
    assert await case.end() is TransferError
    assert (failing.told, other.told) == (["start"], ["start", "cancel"])


@pytest.mark.parametrize("node", ["prefill", "decode"])
async def test_a_node_that_does_not_read_has_refused_it(node: str) -> None:
    case = Case()
    getattr(case, node).is_full = True
    assert await case.end() is Refused


async def test_the_decode_node_having_begun_is_not_enough_without_the_first_token(case: Case) -> None:
    case.hear(case.decode, started=[types_pb2.Started(**IDS)])
    case.attempt.on_lost(case.prefill)  # type: ignore[arg-type]
    assert await case.end() is NodeUnavailable


@pytest.mark.parametrize("says", ["transferred", "started", "end"])
async def test_its_patience_ends_with_what_it_waits_for(case: Case, says: str) -> None:
    told: list[str] = []
    names = ("granted", "begun", "stop")
    case.attempt._patience = SimpleNamespace(**{name: partial(told.append, name) for name in names})  # type: ignore[assignment]
    case.hear(case.decode, granted=[node_pb2.Granted(**IDS)])
    case.first()
    assert told == ["granted", "begun"]
    if says == "transferred":
        case.transferred()
    elif says == "started":
        case.hear(case.decode, started=[types_pb2.Started(**IDS)])
    else:
        case.attempt.on_lost(case.decode)  # type: ignore[arg-type]
        await case.end()
    assert told == ["granted", "begun", "stop"]


async def test_whoever_is_cancelled_cancels_both_legs(case: Case) -> None:
    case.outcome.cancel()
    await asyncio.wait([case.outcome])
    assert (case.prefill.told, case.decode.told) == (["start", "cancel"], ["start", "cancel"])
