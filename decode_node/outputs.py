"""From the engine's steps to the routers' sessions: rows of tokens, first steps, ends; and the load to the board."""

from baton.node_load import CACHED_TOKENS, ERRORS, OUTPUT_TOKENS, PROMPT_TOKENS, LoadBoard
from baton.request import FinishReason
from baton.sessions import Session, Sessions
from decode_node.legs import DecodeLeg
from engine.outputs import Output, StepOutput
from engine.owners import Owners
from engine.request import RequestState


class Outputs(Owners[DecodeLeg]):
    """What the routers are told."""

    def __init__(self, sessions: Sessions, board: LoadBoard) -> None:
        super().__init__(board, RequestState.RESERVED)
        self._sessions = sessions

    def deliver(self, step: StepOutput) -> None:
        """In the event loop: put a step's tokens into the outboxes, and send them off."""
        for token in step.outputs:
            leg = self.of(token.request)
            session = None if leg is None else self._sessions.of(leg)
            if leg is not None and session is not None:
                self._tell(leg, session, token)
        self._sessions.flush()

    def _tell(self, leg: DecodeLeg, session: Session, token: Output) -> None:
        if not leg.has_started:
            leg.has_started = True
            session.add_started(leg.started(token.request))
            PROMPT_TOKENS.inc(token.request.num_prompt_tokens)
            CACHED_TOKENS.inc(token.request.num_cached_tokens)
        if token.error is None and token.index >= leg.num_output_tokens:
            OUTPUT_TOKENS.inc()
            session.add_token(leg.generation, token.index, token.token_id)
            leg.num_output_tokens = token.index + 1
            if token.logprobs is not None:
                session.add_logprobs(leg.logprobs(token.index, token.logprobs))
        if token.finish_reason is not FinishReason.UNFINISHED:
            self._finish(leg, token)

    def _finish(self, leg: DecodeLeg, token: Output) -> None:
        code, message = "", ""
        if token.error is not None:
            code, message = token.error.code or "", token.error.message
            ERRORS.labels(code).inc()
        self._sessions.finish(leg, leg.num_output_tokens, token.finish_reason, code, message)
        if not leg.over.done():
            leg.over.set_result(None)
