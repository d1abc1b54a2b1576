"""One attempt at a request, on a prefill and a decode node, or on a decode node alone.

    1. Prefill.Run and Decode.Reserve start at once; the grant that Reserve returns is written into the Run stream.
    2. The prefill node's first token goes to the client. If it is the last one as well, the reservation is cancelled.
    3. The decode node has the KV: its tokens come through its link, in step batches, up to Finished.

On a decode node alone, Decode.Generate takes the place of 1 and 2. An attempt ends once: finished, failed, or dropped
by its owner; whichever it is, both nodes are told at once. Whether there is another attempt is decided in `dispatch`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from grpc import StatusCode, aio

from baton import rpc_errors
from baton.errors import (
    BatonError,
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    LayoutMismatch,
    NodeUnavailable,
    NumericalError,
    Overloaded,
    TransferError,
)
from baton.request import FinishReason, Generation
from baton.timeline import Value
from baton.v1 import decode_pb2, prefill_pb2, types_pb2
from baton.v1.types_pb2 import TokenLogprobs
from router.node_link import NodeLink
from router.recent import RECENT

_log = logging.getLogger(__name__)

_LATE_WRITE = "Internal error from Core"  # grpc.aio: a write failed because the call had just ended, whyever that was
_GOOD_ENDS = (FinishReason.STOP, FinishReason.LENGTH)
_RETRIED_CODES = {kind.code for kind in (NodeUnavailable, TransferError, LayoutMismatch, Overloaded, Cancelled)}
_FINAL_KINDS: dict[str | None, type[BatonError]] = {
    kind.code: kind for kind in (NumericalError, ContextLengthExceeded, InvalidRequest, DeadlineExceeded)
}


class Owner(Protocol):
    """What an attempt tells the request that it serves."""

    def emit(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        """The next output tokens."""

    def note(self, num_cached_tokens: int, **timings: float) -> None:
        """How long a part took, in seconds."""

    def mark(self, name: str, **attributes: Value) -> None:
        """For its timeline: this happens now."""


class Refused(BatonError):
    """A node did not take the attempt up. Another one may, or this one later."""


class Attempt:
    """Also the leg that both nodes' links know. `run` may be cancelled at any time."""

    def __init__(
        self,
        generation: Generation,
        prefill: NodeLink | None,
        decode: NodeLink | None,
        owner: Owner,
        on_first_token: Callable[[], None],
    ) -> None:
        """`prefill` None: all on the decode node. `decode` None: one token is wanted, and the prefill node draws it."""
        self.key = generation.key
        self.attempt = generation.attempt
        self.fresh: list[int] = []
        self._generation = generation.to_proto()
        self._timeout_s = generation.timeout_ms / 1000
        self._first_index = generation.num_output_tokens
        self._wants_logprobs = generation.sampling.num_logprobs >= 0
        self._prefill, self._decode = prefill, decode
        self._owner = owner
        self._on_first_token = on_first_token
        self._prefill_matters = prefill is not None
        self._expects_first = prefill is not None  # the prefill node's token, which comes before all others
        self.next_index = self._first_index + self._expects_first
        self._held: list[Callable[[], None]] = []  # what the decode node said before that token was here
        self._ended: asyncio.Future[FinishReason] = asyncio.get_running_loop().create_future()
        self._generation_sent = asyncio.Event()
        self._decode_done = decode is None
        self.prefill_s = 0.0
        self.transferred: prefill_pb2.Transferred | None = None
        self._run_call: aio.StreamStreamCall[prefill_pb2.RunMessage, prefill_pb2.RunEvent] | None = None

    async def run(self) -> FinishReason:
        """Returns when the request has finished. Raises Refused, or a BatonError: of the request, or of a node."""
        tasks = []
        try:
            for link in (self._prefill, self._decode):
                if link is not None:
                    link.attach(self)
            tasks = [asyncio.create_task(leg) for leg in self._legs()]
            for task in tasks:
                task.add_done_callback(self._leg_ended)
            return await self._ended
        finally:
            self._drop(tasks)

    def on_tokens(self, logprobs: list[TokenLogprobs] | None) -> None:
        """Tokens from the decode node."""
        tokens, self.fresh = self.fresh, []
        rows = None
        if self._wants_logprobs:
            by_index = {row.index: row for row in logprobs or ()}
            rows = [by_index[at] for at in range(self.next_index - len(tokens), self.next_index) if at in by_index]
            if len(rows) != len(tokens):
                self.fail(TransferError("log-probabilities were lost between node and router"))
                return
        if self._expects_first:
            self._held.append(partial(self._owner.emit, tokens, rows))
        else:
            self._owner.emit(tokens, rows)

    def on_started(self, started: types_pb2.Started) -> None:
        """The decode node's first step with this request: it has all of the KV."""
        timings = {"first_decode_s": started.first_step_s}
        if self._prefill is None:
            timings |= {"queue_s": started.queue_s, "prefill_s": started.prefill_s}
            self._on_first_token()
        elif not self._expects_first:
            self._prefill_done()
        self._owner.note(started.num_cached_tokens if self._prefill is None else 0, **timings)

    def on_finished(self, finished: types_pb2.Finished) -> None:
        """The decode node's last word."""
        self._decode_done = True
        if self._expects_first and FinishReason(finished.reason) in _GOOD_ENDS:
            self._held.append(partial(self._finish, finished))
        else:
            self._finish(finished)

    def fail(self, error: BatonError) -> None:
        """The attempt is over without having finished. Idempotent."""
        if not self._ended.done():
            self._ended.set_exception(error)

    def _legs(self) -> list[Coroutine[Any, Any, None]]:
        if self._prefill is None:
            return [self._generate()]
        return [self._run_prefill()] if self._decode is None else [self._run_prefill(), self._reserve()]

    def _finish(self, finished: types_pb2.Finished) -> None:
        reason = FinishReason(finished.reason)
        if reason is FinishReason.ERROR:
            self.fail(_request_error(finished.error_code, finished.error_message))
        elif reason is FinishReason.ABORT:
            self.fail(NodeUnavailable("the node gave the request up"))
        elif finished.num_output_tokens != self.next_index:
            self.fail(TransferError("tokens were lost between node and router"))
        else:
            self._succeed(reason)

    def _succeed(self, reason: FinishReason) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    async def _generate(self) -> None:
        link = _present(self._decode)
        try:
            await link.decode.Generate(self._generation, timeout=self._timeout_s, metadata=link.metadata)
        except aio.AioRpcError as error:
            raise rpc_error(error, link) from None
        self._owner.mark("accepted", attempt=self.attempt)

    async def _reserve(self) -> None:
        link, prefill = _present(self._decode), _present(self._prefill)
        request = decode_pb2.ReserveRequest(
            generation=self._generation,
            prefill_node_id=prefill.record.node_id,
            prefill_epoch=prefill.record.epoch,
        )
        try:
            grant = await link.decode.Reserve(request, timeout=self._timeout_s, metadata=link.metadata)
        except aio.AioRpcError as error:
            raise rpc_error(error, link) from None
        self._owner.mark("grant", attempt=self.attempt)
        await self._generation_sent.wait()
        await self._write(prefill_pb2.RunMessage(grant=grant))

    async def _run_prefill(self) -> None:
        link = _present(self._prefill)
        self._run_call = call = link.prefill.Run(timeout=self._timeout_s, metadata=link.metadata)
        try:
            await self._write(prefill_pb2.RunMessage(generation=self._generation))
            self._generation_sent.set()
            async for event in call:
                self._on_run_event(event)
        except aio.AioRpcError as error:
            if self._prefill_matters:
                raise rpc_error(error, link) from None
        if self._prefill_matters and not self._ended.done():
            raise TransferError("the prefill node ended early")

    async def _write(self, message: prefill_pb2.RunMessage) -> None:
        try:
            await _present(self._run_call).write(message)
        except (asyncio.InvalidStateError, aio.AioRpcError):  # the call is over; whoever reads it learns why
            return

    def _on_run_event(self, event: prefill_pb2.RunEvent) -> None:
        if event.HasField("first_token"):
            self._on_token_zero(event.first_token)
        elif event.HasField("transferred"):
            self.transferred = event.transferred
            self._note_transfer(event.transferred)
            self._prefill_done()

    def _note_transfer(self, transferred: prefill_pb2.Transferred) -> None:
        self._owner.note(0, transfer_s=transferred.tail_s)
        num_bytes = transferred.num_bytes
        self._owner.mark("transferred", attempt=self.attempt, num_bytes=num_bytes, transport=transferred.transport)
        if self._prefill is not None and self._decode is not None:
            RECENT.transfer(self._prefill.record.node_id, self._decode.record.node_id, num_bytes)

    def _on_token_zero(self, first: prefill_pb2.FirstToken) -> None:
        if not self._expects_first or self._ended.done():
            return
        self._on_first_token()
        self._owner.mark("first token", attempt=self.attempt)
        reason = FinishReason(first.finish_reason)
        if reason is FinishReason.ERROR:
            self.fail(_request_error("numerical_error", "the model produced invalid numbers for this request"))
            return
        if first.index != self._first_index:
            self.fail(TransferError("the first token is not the one that was asked for"))
            return
        self.prefill_s = first.prefill_s
        self._owner.note(first.num_cached_tokens, queue_s=first.queue_s, prefill_s=first.prefill_s)
        self._expects_first = False
        self._owner.emit([first.token_id], [first.logprobs] if self._wants_logprobs else None)
        if reason is not FinishReason.UNFINISHED:
            self._succeed(reason)
        elif self._decode is None:
            self._succeed(FinishReason.LENGTH)
        held, self._held = self._held, []
        for call in held:
            call()

    def _prefill_done(self) -> None:
        """From here on the prefill node may die without harm."""
        self._prefill_matters = False
        if self._prefill is not None:
            self._prefill.detach(self)

    def _leg_ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, BatonError):
            _log.error("a leg failed", exc_info=error)
            error = BatonError("internal error")
        self.fail(error)

    def _drop(self, tasks: "list[asyncio.Task[None]]") -> None:
        """Both nodes forget the attempt, whatever it had come to."""
        if not self._ended.done():
            self._ended.cancel()
        elif not self._ended.cancelled():
            self._ended.exception()  # seen, also where the owner was cancelled at the same time
        if self._run_call is not None:
            self._run_call.cancel()
        for task in tasks:
            task.cancel()
        for link in (self._prefill, self._decode):
            if link is not None:
                link.detach(self)
        if self._decode is not None and not self._decode_done:
            self._decode.cancel(self.key, self.attempt)


def _present(value: Any) -> Any:
    if value is None:
        raise RuntimeError("a leg without its node")
    return value


def _request_error(code: str, message: str) -> BatonError:
    """What a node says of one request: trouble of nodes is for another attempt, anything else for the client."""
    if code in _RETRIED_CODES:
        return TransferError(message)
    return _FINAL_KINDS.get(code, BatonError)(message or "the request failed on its node")


def rpc_error(error: aio.AioRpcError, link: NodeLink) -> BatonError:
    """What the end of a call means. Where the node has not said so itself, it is the node's end, not the request's."""
    known, status = rpc_errors.error_of(error), error.code()
    said = any(name == "baton-code" for name, _ in error.trailing_metadata() or ())
    if status is StatusCode.RESOURCE_EXHAUSTED or (said and status is StatusCode.UNAVAILABLE):
        link.avoid()
        return Refused(known.message)
    if status is StatusCode.INTERNAL and error.details() == _LATE_WRITE:
        return Refused("refused while the grant was written")
    if said or isinstance(known, InvalidRequest | DeadlineExceeded | TransferError):
        return known
    link.avoid()
    return NodeUnavailable(status.name)
