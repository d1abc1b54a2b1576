"""Of both nodes' services: what is refused is not begun, and what is over gives its blocks back in time."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from baton.errors import BatonError, ContextLengthExceeded, InvalidRequest, NodeUnavailable, Overloaded, TransferError
from baton.kv.layout import KVLayout
from baton.node.load import MAX_WAITING, LoadBoard
from baton.node.sessions import Sessions
from baton.request import Generation, SamplingParams
from baton.telemetry.timeline import TimelineBook
from baton.v1 import types_pb2
from decode_node.service import DecodeService
from prefill_node.service import PrefillService

pytestmark = pytest.mark.anyio

LAYOUT = KVLayout(
    num_layers=1, layers_per_group=1, block_size=4, num_kv_heads=1, head_dim=4, dtype="float32", model_fingerprint="ab"
)
ENGINE: Any = SimpleNamespace(layout=LAYOUT, num_blocks=2)
SENDER: Any = SimpleNamespace(open=None)
RECEIVER: Any = None

Make = Callable[[Any, Sessions, LoadBoard], Any]


def shell(sessions: Sessions, board: LoadBoard) -> Any:
    return SimpleNamespace(sessions=sessions, board=board, timelines=TimelineBook())


def prefill_service(step_loop: Any, sessions: Sessions, board: LoadBoard) -> PrefillService:
    return PrefillService(ENGINE, step_loop, shell(sessions, board), SENDER)


def decode_service(step_loop: Any, sessions: Sessions, board: LoadBoard) -> DecodeService:
    return DecodeService(ENGINE, step_loop, shell(sessions, board), RECEIVER)


def make_generation(num_tokens: int = 5) -> Generation:
    return Generation(
        request_id="r", key=1, token_ids=[1] * num_tokens, num_prompt_tokens=num_tokens, sampling=SamplingParams(),
        router_id="router",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "why", "num_tokens", "error"),
    [
        *(
            (make, why, num_tokens, error)
            for make in (prefill_service, decode_service)
            for why, num_tokens, error in (
                ("draining", 5, NodeUnavailable),
                ("over", 5, None),  # its router knows
                ("", 0, InvalidRequest),
                ("", 9, ContextLengthExceeded),
            )
        ),
        (prefill_service, "full", 5, Overloaded),
    ],
)
async def test_a_leg_that_is_refused_is_not_begun(
    make: Make, why: str, num_tokens: int, error: type[BatonError] | None
) -> None:
    sessions, board = Sessions(7, types_pb2.Load), LoadBoard()
    session, _ = sessions.attach("router")
    sessions.draining = why == "draining"
    if why == "over":
        session.cancel(1, 0)
    board.num_queued = MAX_WAITING if why == "full" else 0
    service = make(None, sessions, board)
    service.begin(make_generation(num_tokens), "p", 1)
    assert not service._legs
    assert [word.code for word in session.take().failed] == ([] if error is None else [error.code])


async def test_a_full_decode_node_computes_no_more_prompts() -> None:
    sessions, board, released = Sessions(7, types_pb2.Load), LoadBoard(), list[Any]()
    session, _ = sessions.attach("router")
    board.num_queued = MAX_WAITING
    service = decode_service(SimpleNamespace(submit=released.append), sessions, board)
    service.begin(make_generation(), "", 0)
    [leg] = service._legs
    await asyncio.wait([leg.owner], timeout=5)
    assert [word.code for word in session.take().failed] == [Overloaded.code]
    assert (len(released), service._legs) == (1, set())


@pytest.mark.parametrize(
    ("make", "transfer", "end"), [(prefill_service, "transfer", "abort"), (decode_service, "incoming", "cancel")]
)
async def test_blocks_are_given_back_when_no_transfer_touches_them_any_more(
    make: Make, transfer: str, end: str
) -> None:
    sessions, go_on, released = Sessions(7, types_pb2.Load), asyncio.Event(), list[Any]()
    session, _ = sessions.attach("router")

    async def fail(generation: Generation) -> None:
        raise TransferError("lost")

    service = make(SimpleNamespace(prepare=fail, submit=released.append), sessions, LoadBoard())
    service.begin(make_generation(), "p", 1)
    [leg] = service._legs
    setattr(leg, transfer, SimpleNamespace(**{end: go_on.wait}))
    await asyncio.wait([leg.owner], timeout=0.05)
    assert [word.code for word in session.take().failed] == ["transfer_failed"]
    leg.cancel()  # by its router: too late
    stopping = asyncio.create_task(service.close())
    await asyncio.wait([leg.owner, stopping], timeout=0.05)
    assert (released, stopping.done()) == ([], False)
    go_on.set()
    await asyncio.wait([stopping], timeout=5)
    assert len(released) == 1
    assert not service._legs


@pytest.mark.parametrize("make", [prefill_service, decode_service])
@pytest.mark.parametrize("grammar", [None, "compiled"])
async def test_the_wait_for_a_grammar_is_in_the_timeline(make: Make, grammar: str | None) -> None:
    async def prepare(generation: Generation) -> str | None:
        return grammar

    async def call(function: Any) -> None:
        raise NodeUnavailable("the node has stopped")

    step_loop = SimpleNamespace(prepare=prepare, call=call, submit=lambda function: None)
    service = make(step_loop, Sessions(7, types_pb2.Load), LoadBoard())
    service.begin(make_generation(), "", 0)
    [leg] = service._legs
    await asyncio.wait([leg.owner], timeout=5)
    assert [event.name for event in leg.timeline.events()] == ([] if grammar is None else ["wait for grammar"])
