"""The engine of a node: requests in, one token each out per step, KV blocks in between.

A request's life is told in `engine.request`. All calls belong on one thread, the step thread (`engine.step_loop`).
What travels between nodes, and who may ask for what, is the business of the nodes.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baton.errors import BatonError, ContextLengthExceeded, InvalidRequest, NumericalError
from baton.kv_layout import KVLayout
from baton.prefix_hash import root_hash
from baton.request import FinishReason, Generation
from baton.settings import EngineFlags
from baton.v1 import types_pb2
from engine import batch as batches
from engine.blocks import BlockManager
from engine.config import EngineConfig
from engine.grammar.grammars import Grammars
from engine.grammar.state import GrammarState
from engine.kv_cache import KVCache
from engine.model.checkpoint import Checkpoint
from engine.model.config import ModelConfig
from engine.model.cuda_graph import CudaCapture, GraphedDecoder
from engine.model.decoder import Decoder, LayerGroupHook
from engine.model.rotary import layer_tables
from engine.model.weights import WeightLoader
from engine.outputs import StepOutput
from engine.readout import Drawn, Readout
from engine.request import NO_PROMPT_WORK, PromptWork, Request, RequestState
from engine.resolve import kv_fingerprint, layout, resolve
from engine.rows import Rows, Schedule, places
from engine.sampling.sampler import Sampler
from engine.scheduler import Scheduler
from engine.speed import Speed
from kernels.api import Kernels
from kernels.dispatch import load as load_kernels
from kernels.dispatch import unfiltered_draw

_log = logging.getLogger(__name__)


class Engine:
    """One model on one device, with its KV pool."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        decoder: Decoder | GraphedDecoder,
        cache: KVCache,
        clock: Callable[[], float] = time.monotonic,
        grammars: Grammars | None = None,
    ) -> None:
        self.config = config
        self.model_config = model_config
        self.on_layer_group: LayerGroupHook | None = None
        self.blocks = BlockManager(config.num_blocks, config.block_size)
        self._cache = cache
        self._decoder = decoder
        self._device = torch.device(config.device)
        self._rows = Rows(config.max_num_seqs, config.max_blocks_per_request)
        self._grammars = grammars
        masks = None if grammars is None else grammars.masks(self._device, config.num_threads)
        draw = unfiltered_draw(self._device)
        eos_token_ids = model_config.eos_token_ids
        sampler = Sampler(self._rows, model_config.vocab_size, eos_token_ids, self._device, masks, draw)
        self._readout = Readout(decoder, sampler, self._rows, self._device)
        self._scheduler = Scheduler(config, self.blocks, self._rows)
        self._speed = Speed()
        self._clock = clock
        self._output = StepOutput()  # of the step to come

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        flags: EngineFlags,
        progress: Callable[[float], None] = lambda fraction: None,
        kernels: Kernels | None = None,
    ) -> "Engine":
        """Read a checkpoint and make ready to run; ConfigError (CheckpointError) where that cannot be done."""
        config = resolve(flags, model_dir)
        model = ModelConfig.load(model_dir)
        torch.set_num_threads(config.num_threads)
        device, dtype = torch.device(config.device), getattr(torch, config.dtype)
        kernels = kernels or load_kernels(device, dtype, flags.deterministic)
        with torch.inference_mode():
            weights = WeightLoader(model, Checkpoint(model_dir), kernels, dtype, device, config.weight_bits).load(
                progress
            )
            cos_sin = layer_tables(model, config.max_model_len, device)
        fingerprint = kv_fingerprint(model_dir, model, config)
        cache = KVCache(layout(model, config.block_size, config.dtype, fingerprint), config.num_blocks, device)
        grammars = Grammars(model_dir, model.vocab_size, model.eos_token_ids)
        decoder = Decoder(model, weights, kernels, cache, cos_sin)
        uses_graphs = device.type == "cuda" and flags.cuda_graphs
        graphed = GraphedDecoder(decoder, config, CudaCapture()) if uses_graphs else decoder
        return cls(config, model, graphed, cache, grammars=grammars)

    @property
    def layout(self) -> KVLayout:
        """How the pool is laid out."""
        return self._cache.layout

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""
        return self._cache.num_blocks

    @property
    def pool(self) -> Tensor:
        """The whole KV pool, flat uint8."""
        return self._cache.pool

    @property
    def has_work(self) -> bool:
        """Whether a step may have something to do or to tell."""
        return self._scheduler.has_work or self.blocks.has_events or bool(self._output.ended)

    def add(
        self,
        generation: Generation,
        *,
        prefill_only: bool = False,
        prompt_work: PromptWork = NO_PROMPT_WORK,
        grammar: GrammarState | None = None,
    ) -> Request:
        """Queue a generation. A prefill-only one ends with its first token and keeps its blocks until `release`.

        With max_tokens 0 it ends without a token; only such a one may ask for an embedding. Raises InvalidRequest
        (ContextLengthExceeded) for what can never run. `grammar` is what `compile` has made of the generation.
        """
        request = self._make_request(generation, prefill_only, prompt_work, grammar)
        self._scheduler.add(request)
        return request

    async def compile(self, generation: Generation) -> GrammarState | None:
        """The grammar for `add` or `reserve`; the one call that belongs to the event loop. Errors: see `Grammars`."""
        if self._grammars is None or generation.sampling.grammar is None:
            return None
        return await self._grammars.compile(generation)

    def close(self) -> None:
        """End what runs beside the engine. Idempotent."""
        if self._grammars is not None:
            self._grammars.close()

    def reserve(self, generation: Generation, grammar: GrammarState | None = None) -> Request | None:
        """Blocks for a generation whose KV comes from elsewhere; None if there are not enough of them now.

        The first `num_present_blocks` of its blocks were found in the prefix cache and are not to be written. None of
        the others is shared before `start`.
        """
        request = self._make_request(generation, grammar=grammar)
        return request if self._scheduler.reserve(request) else None

    def start(self, request: Request, first_token: int) -> None:
        """All KV of a reserved request is in its blocks: go on from `first_token`, drawn where the KV was computed."""
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
            self._retire(request, self._output)

    def release(self, request: Request) -> None:
        """Forget a request, ending it if it is not finished, and free its blocks; full ones stay cached. Idempotent."""
        if not request.is_finished:
            request.finish_reason = FinishReason.ABORT
        self._scheduler.release(request)

    def step(self) -> StepOutput:
        """Run one batch. Returns at once where nothing can run. An error in it ends the requests of the batch only."""
        schedule = self._scheduler.schedule()
        output, self._output = self._output, StepOutput()
        if schedule.requests:
            self._run_safely(schedule, output)
        output.stored, output.evicted = self.blocks.take_events()
        output.num_scheduled_tokens = int(schedule.num_tokens.sum())
        return output

    def current_load(self) -> types_pb2.Load:
        """What a router wants to know; the node adds its state."""
        scheduler = self._scheduler
        return types_pb2.Load(
            num_steps=self._speed.num_steps,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + len(scheduler.ready),
            num_waiting_tokens=scheduler.num_unstarted_tokens(),
            num_blocks=self.num_blocks,
            num_free_blocks=self.blocks.num_free_blocks,
            prefill_tokens_per_s=self._speed.prefill_tokens_per_s,
            step_s=self._speed.step_s,
            step_cost=self._speed.fit.proto(),
            num_context_tokens=scheduler.num_context_tokens(),
            num_reserved=scheduler.num_reserved,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
        )

    @property
    def num_preemptions(self) -> int:
        """Since the engine was made."""
        return self._scheduler.num_preemptions

    @property
    def num_idle_blocks(self) -> int:
        """Blocks held by requests that do not run: those that a transfer may touch."""
        return self._scheduler.num_idle_blocks()

    def check(self) -> None:
        """Raise RuntimeError unless every block is accounted for, and all columns say what the requests do."""
        self.blocks.check(self._scheduler.requests())
        self._rows.check(self._scheduler.running)

    def _make_request(
        self,
        generation: Generation,
        prefill_only: bool = False,
        prompt_work: PromptWork = NO_PROMPT_WORK,
        grammar: GrammarState | None = None,
    ) -> Request:
        draws_nothing = prefill_only and generation.sampling.max_tokens == 0
        self._validate(generation, draws_nothing=draws_nothing)
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
            grammar=grammar,
        )

    def _validate(self, generation: Generation, *, draws_nothing: bool) -> None:
        """Routers have validated all this; a step must not depend on it."""
        token_ids, sampling = generation.token_ids, generation.sampling
        vocab_size = self.model_config.vocab_size
        if not 0 < generation.num_prompt_tokens <= len(token_ids):
            raise InvalidRequest("the prompt must have at least one token", param="prompt")
        if len(token_ids) + (not draws_nothing) > self.config.max_model_len:
            raise ContextLengthExceeded(
                f"{len(token_ids)} tokens leave no room within the model's {self.config.max_model_len}", param="prompt"
            )
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            raise InvalidRequest(f"token ids must be below {vocab_size}", param="prompt")
        if any(not 0 <= token_id < vocab_size for token_id in sampling.logit_bias):
            raise InvalidRequest(f"token ids must be below {vocab_size}", param="logit_bias")
        if generation.num_output_tokens >= sampling.max_tokens and not draws_nothing:
            raise InvalidRequest("max_tokens leaves nothing to generate", param="max_tokens")

    def _run_safely(self, schedule: Schedule, output: StepOutput) -> None:
        start_s = self._clock()
        for request in self._scheduler.take_newcomers():
            request.first_scheduled_s = request.first_scheduled_s or start_s
        shape = self._rows.shape(schedule)
        try:
            self._run(schedule, output)
        except Exception:  # an edge: whatever a step raises ends its requests, never the node
            _log.exception("a step of %d requests failed", len(schedule.requests))
            for request in schedule.requests:
                if request.state is RequestState.RUNNING:
                    self._fail(request, BatonError("the node failed to compute this request"), output)
            return
        self._speed.note(shape, self._clock() - start_s)

    @torch.inference_mode()
    def _run(self, schedule: Schedule, output: StepOutput) -> None:
        """Compute a step, and take its results over into the requests."""
        batch = batches.build(schedule, self._rows, self.config.block_size, self._device)
        hidden = self._decoder.hidden(batch, self.on_layer_group)  # [W, H]
        is_sound = np.ones(len(schedule.requests), np.bool_)
        self._readout.score_prompts(batch, hidden, is_sound, output)
        drawn = self._readout.draw(batch, hidden, is_sound)
        self._readout.embed(batch, hidden, is_sound)
        self._rows.advance(schedule, drawn.places, drawn.token_ids)
        if not is_sound.all():
            self._fail_at(places(~is_sound), schedule, output)
        self._publish(schedule, is_sound)
        self._tell(drawn, schedule.rows[drawn.places], output)
        self._end(drawn, schedule, is_sound, output)

    def _publish(self, schedule: Schedule, is_sound: NDArray[np.bool_]) -> None:
        rows, row = self._rows, schedule.rows
        num_full = (rows.num_tokens[row] - rows.num_uncomputed[row]) // self.config.block_size
        for place in places((num_full > rows.num_published[row]) & is_sound).tolist():
            self.blocks.publish(schedule.requests[place])
        rows.num_published[row] = num_full

    def _tell(self, drawn: Drawn, row: NDArray[np.int64], output: StepOutput) -> None:
        rows = self._rows
        output.requests, output.token_ids = drawn.requests, drawn.token_ids
        output.indices = (rows.num_tokens[row] - rows.num_prompt_tokens[row] - 1).tolist()
        for i in places(rows.num_logprobs[row] >= 0).tolist():
            if (logprobs := drawn.logprobs[i]) is not None:
                output.logprobs[i] = logprobs
        for i in places(rows.is_new[row]).tolist():
            request = drawn.requests[i]
            request.has_begun = True
            request.first_token_s = request.first_token_s or self._clock()
            output.begun.append(request)
        rows.is_new[row] = False

    def _end(self, drawn: Drawn, schedule: Schedule, is_sound: NDArray[np.bool_], output: StepOutput) -> None:
        """Those that have drawn their last token, or wanted none, run no more."""
        rows, row = self._rows, schedule.rows[drawn.places]
        stopped, full = rows.has_stopped(row), rows.is_full(row)
        for i in places(stopped | full | rows.prefill_only[row]).tolist():
            request = drawn.requests[i]
            if stopped[i] or full[i]:
                request.finish_reason = FinishReason.STOP if stopped[i] else FinishReason.LENGTH
            self._retire(request, output)
        for place in places((rows.num_uncomputed[schedule.rows] == 0) & is_sound).tolist():
            schedule.requests[place].finish_reason = FinishReason.LENGTH
            self._retire(schedule.requests[place], output)

    def _retire(self, request: Request, output: StepOutput) -> None:
        request.first_token_s = request.first_token_s or self._clock()
        if request.prefill_only:  # a transfer may still be reading its blocks
            self._scheduler.hold(request)
        else:
            self._scheduler.release(request)
        output.ended.append(request)

    def _fail_at(self, at: NDArray[np.int64], schedule: Schedule, output: StepOutput) -> None:
        for place in at.tolist():
            request = schedule.requests[place]
            error = request.error or NumericalError("the model produced NaN or infinite values")
            self._fail(request, error, output)

    def _fail(self, request: Request, error: BatonError, output: StepOutput) -> None:
        request.finish_reason, request.error = FinishReason.ERROR, error
        self.blocks.retract(request)
        self._retire(request, output)
