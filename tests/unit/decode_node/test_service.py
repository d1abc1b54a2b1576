"""What is refused is not begun, and what is over gives its blocks back in time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from baton.errors import BatonError, ContextLengthExceeded, InvalidRequest, NodeUnavailable, TransferError
from baton.kv.layout import KVLayout
from baton.node.load import LoadBoard
from baton.node.sessions import Sessions
from baton.request import Generation, SamplingParams
from baton.telemetry.timeline import TimelineBook
from baton.v1 import types_pb2
from decode_node.service import DecodeService

pytestmark = pytest.mark.anyio

LAYOUT = KVLayout(
    num_layers=1, layers_per_group=1, block_size=4, num_kv_heads=1, head_dim=4, dtype="float32", model_fingerprint="ab"
)


def make_generation(num_tokens: int = 5) -> Generation:
    return Generation(
        request_id="r", key=1, token_ids=[1] * num_tokens, num_prompt_tokens=num_tokens, sampling=SamplingParams(),
        router_id="router",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("why", "num_tokens", "error"),
    [
        ("draining", 5, NodeUnavailable),
        ("over", 5, None),  # its router knows
        ("", 0, InvalidRequest),
        ("", 9, ContextLengthExceeded),
    ],
)
async def test_a_leg_that_is_refused_is_not_begun(why: str, num_tokens: int, error: type[BatonError] | None) -> None:
    sessions, board = Sessions(7, types_pb2.Load), LoadBoard()
    session, _ = sessions.attach("router")
    sessions.draining = why == "draining"
    if why == "over":
        session.cancel(1, 0)
    parts: Any = None, None
    service = DecodeService(LAYOUT, 2, *parts, sessions, board, TimelineBook())
    service.begin(make_generation(num_tokens), "p", 1)
    assert not service._legs
    assert [word.code for word in session.take().failed] == ([] if error is None else [error.code])


async def test_blocks_are_given_back_when_nothing_writes_them_any_more() -> None:
    sessions, go_on, released = Sessions(7, types_pb2.Load), asyncio.Event(), list[Any]()
    session, _ = sessions.attach("router")

    async def fail(generation: Generation) -> None:
        raise TransferError("lost")

    step_loop: Any = SimpleNamespace(prepare=fail, submit=released.append)
    parts: Any = [None]
    service = DecodeService(LAYOUT, 2, step_loop, *parts, sessions, LoadBoard(), TimelineBook())
    service.begin(make_generation(), "p", 1)
    [leg] = service._legs
    leg.incoming = SimpleNamespace(cancel=go_on.wait)  # type: ignore[assignment]
    await asyncio.wait([leg.owner], timeout=0.05)
    assert [word.code for word in session.take().failed] == ["transfer_failed"]
    assert released == []
    go_on.set()
    await asyncio.wait([leg.owner], timeout=5)
    assert len(released) == 1
    assert not service._legs
