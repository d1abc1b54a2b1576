"""From a generation to the state of its grammar, before the engine hears of it: nothing here runs on the step thread.

A grammar is first compiled in `jail`, and only one that passed there a second time in this process, by a
thread that holds no interpreter lock meanwhile. What came of it is cached. How output is held to a grammar is the
business of `masks`.
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

_MAX_COMPILING = 32
_NUM_LANES = 2  # so that one hostile grammar does not hold up all others

_log = logging.getLogger(__name__)


class Grammars:
    """Of one model, on one node. `tokens` is None where its tokenizer cannot be used: then grammars are refused."""

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
        """The state after the output tokens that the generation comes with; None where it has no grammar.

        Raises InvalidRequest for a grammar that is refused, Overloaded where too many wait to be compiled.
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

    def masks(self, device: torch.device, num_threads: int) -> GrammarMasks | None:
        """For the engine that samples."""
        if self.tokens is None:
            return None
        return GrammarMasks(self._vocab_size, self.tokens.token_ids, self._eos_token_ids, device, num_threads)

    def warm(self) -> None:
        """Be ready for grammars, in every lane. Blocks until then: before requests come, nobody has to wait for it.

        Requests of a node that died come all at once, and to where cores are busy with what it has left behind.
        """
        if self.tokens is not None:
            list(self._lanes.map(GrammarCheck.warm, self._idle_checks))

    def close(self) -> None:
        """End the processes. Idempotent."""
        for check in self._checks:
            check.close()
        self._lanes.shutdown(wait=False)

    async def _compile(self, grammar: Grammar) -> LLMatcher | str:
        """The same future for all who wait for the same grammar; one of them leaving does not disturb the others."""
        future = self._compiling.get(grammar)
        if future is None:
            self._check(grammar)
            loop = asyncio.get_running_loop()
            future = self._compiling[grammar] = loop.run_in_executor(self._lanes, self._compile_in_lane, grammar)
            future.add_done_callback(lambda done: self._forget(grammar, done))
        return await asyncio.shield(future)

    def _check(self, grammar: Grammar) -> None:
        if self.tokens is None:
            raise InvalidRequest("This model's tokenizer does not allow for structured output", param=grammar.param)
        if len(grammar.text.encode()) > MAX_TEXT_BYTES:
            raise InvalidRequest(f"A grammar has at most {MAX_TEXT_BYTES} bytes", param=grammar.param)
        if len(self._compiling) >= _MAX_COMPILING:
            raise Overloaded("too many grammars wait to be compiled on this node")

    def _forget(self, grammar: Grammar, done: "asyncio.Future[LLMatcher | str]") -> None:
        del self._compiling[grammar]
        if not done.cancelled():
            done.exception()  # all who waited may be gone

    def _compile_in_lane(self, grammar: Grammar) -> LLMatcher | str:
        check = self._idle_checks.pop()  # as many as threads
        try:
            verdict = check.run(grammar)
        finally:
            self._idle_checks.append(check)
        if not verdict.is_final:
            raise Overloaded("this node has no time for grammars at present")  # which may be good: another node may
        outcome = verdict.error or self._matcher(verdict.serialized)
        self._cache.put(grammar, outcome, verdict.num_bytes)
        return outcome

    def _matcher(self, serialized: str) -> LLMatcher | str:
        if self.tokens is None:
            raise RuntimeError("a grammar without tokens")
        matcher = LLMatcher(self.tokens.tokenizer, serialized, log_level=0, limits=parser_limits())
        matcher.compute_bitmask()  # kept in it, and in its copies, for the first token
        return "The grammar is refused" if matcher.is_error() else matcher


def _begin(matcher: LLMatcher, grammar: Grammar, stop_token_ids: list[int], generation: Generation) -> GrammarState:
    state = GrammarState(matcher.deep_copy(), grammar, stop_token_ids)
    state.catch_up(generation.token_ids, generation.num_prompt_tokens)
    return state
