"""Attempts whose nodes are lost, fail or refuse, and attempts that are cancelled."""

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from baton.errors import NodeUnavailable, TransferError
from baton.request import FinishReason
from baton.v1 import node_pb2, types_pb2
from router.nodes.errors import Refused
from tests.unit.router.serving.one_attempt import IDS, Case

pytestmark = pytest.mark.anyio


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


@pytest.mark.parametrize("node", ["prefill", "decode"])
async def test_a_node_that_failed_a_leg_gets_no_cancel(case: Case, node: str) -> None:
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
    told: list[object] = []
    calls: dict[str, Any] = {name: partial(told.append, name) for name in ("begun", "stop")}
    case.attempt._patience = SimpleNamespace(granted=told.append, **calls)  # type: ignore[assignment]
    case.hear(case.decode, granted=[node_pb2.Granted(**IDS)])
    case.first()
    queue_s = 1.5  # of the prefill node
    assert told == [queue_s, "begun"]
    if says == "transferred":
        case.transferred()
    elif says == "started":
        case.hear(case.decode, started=[types_pb2.Started(**IDS)])
    else:
        case.attempt.on_lost(case.decode)  # type: ignore[arg-type]
        await case.end()
    assert told == [queue_s, "begun", "stop"]


async def test_a_cancelled_attempt_cancels_both_legs(case: Case) -> None:
    case.outcome.cancel()
    await asyncio.wait([case.outcome])
    assert (case.prefill.told, case.decode.told) == (["start", "cancel"], ["start", "cancel"])
