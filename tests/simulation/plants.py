"""Bugs to plant: each takes one guard out of the real code, as somebody might who finds it superfluous.

`PLANTS` says of each which faults bring it to light. A simulation that no longer finds one of them has gone blind.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from baton.node.service import NodeService
from baton.node.session import Session
from baton.node.sessions import Sessions
from baton.v1 import node_pb2
from engine.blocks import BlockManager
from engine.engine import Engine
from kv_transfer.incoming import IncomingTransfer, TransferState
from kv_transfer.outgoing import OutgoingTransfer
from router.nodes import step_batch
from router.nodes.fleet_view import FleetView
from router.nodes.leg import Leg
from router.nodes.link import NodeLink
from router.nodes.outbox import Outbox
from router.running import Running
from router.serving.attempt import Attempt
from tests.simulation.loop import Violation
from tests.simulation.scenario import STORM, Scenario, simulate


class Plant(NamedTuple):
    """A bug: attributes of classes and what to put in their place, and the faults that show it."""

    patches: list[tuple[Any, str, Any]]
    kinds: tuple[str, ...]
    strict: bool = False  # it shows in requests that fail
    longest_stall_s: float = math.inf  # it shows in requests that stand still for longer, and are then computed again

    @property
    def scenario(self) -> Scenario:
        """One that shows the bug, sooner or later."""
        return dataclasses.replace(
            STORM, name="plant", kinds=self.kinds, every_s=0.5, strict=self.strict, num_requests=24, span_s=8.0,
            longest_stall_s=self.longest_stall_s,
        )  # fmt: skip


def _forwarding(kind: type, name: str, change: Callable[..., Any]) -> tuple[type, str, Any]:
    """`change(original, self, *args)` in place of a method."""
    original = getattr(kind, name)
    return kind, name, lambda self, *args, **options: change(original, self, *args, **options)


def _lose_and_keep(self: Sessions, session: Session, stream: object) -> None:
    if session.stream is stream:
        session.stream, session.gone_since = None, self._clock()


async def _cancel_at_once(self: IncomingTransfer) -> None:
    self.fail("cancelled", "the decode node cancelled it")
    self._forget(self)


async def _accept_unchecked(self: IncomingTransfer, request: Any) -> None:
    await self._all_arrived()
    if self._live():
        self._end(TransferState.ACCEPTED)
        self._result.set_result(request)
        self._forget(self)
    if self.state is TransferState.FAILED:
        await self._result


async def _accept_before_all_is_there(self: IncomingTransfer, request: Any) -> None:
    if self._live():
        self._end(TransferState.ACCEPTED)
        self._result.set_result(request)
        self._forget(self)


def _any_sequence(original: Any, self: NodeLink, batch: node_pb2.StepBatch) -> None:
    batch.sequence = self._next_sequence
    original(self, batch)


def _any_row(batch: node_pb2.StepBatch, legs: dict[int, Leg]) -> None:
    for key, attempt, index, token_id in zip(batch.keys, batch.attempts, batch.indices, batch.token_ids, strict=True):
        leg = legs.get(key)
        if leg is not None and leg.attempt == attempt:
            leg.next_index = index + 1
            leg.fresh.append(token_id)
            leg.on_tokens(list(batch.logprobs))


def _miss_nothing(self: NodeService, batch: node_pb2.RouterBatch, expected: int) -> bool:
    return batch.sequence >= expected


def _take_again(self: NodeService, batch: node_pb2.RouterBatch, expected: int) -> bool:
    return True


def _open_whatever_the_attempt(self: Session, leg: Any) -> None:
    if (old := self.legs.get(leg.generation.key)) is not None:
        old.cancel()
    self.legs[leg.generation.key] = leg


def _never_over(self: Session, leg: Any) -> None:
    if self.holds(leg):
        del self.legs[leg.generation.key]


def _drop_prefill_only(original: Any, self: Attempt) -> None:
    self._decode_runs = False
    original(self)


def _keep_what_was_there(original: Any, self: Sessions, router_id: str) -> Any:
    with mock.patch.object(Session, "cancel_all"):
        return original(self, router_id)


def _leg_of_anybody(self: Session, key: int, attempt: int) -> Any:
    return next(reversed(self.legs.values()), None)


def _hear_all(self: Outbox, num_messages: int) -> None:
    self._unheard.clear()


def _publish_early(original: Any, self: Engine, *args: Any) -> Any:
    request = original(self, *args)
    if request is not None:
        request.num_computed_tokens = request.num_tokens
        self.blocks.publish(request)
    return request


def _ready_at_once(original: Any, self: OutgoingTransfer, layer_group: int, num_blocks: int) -> None:
    original(self, layer_group, len(self._missing) + self._grant.num_present_blocks)


def _emit_before_the_first(original: Any, self: Attempt, logprobs: Any) -> None:
    expects, self._expects_first = self._expects_first, False
    original(self, logprobs)
    self._expects_first = expects


def _finish_before_the_first(self: Attempt, finished: Any) -> None:
    self._decode_runs = False
    self._finish(finished)


def _later_epochs_alone(original: Any, self: FleetView, listed: dict[tuple[str, int], Any]) -> Any:
    newest = self.__dict__.setdefault("_newest", {})
    for node_id, epoch in listed:
        newest[node_id] = max(epoch, newest.get(node_id, 0))
    return original(self, {key: record for key, record in listed.items() if key[1] == newest[key[0]]})


def _release_and_keep(self: BlockManager, request: Any) -> None:
    for block_id in reversed(request.block_ids):
        self._drop(block_id)


def _hold_and_leave_evictable(self: BlockManager, block_id: int) -> None:
    self._ref_counts[block_id] += 1


def _release_before_the_end(original: Any, self: Engine, request: Any) -> None:
    original(self, request)
    self.blocks.release(request)


PLANTS: dict[str, Plant] = {
    "blocks freed while a transfer still writes": Plant([(IncomingTransfer, "cancel", _cancel_at_once)],
                                                        ("hang_up", "lose")),
    "digests unchecked": Plant([(IncomingTransfer, "accept", _accept_unchecked)], ("corrupt",)),
    "commit accepted before all has come": Plant([(IncomingTransfer, "accept", _accept_before_all_is_there)], ()),
    "blocks sent before they are computed": Plant([_forwarding(OutgoingTransfer, "ready", _ready_at_once)], ()),
    "blocks offered to others before their KV has come": Plant([_forwarding(Engine, "reserve", _publish_early)], ()),
    "repeated messages not dropped": Plant([_forwarding(NodeLink, "on_batch", _any_sequence),
                                            (step_batch, "_hand_out", _any_row)], ("repeat",)),
    "attempt number ignored": Plant([(Session, "open", _open_whatever_the_attempt),
                                      (NodeService, "_is_next", _take_again)], ("repeat", "hang_up"), strict=True),
    "a leg that is over opened again": Plant([(Session, "close", _never_over),
                                          (NodeService, "_is_next", _take_again)], ("repeat",)),
    "what was begun on a stream outlives it": Plant([_forwarding(Sessions, "attach", _keep_what_was_there),
                                                     (Sessions, "lose", _lose_and_keep)], ("partition",)),
    "a router's message lost, and not missed": Plant([(NodeService, "_is_next", _miss_nothing),
                                                      (Outbox, "heard", _hear_all)], ("skip",), strict=True),
    "a grant handed to whichever request is there": Plant([(Session, "leg", _leg_of_anybody)], (),
                                                            longest_stall_s=0.8),
    "a cancel reaches one leg only": Plant([_forwarding(Attempt, "_drop", _drop_prefill_only)], ("hang_up",)),
    "a router that died never noticed": Plant([(Sessions, "lose", lambda self, session, stream: None)],
                                              ("kill_router", "partition")),
    "a resumed request begins anew": Plant([(Running, "token_ids", property(lambda self: self.job.token_ids))],
                                           ("kill", "hang_up", "freeze")),
    "tokens overtake the first one": Plant([_forwarding(Attempt, "on_tokens", _emit_before_the_first)], ("lose",)),
    "the end overtakes the first token": Plant([(Attempt, "on_finished", _finish_before_the_first)], ("lag",)),
    "an earlier epoch taken for an older node": Plant([_forwarding(FleetView, "_reconcile", _later_epochs_alone)],
                                                      ("set_clock",)),
    "blocks given back twice": Plant([(BlockManager, "release", _release_and_keep),
                                      _forwarding(Engine, "release", _release_before_the_end)], ()),
    "blocks evicted while they are held": Plant([(BlockManager, "_hold", _hold_and_leave_evictable)], ()),
}  # fmt: skip


@contextlib.contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """The bug is in the code, for as long as this lasts."""
    with contextlib.ExitStack() as stack:
        for target, attribute, value in plant.patches:
            stack.enter_context(mock.patch.object(target, attribute, value))
        yield


def find(plant: Plant, max_seeds: int) -> tuple[int, str] | None:
    """The first seed that brings the bug to light, and how it shows."""
    for seed in range(max_seeds):
        try:
            simulate(seed, plant.scenario, planted(plant))
        except Violation as violation:
            return seed, str(violation)
    return None
