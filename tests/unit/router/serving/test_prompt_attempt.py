"""The results of prompt work only count when they are complete."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from baton.errors import BatonError, Cancelled, NodeUnavailable, TransferError
from baton.request import FinishReason, Generation, SamplingParams
from baton.v1 import prompt_pb2, types_pb2
from router.job import PromptWork
from router.serving.prompt_attempt import PromptAttempt

pytestmark = pytest.mark.anyio

SCORES = PromptWork(num_logprobs=2)
FIRST = types_pb2.FirstToken(token_id=9, logprobs=types_pb2.TokenLogprobs(logprob=-1.0))


class Node:
    """A link and its single call: it sends the given events, then ends or waits."""

    def __init__(self, *events: prompt_pb2.PromptEvent, waits: bool = False) -> None:
        self.events, self.waits = events, waits
        self.prompt, self.metadata = SimpleNamespace(Compute=self.compute), ()
        self.asked: prompt_pb2.PromptRequest | None = None
        self.legs: list[Any] = []
        self.is_cancelled = False
        self.attach, self.detach = self.legs.append, self.legs.remove

    def compute(self, request: prompt_pb2.PromptRequest, **_: Any) -> Any:
        self.asked = request
        return self

    async def __aiter__(self) -> Any:
        for event in self.events:
            yield event
        if self.waits:
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self.is_cancelled = True


class Owner:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def emit_prompt(self, result: Any) -> None:
        self.heard.append([part.position for part in result.logprobs] or result.embedding)

    def emit(self, tokens: list[int], logprobs: Any) -> None:
        self.heard.append((tokens, logprobs))

    def note(self, num_cached_tokens: int, **timings: float) -> None:
        pass


def row(position: int, num_rows: int = 1) -> prompt_pb2.PromptEvent:
    return prompt_pb2.PromptEvent(logprobs=prompt_pb2.PromptLogprobs(position=position, logprobs=[-1.0] * num_rows))


def computed(**fields: Any) -> prompt_pb2.PromptEvent:
    return prompt_pb2.PromptEvent(computed=prompt_pb2.Computed(**fields))


def make(node: Node, work: PromptWork = SCORES, **sampling: Any) -> tuple[PromptAttempt, Owner]:
    """Make an attempt at the work on a prompt of four tokens."""
    owner, parameters = Owner(), SamplingParams(**sampling)
    generation = Generation(
        request_id="r", key=1, token_ids=[5, 6, 7, 8], num_prompt_tokens=4, sampling=parameters, router_id="router"
    )
    return PromptAttempt(generation, work, node, owner, lambda: None), owner  # type: ignore[arg-type]


async def outcome(attempt: PromptAttempt) -> Any:
    async with asyncio.timeout(1):
        try:
            return await attempt.run()
        except BatonError as error:
            return type(error)


@pytest.mark.parametrize(("num_logprobs", "expected"), [(-1, None), (0, [FIRST.logprobs])])
async def test_all_of_it_and_the_first_token(num_logprobs: int, expected: Any) -> None:
    node = Node(row(1), row(2, 2), computed(first_token=FIRST))
    attempt, owner = make(node, num_logprobs=num_logprobs)
    assert await outcome(attempt) is FinishReason.UNFINISHED
    assert owner.heard == [[1, 2], ([9], expected)]
    assert node.asked is not None
    assert (node.asked.scores, node.asked.num_logprobs, node.asked.embeds) == (True, 2, False)
    assert (node.is_cancelled, node.legs) == (True, [])


@pytest.mark.parametrize(
    "events",
    [
        (row(1), row(2, 2)),  # it ends early
        (row(1), row(2), computed()),
        (row(1), row(3), computed()),
        (row(1), row(1), row(3), computed()),
        (row(1), row(2, 2), row(4), computed()),
    ],
)
async def test_positions_that_are_missing_or_too_many(events: tuple[prompt_pb2.PromptEvent, ...]) -> None:
    attempt, owner = make(Node(*events))
    assert await outcome(attempt) is TransferError
    assert owner.heard == []


@pytest.mark.parametrize(("embedding", "expected"), [(b"1234", FinishReason.UNFINISHED), (b"", TransferError)])
async def test_an_embedding_that_is_wanted_comes(embedding: bytes, expected: Any) -> None:
    node = Node(computed(embedding=embedding))
    attempt, owner = make(node, PromptWork(embeds=True), max_tokens=0)
    assert await outcome(attempt) is expected
    assert owner.heard == ([embedding] if embedding else [])
    assert node.asked is not None
    assert (node.asked.scores, node.asked.num_logprobs, node.asked.embeds) == (False, 0, True)


@pytest.mark.parametrize("how", ["lost", "failed", "cancelled"])
async def test_the_call_ends_with_its_attempt(how: str) -> None:
    node = Node(row(1), waits=True)
    attempt, owner = make(node)
    running = asyncio.create_task(outcome(attempt))
    await asyncio.sleep(0)
    assert node.legs == [attempt]
    if how == "lost":
        attempt.on_lost(node)  # type: ignore[arg-type]
        attempt.fail(Cancelled("late"))
    elif how == "failed":
        attempt.fail(Cancelled("its owner's wish"))
    else:
        running.cancel()
    await asyncio.wait([running])
    assert running.cancelled() or running.result() is {"lost": NodeUnavailable, "failed": Cancelled}[how]
    assert running.cancelled() == (how == "cancelled")
    await asyncio.sleep(0)
    assert (node.is_cancelled, node.legs, owner.heard) == (True, [], [])
