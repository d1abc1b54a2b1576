"""The engine of a node: it takes requests, draws a token for each in every step, and manages their KV blocks.

`engine.request` describes a request's life cycle. All calls but `compile` belong on one thread, the step thread
(`engine.step_loop`). Transfers between nodes, and who may ask for what, are left to the nodes.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from baton.kv.layout import KVLayout
from baton.kv.prefix_hash import root_hash
from baton.request import FinishReason, Generation
from baton.v1 import types_pb2
from engine.blocks import BlockManager
from engine.config import EngineConfig
from engine.grammar.grammars import Grammars
from engine.grammar.state import GrammarState
from engine.kv_cache import KVCache
from engine.model.config import ModelConfig
from engine.model.replay import AnyDecoder
from engine.outputs import StepOutput
from engine.readout import Readout
from engine.request import NO_PROMPT_WORK, PromptWork, Request, RequestState
from engine.rows import Rows
from engine.sampling.sampler import Sampler
from engine.scheduler import Scheduler
from engine.steps import Steps
from engine.validation import validate
from kernels.dispatch import sampling_kernels


class Engine:
    """One model on one device, with its KV pool."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        decoder: AnyDecoder,
        cache: KVCache,
        clock: Callable[[], float] = time.monotonic,
        grammars: Grammars | None = None,
    ) -> None:
        self.config = config
        self.model_config = model_config
        self.blocks = BlockManager(config.num_blocks, config.block_size)
        self._cache = cache
        num_rows = config.max_num_seqs * (1 + config.runs_ahead)  # of the step under way, and of the next one
        self._rows = Rows(num_rows, config.max_blocks_per_request)
        self._grammars = grammars
        self._scheduler = Scheduler(config, self.blocks, self._rows)
        readout = self._make_readout(decoder)
        self.steps = Steps(config, readout, self._rows, self._scheduler, self.blocks, clock)
        self._clock = clock
        self._output = StepOutput()  # of the next step

    @property
    def layout(self) -> KVLayout:
        """The layout of the KV pool."""
        return self._cache.layout

    @property
    def num_blocks(self) -> int:
        """The number of blocks in the pool."""
        return self._cache.num_blocks

    @property
    def pool(self) -> Tensor:
        """The whole KV pool, flat uint8."""
        return self._cache.pool

    @property
    def has_work(self) -> bool:
        """Whether a step may have something to compute or to report."""
        has_news = self.blocks.has_events or bool(self._output.ended)
        return self._scheduler.has_work or self.steps.is_under_way or has_news

    def add(
        self,
        generation: Generation,
        *,
        prefill_only: bool = False,
        prompt_work: PromptWork = NO_PROMPT_WORK,
        grammar: GrammarState | None = None,
    ) -> Request:
        """Queue a generation. A prefill-only one ends with its first token and keeps its blocks until `release`.

        With max_tokens 0 it ends without a token; only then may it ask for an embedding. Raises InvalidRequest
        (ContextLengthExceeded) if the generation can never run. `grammar` is what `compile` returned for it.
        """
        request = self._make_request(generation, prefill_only, prompt_work, grammar)
        self._scheduler.add(request)
        return request

    async def compile(self, generation: Generation) -> GrammarState | None:
        """Compile the grammar for `add` or `reserve`. Belongs on the event loop. Errors as in `Grammars.compile`."""
        if self._grammars is None or generation.sampling.grammar is None:
            return None
        return await self._grammars.compile(generation)

    def warm(self) -> None:
        """Start whatever would be slow to start on first use, and wait until it is ready."""
        if self._grammars is not None:
            self._grammars.warm()

    def close(self) -> None:
        """End the processes that run beside the engine. Idempotent."""
        if self._grammars is not None:
            self._grammars.close()

    def reserve(self, generation: Generation, grammar: GrammarState | None = None) -> Request | None:
        """Allocate blocks for a generation whose KV is computed elsewhere; None if there are too few at present.

        The first `num_present_blocks` of its blocks were found in the prefix cache and must not be written. The others
        are not shared before `start`.
        """
        request = self._make_request(generation, grammar=grammar)
        return request if self._scheduler.reserve(request) else None

    def start(self, request: Request, first_token: int) -> None:
        """Start a reserved request, once all its KV has arrived. `first_token` was drawn where that was computed."""
        if request.state is not RequestState.RESERVED:
            raise ValueError(f"request {request.request_id} is {request.state.name}, not RESERVED")
        request.num_computed_tokens = request.num_tokens
        self.blocks.publish(request)
        request.arrival_s = request.first_token_s = self._clock()
        request.append(first_token)
        request.finish_reason = request.reason_to_finish()
        if request.finish_reason is FinishReason.UNFINISHED:
            self._scheduler.start(request)
        else:
            self.steps.retire(request, self._output)

    def release(self, request: Request) -> None:
        """Abort a request unless it has finished, and free its blocks; full ones stay cached. Idempotent."""
        if not request.is_finished:
            request.finish_reason = FinishReason.ABORT
        self._scheduler.release(request)

    def step(self) -> StepOutput:
        """Run one batch; returns at once if nothing can run. An error in a batch ends the requests of that batch only.

        If steps run ahead, the output is that of the previous batch.
        """
        output, self._output = self._output, StepOutput()
        self.steps.run(output)
        output.stored, output.evicted = self.blocks.take_events()
        return output

    def current_load(self) -> types_pb2.Load:
        """The load that is reported to routers; the node adds its state."""
        scheduler = self._scheduler
        return types_pb2.Load(
            num_steps=self.steps.times.num_steps,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + len(scheduler.ready),
            num_waiting_tokens=scheduler.num_unstarted_tokens(),
            num_blocks=self.num_blocks,
            num_free_blocks=self.blocks.num_free_blocks,
            prefill_tokens_per_s=self.steps.speed.prefill_tokens_per_s,
            step_s=self.steps.speed.step_s,
            step_cost=self.steps.speed.fit.proto(),
            num_context_tokens=scheduler.num_context_tokens(),
            num_reserved=scheduler.num_reserved,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
        )

    @property
    def num_preemptions(self) -> int:
        """Preemptions since the engine was created."""
        return self._scheduler.num_preemptions

    @property
    def num_idle_blocks(self) -> int:
        """Blocks held by requests that do not run; a transfer may be reading or writing them."""
        return self._scheduler.num_idle_blocks()

    def check(self) -> None:
        """Raise RuntimeError unless every block is accounted for, and `Rows` agrees with the requests."""
        self.blocks.check(self._scheduler.requests())
        self._rows.check(self._scheduler.running)

    def _make_readout(self, decoder: AnyDecoder) -> Readout:
        config, device = self.config, torch.device(self.config.device)
        kernels = sampling_kernels(device)
        masks = None if self._grammars is None else self._grammars.masks(device, config.num_threads, kernels.mask)
        vocab_size, eos_token_ids = self.model_config.vocab_size, self.model_config.eos_token_ids
        sampler = Sampler(self._rows, vocab_size, eos_token_ids, device, kernels, masks)
        return Readout(decoder, sampler, self._rows, device, keeps_tokens=config.runs_ahead)

    def _make_request(
        self,
        generation: Generation,
        prefill_only: bool = False,
        prompt_work: PromptWork = NO_PROMPT_WORK,
        grammar: GrammarState | None = None,
    ) -> Request:
        draws_nothing = prefill_only and generation.sampling.max_tokens == 0
        validate(generation, self.model_config.vocab_size, self.config.max_model_len, draws_nothing=draws_nothing)
        if generation.sampling.grammar is not None and grammar is None and not draws_nothing:
            raise ValueError("a grammar has to be compiled before its generation is added")
        return Request(
            generation,
            root_hash(self.layout.model_fingerprint, generation.cache_salt),
            self.config.block_size,
            self._clock(),
            prefill_only=prefill_only,
            prompt_work=prompt_work,
            eos_token_ids=self.model_config.eos_token_ids,
            max_model_len=self.config.max_model_len,
            stretches_after=self.config.stretches_after,
            grammar=grammar,
        )
