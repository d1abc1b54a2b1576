"""One generation inside an engine: its tokens, its blocks and its progress.

add      -> WAITING -> RUNNING -> FINISHED             (or HELD: prefill done, blocks kept until released)
reserve  -> RESERVED -> (start) READY -> RUNNING -> FINISHED
preempt     RUNNING -> WAITING;      release: any state -> FINISHED
"""

from collections.abc import Sequence, Set
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baton.errors import BatonError
from baton.kv.prefix_hash import BlockHash, block_hashes, stretched_root
from baton.request import FinishReason, Generation, SamplingParams
from engine.grammar.state import GrammarState
from engine.sampling.token_counts import TokenCounts


class RequestState(Enum):
    """The state of a request; see the module's docstring for the transitions."""

    WAITING = auto()
    RESERVED = auto()
    READY = auto()
    RUNNING = auto()
    HELD = auto()
    FINISHED = auto()


class PromptWork(NamedTuple):
    """What a request wants from its prompt besides the KV."""

    num_logprobs: int = -1  # -1: none; n: of each prompt token, and of the n likeliest at its position
    embeds: bool = False  # an embedding instead of a token


NO_PROMPT_WORK = PromptWork()
MAX_CHUNKS = 128  # recorded per request


class Chunk(NamedTuple):
    """A step that computed prompt tokens of a request, or its first step after its KV was shipped."""

    step: int
    start_s: float
    end_s: float
    num_tokens: int


class Request:
    """Only the engine changes a request, on the step thread."""

    def __init__(
        self,
        generation: Generation,
        root: BlockHash,
        block_size: int,
        arrival_s: float,
        *,
        prefill_only: bool = False,
        prompt_work: PromptWork = NO_PROMPT_WORK,
        eos_token_ids: Set[int] = frozenset(),
        max_model_len: int = 2**31,
        stretches_after: int = 0,
        grammar: GrammarState | None = None,
    ) -> None:
        sampling = generation.sampling
        self.generation = generation
        self.prefill_only = prefill_only
        self.prompt_work = prompt_work
        self.stop_token_ids = frozenset(() if sampling.ignore_eos else eos_token_ids).union(sampling.stop_token_ids)
        self.length_limit = min(generation.num_prompt_tokens + sampling.max_tokens, max_model_len)  # of all tokens
        self.state = RequestState.WAITING
        self.token_ids = list(generation.token_ids)  # the prompt, then output tokens, including earlier attempts'
        self.num_uncomputed_tokens = len(self.token_ids)  # at the end of token_ids; 1 in plain decoding
        self.num_cached_tokens = 0  # of the prompt, found in the prefix cache when first scheduled
        self.num_present_blocks = 0  # of a reserved request: found in the prefix cache
        self.num_preemptions = 0
        self.block_ids: list[int] = []
        self.chain: list[int] = []  # published block of each leading full block: its own, or an equal one it also holds
        self.row = -1  # in `engine.rows`, while running
        self.has_begun = False  # has drawn a token on this node
        self.finish_reason = FinishReason.UNFINISHED
        self.token_counts: TokenCounts | None = None  # made when a penalty first asks for it
        self.bias: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # made likewise: tokens, values
        self.grammar = grammar
        self.error: BatonError | None = None
        self.embedding = b""  # fp32, if one was asked for and has been computed
        self.arrival_s = arrival_s  # monotonic; of a reserved request, when it was started
        self.first_scheduled_s = 0.0
        self.first_token_s = 0.0
        self.chunks: list[Chunk] = []  # for its timeline
        self.last_step = -1  # the step after its last one, once it has stopped running
        self.is_stretched = False  # has the rotary embedding of long requests
        self.stretches_after = stretches_after  # tokens; 0: never
        self._block_size = block_size
        self._root = root
        self._hashes: list[BlockHash] = []
        if 0 < stretches_after < self.num_tokens:
            self.stretch()

    @property
    def request_id(self) -> str:
        """The id that the router gave it."""
        return self.generation.request_id

    @property
    def key(self) -> int:
        """Its number in the router's step batches."""
        return self.generation.key

    @property
    def attempt(self) -> int:
        """The attempt epoch."""
        return self.generation.attempt

    @property
    def sampling(self) -> SamplingParams:
        """Its sampling parameters."""
        return self.generation.sampling

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens alone."""
        return self.generation.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of all attempts: the index of the next one."""
        return len(self.token_ids) - self.generation.num_prompt_tokens

    @property
    def num_computed_tokens(self) -> int:
        """The KV of token_ids[:num_computed_tokens] is in the pool."""
        return len(self.token_ids) - self.num_uncomputed_tokens

    @num_computed_tokens.setter
    def num_computed_tokens(self, num_tokens: int) -> None:
        self.num_uncomputed_tokens = len(self.token_ids) - num_tokens

    @property
    def is_finished(self) -> bool:
        """Whether it will never run again."""
        return self.state in (RequestState.FINISHED, RequestState.HELD)

    @property
    def last_block_hash(self) -> bytes:
        """The hash of the last full block of its tokens; empty if there is none."""
        num_full = self.num_tokens // self._block_size
        return self.hashes(num_full)[num_full - 1] if num_full else b""

    def stretch(self) -> None:
        """Switch to the rotary embedding of long requests, for which all its KV and block hashes are different."""
        self.is_stretched = True
        self._root, self._hashes = stretched_root(self._root), []

    def append(self, token_id: int) -> None:
        """Append an output token, whose KV has yet to be computed."""
        self.token_ids.append(token_id)
        self.num_uncomputed_tokens += 1

    def reason_to_finish(self) -> FinishReason:
        """Why the request ends with the token that was appended last; UNFINISHED if it goes on."""
        if self.token_ids[-1] in self.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_tokens >= self.length_limit else FinishReason.UNFINISHED

    def block_tokens(self, index: int) -> Sequence[int]:
        """The tokens of block `index`."""
        return self.token_ids[index * self._block_size : (index + 1) * self._block_size]

    def hashes(self, num_blocks: int) -> list[BlockHash]:
        """The hashes of at least the first `num_blocks` blocks, which must be full; each is computed once."""
        known = len(self._hashes)
        if num_blocks > known:
            new_tokens = self.token_ids[known * self._block_size : num_blocks * self._block_size]
            parent = self._hashes[-1] if known else self._root
            self._hashes += block_hashes(new_tokens, self._block_size, parent)
        return self._hashes
