"""From a generation to the state of its grammar, before the engine gets the request; not on the step thread.

A grammar is first compiled in the `jail` process. Only if it passes there, it is compiled again in this process, on a
thread that releases the GIL meanwhile. The outcome is cached. `masks` applies grammars to the output.
"""

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

import torch
from llguidance import LLMatcher

from baton.errors import CheckpointError, InvalidRequest, Overloaded
from baton.process.threads import started_pool
from baton.request import Generation, Grammar
from engine.grammar import tokens as vocabulary
from engine.grammar.cache import GrammarCache
from engine.grammar.check import GrammarCheck
from engine.grammar.limits import MAX_TEXT_BYTES, parser_limits
from engine.grammar.masks import GrammarMasks
from engine.grammar.state import GrammarState
from engine.grammar.tokens import GrammarTokens
from kernels.api import Mask

_MAX_COMPILING = 32
_NUM_LANES = 2  # compiled in parallel, so that one hostile grammar does not block all others

_log = logging.getLogger(__name__)


class Grammars:
    """The grammars of one node's model. `tokens` is None if its tokenizer cannot be used: grammars are then refused."""

    def __init__(self, model_dir: str | Path, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self.tokens: GrammarTokens | None = None
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._cache = GrammarCache()
        self._compiling: dict[Grammar, asyncio.Future[LLMatcher | str]] = {}
        self._lanes = started_pool(_NUM_LANES, "grammar")
        self._checks = [GrammarCheck(model_dir, vocab_size, eos_token_ids) for _ in range(_NUM_LANES)]
        self._idle_checks = list(self._checks)
        try:
            self.tokens = vocabulary.load(model_dir, vocab_size, eos_token_ids)
        except CheckpointError as error:
            _log.warning("no structured output: %s", error.message)

    async def compile(self, generation: Generation) -> GrammarState | None:
        """Return the state after the output tokens that the generation already has; None if it has no grammar.

        Raises InvalidRequest if the grammar is refused, Overloaded if too many wait to be compiled.
        """
        grammar = generation.sampling.grammar
        if grammar is None:
            return None
        outcome = self._cache.get(grammar) or await self._compile(grammar)
        if isinstance(outcome, str):
            raise InvalidRequest(outcome, param=grammar.param)
        stops = set(generation.sampling.stop_token_ids) - self._eos_token_ids
        state = await asyncio.to_thread(_begin, outcome, grammar, sorted(stops), generation)
        if (error := state.error()) is not None:
            raise error
        return state

    def masks(self, device: torch.device, num_threads: int, mask: Mask) -> GrammarMasks | None:
        """The masks for the engine's sampler; None if this model does not support grammars."""
        if self.tokens is None:
            return None
        vocab_size, token_ids = self._vocab_size, self.tokens.token_ids
        return GrammarMasks(vocab_size, token_ids, self._eos_token_ids, device, num_threads, mask)

    def warm(self) -> None:
        """Start the processes of all lanes, and wait until they answer: at this time no request has to wait for it.

        Later there may be no time: requests of a node that died come all at once, while the cores are busy with the
        work that it left behind.
        """
        if self.tokens is not None:
            list(self._lanes.map(GrammarCheck.warm, self._idle_checks))

    def close(self) -> None:
        """End the processes. Idempotent."""
        for check in self._checks:
            check.close()
        self._lanes.shutdown(wait=False)

    async def _compile(self, grammar: Grammar) -> LLMatcher | str:
        """Compile a grammar once for all callers waiting for it; cancelling one of them does not affect the others."""
        future = self._compiling.get(grammar)
        if future is None:
            self._check(grammar)
            loop = asyncio.get_running_loop()
            future = self._compiling[grammar] = loop.run_in_executor(self._lanes, self._compile_in_lane, grammar)
            future.add_done_callback(lambda done: self._forget(grammar, done))
        return await asyncio.shield(future)

    def _check(self, grammar: Grammar) -> None:
        if self.tokens is None:
            raise InvalidRequest("This model's tokenizer does not support structured output", param=grammar.param)
        if len(grammar.text.encode()) > MAX_TEXT_BYTES:
            raise InvalidRequest(f"The grammar is longer than {MAX_TEXT_BYTES} bytes", param=grammar.param)
        if len(self._compiling) >= _MAX_COMPILING:
            raise Overloaded("too many grammars are waiting to be compiled on this node")

    def _forget(self, grammar: Grammar, done: "asyncio.Future[LLMatcher | str]") -> None:
        del self._compiling[grammar]
        if not done.cancelled():
            done.exception()  # marked as retrieved: all callers may be gone

    def _compile_in_lane(self, grammar: Grammar) -> LLMatcher | str:
        check = self._idle_checks.pop()  # there are as many as threads
        try:
            verdict = check.run(grammar)
        finally:
            self._idle_checks.append(check)
        if not verdict.is_final:
            raise Overloaded("this node has no time for grammars at present")  # another node may accept the grammar
        outcome = verdict.error or self._matcher(verdict.serialized)
        self._cache.put(grammar, outcome, verdict.num_bytes)
        return outcome

    def _matcher(self, serialized: str) -> LLMatcher | str:
        if self.tokens is None:
            raise RuntimeError("a grammar without tokens")
        matcher = LLMatcher(self.tokens.tokenizer, serialized, log_level=0, limits=parser_limits())
        matcher.compute_bitmask()  # for the first token; the matcher and its copies keep it
        return "The grammar is refused" if matcher.is_error() else matcher


def _begin(matcher: LLMatcher, grammar: Grammar, stop_token_ids: list[int], generation: Generation) -> GrammarState:
    state = GrammarState(matcher.deep_copy(), grammar, stop_token_ids)
    state.catch_up(generation.token_ids, generation.num_prompt_tokens)
    return state
