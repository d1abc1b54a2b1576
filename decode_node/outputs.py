"""Passes results of the engine's steps to the routers' sessions: tokens, first steps, and ends.

Tokens are sent as columns. Which rows belong to which router is only recomputed when the running requests change. A row
that is sent after its leg's end is dropped by the router, which does not know the leg any more.
"""

from operator import itemgetter
from typing import NamedTuple

from baton.node.load import CACHED_TOKENS, ERRORS, OUTPUT_TOKENS, PROMPT_TOKENS, LoadBoard
from baton.node.session import Session
from baton.node.sessions import Sessions
from baton.request import FinishReason
from decode_node.legs import DecodeLeg
from engine.outputs import StepOutput
from engine.owners import Owners
from engine.request import Request
from engine.wire import token_logprobs


class _Group(NamedTuple):
    """The rows of a step that are sent to one router."""

    session: Session
    places: list[int]
    keys: list[int]
    attempts: list[int]


class Outputs(Owners[DecodeLeg]):
    """The legs by request, and what routers are told of them. Publishes the load, too (`Owners`)."""

    def __init__(self, sessions: Sessions, board: LoadBoard) -> None:
        super().__init__(board)
        self._sessions = sessions
        self._grouped: list[Request] = []
        self._groups: list[_Group] = []

    def deliver(self, step: StepOutput) -> None:
        """Put the results of a step into the sessions' outboxes, and send them. In the event loop."""
        for request in step.begun:
            self._begin(request)
        if step.requests:
            self._add_tokens(step)
        for place, logprobs in step.logprobs.items():
            leg, session = self._waiting(step.requests[place])
            if leg is not None and session is not None:
                session.add_logprobs(token_logprobs(leg.generation, step.indices[place], logprobs))
        for request in step.ended:
            self._finish(request)
        self._sessions.flush()

    def _add_tokens(self, step: StepOutput) -> None:
        if step.requests is not self._grouped or not self._groups:
            self._grouped, self._groups = step.requests, self._group(step.requests)
        for session, places, keys, attempts in self._groups:
            OUTPUT_TOKENS.inc(len(places))
            if len(places) == len(step.requests):
                session.add_tokens(keys, attempts, step.indices, step.token_ids)
            else:
                indices, token_ids = (_at(column, places) for column in (step.indices, step.token_ids))
                session.add_tokens(keys, attempts, indices, token_ids)

    def _group(self, requests: list[Request]) -> list[_Group]:
        groups: dict[int, _Group] = {}
        for place, request in enumerate(requests):
            leg, session = self._waiting(request)
            if leg is not None and session is not None:
                group = groups.setdefault(id(session), _Group(session, [], [], []))
                group.places.append(place)
                group.keys.append(leg.generation.key)
                group.attempts.append(leg.generation.attempt)
        return list(groups.values())

    def _waiting(self, request: Request) -> tuple[DecodeLeg | None, Session | None]:
        """The leg and the session that wait for the results of this request, if there are any."""
        leg = self.of(request)
        return leg, None if leg is None else self._sessions.of(leg)

    def _begin(self, request: Request) -> None:
        leg, session = self._waiting(request)
        if leg is None or session is None or leg.has_started:
            return
        leg.has_started = True
        session.add_started(leg.started(request))
        PROMPT_TOKENS.inc(request.num_prompt_tokens)
        CACHED_TOKENS.inc(request.num_cached_tokens)

    def _finish(self, request: Request) -> None:
        self._begin(request)  # if the token sent with its KV was its last, there was no step
        leg, session = self._waiting(request)
        if leg is None or session is None:
            return
        code, message = "", ""
        if request.error is not None:
            code, message = request.error.code or "", request.error.message
            ERRORS.labels(code).inc()
        self._sessions.finish(leg, request.num_output_tokens, FinishReason(request.finish_reason), code, message)
        if not leg.over.done():
            leg.over.set_result(None)


def _at(column: list[int], places: list[int]) -> list[int]:
    return list(itemgetter(*places)(column)) if len(places) > 1 else [column[places[0]]]
