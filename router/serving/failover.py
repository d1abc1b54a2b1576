"""Makes a request's attempts, one after another, until one of them finishes it.

The router owns the state of the stream (`running`), so each attempt continues where the one before it stopped.
"""

import itertools
import logging
import time

import msgspec
from prometheus_client import Counter

from baton.errors import BatonError, Cancelled, NoCapacity, NodeUnavailable, TransferError
from baton.request import FinishReason, Generation
from router.nodes.errors import Refused
from router.nodes.fleet_view import FleetView
from router.placing.placement import Placement
from router.placing.placer import Placer
from router.running import Paused, Running
from router.serving.attempt import Attempt
from router.serving.prompt_attempt import PromptAttempt

MAX_ATTEMPTS = 4  # failures in a row without progress; a long request may survive the loss of more nodes than that
MAX_FAILURES = 16  # in all

_log = logging.getLogger(__name__)

_PAUSES = Counter("baton_router_pauses", "Requests taken off their nodes until a slow client has caught up")
_FAILOVERS = Counter("baton_router_failovers", "Attempts that failed and were retried", ["reason"])


class _Failures:
    """Counts the failed attempts of one request."""

    def __init__(self) -> None:
        self.num = self._num_in_vain = 0

    def add(self, num_tokens: int, *, of_transfer: bool) -> None:
        """Count a failed attempt that brought `num_tokens`, the first of them from the prefill node.

        A failed transfer does not count as in vain: no node was lost, and after two of them none is tried any more.
        """
        self.num += 1
        if num_tokens > 1:
            self._num_in_vain = 0
        elif not of_transfer:
            self._num_in_vain += 1

    @property
    def are_too_many(self) -> bool:
        """Whether to give the request up."""
        return self._num_in_vain == MAX_ATTEMPTS or self.num == MAX_FAILURES


class Failover:
    """Makes the attempts for all requests of one router."""

    def __init__(self, router_id: str, fleet: FleetView, placer: Placer) -> None:
        self._router_id, self._fleet, self._placer = router_id, fleet, placer

    async def run(self, running: Running) -> FinishReason:
        """Serve a request until it finishes; returns why it did. Raises the BatonError that ended it.

        The caller enforces the deadline, by cancelling this.
        """
        failures = _Failures()
        for attempt in itertools.count():
            if (reason := running.reached_end) is not None:
                return reason
            await running.resumed()
            placement = await self._place(running, attempt)
            num_before = len(running.output)
            try:
                reason = await self._try(running, attempt, placement)
                if reason is not FinishReason.UNFINISHED:
                    return reason
            except Paused:
                _PAUSES.inc()
            except Refused:
                running.usage.num_attempts -= 1
                _FAILOVERS.labels("refused").inc()
                self._placer.check_patience(running)
            except (NodeUnavailable, TransferError, Cancelled) as error:
                of_transfer = isinstance(error, TransferError) and placement.pair is not None
                failures.add(len(running.output) - num_before, of_transfer=of_transfer)
                if isinstance(error, TransferError):
                    self._note_trouble(running, placement)
                self._log_failure(running, error, failures.num)
                if failures.are_too_many:
                    raise NoCapacity("the nodes that served the request failed, one after another") from None
            finally:
                running.fail_attempt = None
                placement.end()
        raise AssertionError("unreachable")

    async def _place(self, running: Running, attempt: int) -> Placement:
        asked_s, running.is_waiting = time.monotonic(), True
        placement = await self._placer.place(running)
        running.is_waiting = False
        running.timeline.add("route", asked_s, attempt=attempt, **placement.described)
        return placement

    async def _try(self, running: Running, number: int, placement: Placement) -> FinishReason:
        """Make one attempt; returns UNFINISHED if the request needs another one to continue."""
        running.usage.num_attempts += 1
        running.check_wanted()
        attempt = self._attempt(running, number, placement)
        running.fail_attempt = attempt.fail
        began_s, end = time.monotonic(), {}
        try:
            reason = await attempt.run()
        except BatonError as error:
            end = {"error": error.code or ""}
            raise
        finally:
            running.timeline.add("attempt", began_s, attempt=number, **placement.names, **end)
        if reason is not FinishReason.UNFINISHED:
            self._learn(running, attempt, placement)
        return reason

    def _note_trouble(self, running: Running, placement: Placement) -> None:
        running.troubled.update(placement.names.values())
        if placement.pair is not None:
            running.num_failed_transfers += 1
            self._fleet.cut_pairs.failed(*placement.pair)

    def _attempt(self, running: Running, number: int, placement: Placement) -> Attempt | PromptAttempt:
        job = running.job
        generation = Generation(
            request_id=job.request_id,
            key=running.key,
            attempt=number,
            token_ids=running.token_ids,
            num_prompt_tokens=len(job.token_ids),
            sampling=job.sampling,
            cache_salt=job.cache_salt,
            timeout_ms=max(int(1000 * (job.deadline_s - time.monotonic())), 1),
            router_id=self._router_id,
            traceparent=job.traceparent,
        )
        if running.wants_prompt and job.prompt_work is not None and placement.prefill is not None:
            running.computed_by = placement.prefill.record.node_id
            return PromptAttempt(
                _of_prompt(generation), job.prompt_work, placement.prefill, running, placement.computed
            )
        if placement.pair is not None:
            self._fleet.cut_pairs.trying(*placement.pair)
        nodes = placement.prefill, placement.decode
        return Attempt(generation, *nodes, running, placement.computed, placement.compute_s)

    def _learn(self, running: Running, attempt: Attempt | PromptAttempt, placement: Placement) -> None:
        """Update the cost estimates from a finished request."""
        costs = self._fleet.costs
        if running.output:
            costs.note_output(len(running.output))
        if isinstance(attempt, Attempt) and (transferred := attempt.transferred) is not None:
            costs.transfer.note(transferred.num_blocks, 1000 * attempt.prefill_s, 1000 * transferred.tail_s)
            if placement.pair is not None and transferred.num_blocks:
                self._fleet.cut_pairs.carried(*placement.pair)

    def _log_failure(self, running: Running, error: BatonError, num_failures: int) -> None:
        _FAILOVERS.labels(str(error.code)).inc()
        _log.warning(
            "attempt failed (%d) after %d tokens: %s",
            num_failures,
            len(running.output),
            error.message,
            extra={"request_id": running.job.request_id},
        )


def _of_prompt(generation: Generation) -> Generation:
    """Adapt a generation for the node that works on the prompt: with a grammar, that node samples no first token."""
    if generation.sampling.grammar is None:
        return generation
    sampling = msgspec.structs.replace(generation.sampling, max_tokens=0, grammar=None)
    return msgspec.structs.replace(generation, sampling=sampling)
