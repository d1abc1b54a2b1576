"""How far one request's output has come in its grammar: a function of its output tokens alone.

So a request goes on exactly where it was after preemption, on the decode node after the prefill node, or on another
node: whoever has the tokens has the state.
"""

from collections.abc import Sequence

from llguidance import LLMatcher

from baton.errors import BatonError, InvalidRequest
from baton.request import Grammar

_CHUNK = 32  # tokens matched while nobody else has the interpreter
_FREE_S, _FREE_S_PER_TOKEN = 0.25, 0.002


class GrammarState:
    """Of one request. On the step thread from the time when the engine has it."""

    def __init__(self, matcher: LLMatcher, grammar: Grammar, stop_token_ids: Sequence[int]) -> None:
        """`matcher` at the start, this request's own; `stop_token_ids`: those that the grammar does not know as EOS."""
        self.matcher = matcher
        self.num_matched_tokens = 0
        self.stop_token_ids = stop_token_ids
        self.slow_s = 0.0  # spent on masks that take long
        self._grammar = grammar

    def catch_up(self, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Follow the output tokens of `token_ids` that were not there at the last call."""
        while chunk := token_ids[num_prompt_tokens + self.num_matched_tokens :][:_CHUNK]:
            self.matcher.consume_tokens(list(chunk))
            self.num_matched_tokens += len(chunk)

    def error(self) -> BatonError | None:
        """Why the request cannot go on, if it cannot."""
        if self.matcher.is_error():
            reason = self.matcher.get_error().partition("\n")[0]
            return InvalidRequest(f"The grammar cannot be followed any further: {reason}"[:200], param=self._param)
        if self.slow_s > _FREE_S + _FREE_S_PER_TOKEN * self.num_matched_tokens:
            return InvalidRequest("The grammar takes too much time to follow", param=self._param)
        return None

    @property
    def _param(self) -> str:
        return self._grammar.param
