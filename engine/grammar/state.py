"""The state of a request in its grammar: a function of its output tokens alone.

So whoever has the tokens has the state: a request continues exactly where it was after preemption, on the decode node
after the prefill node, or on another node after a failure.
"""

from collections.abc import Sequence

from llguidance import LLMatcher

from baton.errors import BatonError, InvalidRequest
from baton.request import Grammar

_CHUNK = 32  # tokens matched per call, which holds the GIL
_FREE_S, _FREE_S_PER_TOKEN = 0.25, 0.002  # that a request may spend on slow masks


class GrammarState:
    """The grammar of one request. Used on the step thread only, once the engine has the request."""

    def __init__(self, matcher: LLMatcher, grammar: Grammar, stop_token_ids: Sequence[int]) -> None:
        """`matcher`: this request's own, in its initial state. `stop_token_ids`: those that are not EOS tokens."""
        self.matcher = matcher
        self.num_matched_tokens = 0
        self.stop_token_ids = stop_token_ids
        self.slow_s = 0.0  # time spent on slow masks
        self._grammar = grammar

    def catch_up(self, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Follow the output tokens that were added to `token_ids` since the last call."""
        while chunk := token_ids[num_prompt_tokens + self.num_matched_tokens :][:_CHUNK]:
            self.matcher.consume_tokens(list(chunk))
            self.num_matched_tokens += len(chunk)

    def error(self) -> BatonError | None:
        """The reason why the request cannot go on; None if it can."""
        if self.matcher.is_error():
            reason = self.matcher.get_error().partition("\n")[0]
            return InvalidRequest(f"The grammar cannot be followed any further: {reason}"[:200], param=self._param)
        if self.slow_s > _FREE_S + _FREE_S_PER_TOKEN * self.num_matched_tokens:
            return InvalidRequest("The grammar takes too much time to follow", param=self._param)
        return None

    @property
    def _param(self) -> str:
        return self._grammar.param
