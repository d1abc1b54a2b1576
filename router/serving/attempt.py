"""One attempt at a request, on a prefill and a decode node, or on a decode node alone.

    1. Both legs are started at once. The decode node returns a grant, which is passed on to the prefill node.
    2. The prefill node's first token goes to the client. If it is also the last, the decode node's leg is cancelled.
    3. Once the decode node has the KV, its tokens arrive in step batches through its link, up to Finished. If it does
       not get the KV soon enough after the first token, the attempt fails (`patience`).

With a decode node alone, that computes the prompt, too, and steps 1 and 2 are skipped. An attempt ends once: finished,
failed, or dropped by its owner; either way, nodes whose legs still run are told at once. An attempt has no task of its
own: the links call it. Whether there is another attempt is decided in `failover`.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from baton.errors import BatonError, NodeUnavailable, NumericalError, Overloaded, TransferError
from baton.request import FinishReason, Generation
from baton.v1 import node_pb2, types_pb2
from baton.v1.types_pb2 import TokenLogprobs
from router.nodes.errors import Refused, failed_error, finished_error
from router.nodes.leg import Leg, Node
from router.nodes.link import NodeLink
from router.recent import RECENT
from router.running import Running
from router.serving.patience import Patience

_GOOD_ENDS = (FinishReason.STOP, FinishReason.LENGTH)
_LOST_ROWS = "tokens were lost between node and router"


class Attempt(Leg):
    """One attempt, which is a leg of both nodes' links. `run` may be cancelled at any time."""

    def __init__(
        self,
        generation: Generation,
        prefill: NodeLink | None,
        decode: NodeLink | None,
        running: Running,
        on_first_token: Callable[[], None],
        compute_s: float,
    ) -> None:
        """`prefill` None: the decode node does it all. `decode` None: only one token is wanted, from the prefill node.

        `compute_s`: the time that it would take to recompute all of the KV.
        """
        self.key = generation.key
        self.attempt = generation.attempt
        self.fresh: list[int] = []
        self._order = node_pb2.RouterBatch()
        generation.write_to(self._order.starts.add().generation)
        self._first_index = generation.num_output_tokens
        self._wants_logprobs = generation.sampling.num_logprobs >= 0
        self._prefill, self._decode = prefill, decode
        self._request = running
        self._on_first_token = on_first_token
        self._prefill_matters = self._prefill_runs = prefill is not None
        self._expects_first = prefill is not None  # whether the prefill node's token is still to come
        self.next_index = self._first_index + self._expects_first
        self._held: list[Callable[[], None]] = []  # the decode node's outputs that arrived before that token
        self._ended: asyncio.Future[FinishReason] = asyncio.get_running_loop().create_future()
        self._decode_runs = decode is not None
        self._patience = Patience(compute_s, lambda: self.fail(TransferError("the KV transfer takes too long")))
        self.prefill_s = 0.0
        self.transferred: node_pb2.Transferred | None = None

    async def run(self) -> FinishReason:
        """Run the attempt until the request has finished. Raises Refused, or a BatonError of the request or a node."""
        try:
            self._start()
            return await self._ended
        finally:
            self._drop()

    def on_granted(self, granted: node_pb2.Granted) -> None:
        """Pass the decode node's grant on to the prefill node."""
        if self._prefill is None:
            self._request.timeline.mark("accepted", attempt=self.attempt)
            return
        self._request.timeline.mark("grant", attempt=self.attempt)
        self._prefill.grant(granted)
        self._patience.granted(self._prefill.state.queue_ms / 1000)

    def on_first_token(self, first: types_pb2.FirstToken) -> None:
        """Send the prefill node's token to the client, then the outputs held back for it."""
        if not self._expects_first or self._ended.done():
            return
        self._request.timeline.mark("first token", attempt=self.attempt)
        reason = FinishReason(first.finish_reason)
        if reason is FinishReason.ERROR:
            self.fail(NumericalError("the model produced invalid numbers for this request"))
        elif first.index != self._first_index:
            self.fail(TransferError("the first token is not the one that was asked for"))
        else:
            self._take_first(first, reason)
        self._on_first_token()  # after sending the token: the client comes first

    def on_transferred(self, transferred: node_pb2.Transferred) -> None:
        """Note that the transfer is complete: the prefill node is no longer needed."""
        self.transferred = transferred
        self._patience.stop()
        self._prefill_matters = self._prefill_runs = False
        self._request.note(0, transfer_s=transferred.tail_s)
        num_bytes, transport = transferred.num_bytes, transferred.transport
        self._request.timeline.mark("transferred", attempt=self.attempt, num_bytes=num_bytes, transport=transport)
        if self._prefill is not None and self._decode is not None:
            RECENT.transfer(self._prefill.record.node_id, self._decode.record.node_id, num_bytes)
            self._prefill.detach(self)

    def on_tokens(self, logprobs: list[TokenLogprobs] | None) -> None:
        """Send the decode node's tokens to the client, or hold them back until the first token is here."""
        tokens, self.fresh = self.fresh, []
        rows = None
        if self._wants_logprobs:
            by_index = {row.index: row for row in logprobs or ()}
            rows = [by_index[at] for at in range(self.next_index - len(tokens), self.next_index) if at in by_index]
            if len(rows) != len(tokens):
                self.fail(TransferError("log-probabilities were lost between node and router"))
                return
        if self._expects_first:
            self._held.append(partial(self._request.emit, tokens, rows))
        else:
            self._request.emit(tokens, rows)

    def on_started(self, started: types_pb2.Started) -> None:
        """Note that the decode node has all of the KV: it has run its first step with this request."""
        self._patience.stop()
        timings = {"first_decode_s": started.first_step_s}
        if self._prefill is None:
            timings |= {"queue_s": started.queue_s, "prefill_s": started.prefill_s}
            self._on_first_token()
        elif not self._expects_first:
            self._prefill_matters = False
        self._request.note(started.num_cached_tokens if self._prefill is None else 0, **timings)

    def on_finished(self, finished: types_pb2.Finished) -> None:
        """End the attempt, but not before the first token is here."""
        self._decode_runs = False
        if self._expects_first and FinishReason(finished.reason) in _GOOD_ENDS:
            self._held.append(partial(self._finish, finished))
        else:
            self._finish(finished)

    def on_failed(self, failed: node_pb2.Failed, node: Node) -> None:
        """Fail the attempt, unless the failure is the prefill node's and its part is already done."""
        error = failed_error(failed, node)
        if node is self._decode:
            self._decode_runs = False
            self.fail(error)
            return
        self._prefill_runs = False
        if self._prefill_matters:
            self.fail(error)

    def on_rows_lost(self) -> None:
        """Fail the attempt; the next one continues after the last token received."""
        self.fail(TransferError(_LOST_ROWS))

    def on_lost(self, node: Node) -> None:
        """Fail the attempt, unless the node is the prefill node and its part is already done."""
        if node is self._decode or self._prefill_matters:
            self.fail(NodeUnavailable("the node was lost"))

    def fail(self, error: BatonError) -> None:
        """End the attempt with an error. No effect if it has ended."""
        if not self._ended.done():
            self._ended.set_exception(error)

    def _start(self) -> None:
        prefill, decode = self._prefill, self._decode
        try:
            if prefill is not None:
                prefill.start(self, self._order)
            if decode is not None:
                decode.start(self, self._order, None if prefill is None else prefill.record)
        except Overloaded as error:
            raise Refused(error.message) from None

    def _finish(self, finished: types_pb2.Finished) -> None:
        reason = FinishReason(finished.reason)
        if reason is FinishReason.ERROR:
            self.fail(finished_error(finished, self._order.starts[0].generation.sampling.grammar))
        elif reason is FinishReason.ABORT:
            self.fail(NodeUnavailable("the node gave the request up"))
        elif finished.num_output_tokens != self.next_index:
            self.fail(TransferError(_LOST_ROWS))
        else:
            self._succeed(reason)

    def _succeed(self, reason: FinishReason) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    def _take_first(self, first: types_pb2.FirstToken, reason: FinishReason) -> None:
        self.prefill_s = first.prefill_s
        self._request.note(first.num_cached_tokens, queue_s=first.queue_s, prefill_s=first.prefill_s)
        self._expects_first = False
        self._request.emit([first.token_id], [first.logprobs] if self._wants_logprobs else None)
        if reason is not FinishReason.UNFINISHED:
            self._prefill_runs = False
            self._succeed(reason)
        elif self._decode is None:
            self._succeed(FinishReason.LENGTH)
        else:
            self._patience.begun()
        held, self._held = self._held, []
        for call in held:
            call()

    def _drop(self) -> None:
        """Detach from both nodes, and cancel the legs that still run."""
        self._patience.stop()
        if not self._ended.done():
            self._ended.cancel()
        elif not self._ended.cancelled():
            self._ended.exception()  # mark as retrieved, in case the owner was cancelled at the same time
        for link, runs in ((self._prefill, self._prefill_runs), (self._decode, self._decode_runs)):
            if link is not None:
                link.detach(self)
                if runs:
                    link.cancel(self)
