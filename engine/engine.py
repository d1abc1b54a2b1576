"""The engine of a node: requests in, one token each out per step, KV blocks in between.

A request's life is told in `engine.request`. All calls belong on one thread, the step thread (`engine.step_loop`).
What travels between nodes, and who may ask for what, is the business of the nodes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from baton.errors import BatonError, ContextLengthExceeded, InvalidRequest, NumericalError
from baton.kv_layout import KVLayout
from baton.prefix_hash import root_hash
from baton.request import FinishReason, Generation
from baton.settings import EngineFlags
from baton.v1 import types_pb2
from engine import batch as batches
from engine.blocks import BlockManager
from engine.checkpoint import Checkpoint
from engine.config import EngineConfig, ModelConfig
from engine.decoder import Decoder, LayerGroupHook
from engine.kv_cache import KVCache
from engine.outputs import NO_TOKEN, Output, StepOutput
from engine.request import Request, RequestState
from engine.resolve import kv_fingerprint, layout, resolve
from engine.rope import cos_sin_table
from engine.rows import Rows
from engine.sampler import Logprobs, Sampler
from engine.scheduler import Scheduled, Scheduler
from engine.speed import Speed
from engine.weights import WeightLoader
from kernels.api import Kernels
from kernels.dispatch import load as load_kernels

_log = logging.getLogger(__name__)


class Engine:
    """One model on one device, with its KV pool."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        decoder: Decoder,
        cache: KVCache,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.model_config = model_config
        self.on_layer_group: LayerGroupHook | None = None
        self.blocks = BlockManager(config.num_blocks, config.block_size)
        self._cache = cache
        self._decoder = decoder
        self._device = torch.device(config.device)
        self._rows = Rows(config.max_num_seqs, config.max_blocks_per_request)
        self._sampler = Sampler(self._rows, model_config.vocab_size, model_config.eos_token_ids, self._device)
        self._scheduler = Scheduler(config, self.blocks, self._rows)
        self._speed = Speed()
        self._clock = clock
        self._ended_early: list[Output] = []

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
        kernels = kernels or load_kernels(device, dtype)
        with torch.inference_mode():
            weights = WeightLoader(model, Checkpoint(model_dir), kernels, dtype, device).load(progress)
            cos_sin = cos_sin_table(model.rope, model.head_dim, config.max_model_len).to(device)
        fingerprint = kv_fingerprint(model_dir, model, config)
        cache = KVCache(layout(model, config.block_size, config.dtype, fingerprint), config.num_blocks, device)
        return cls(config, model, Decoder(model, weights, kernels, cache, cos_sin), cache)

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
        return self._scheduler.has_work or self.blocks.has_events or bool(self._ended_early)

    def add(self, generation: Generation, *, prefill_only: bool = False) -> Request:
        """Queue a generation. A prefill-only one ends with its first token and keeps its blocks until `release`.

        Raises InvalidRequest (ContextLengthExceeded) for what can never run.
        """
        request = self._make_request(generation, prefill_only=prefill_only)
        self._scheduler.add(request)
        return request

    def reserve(self, generation: Generation) -> Request | None:
        """Blocks for a generation whose KV comes from elsewhere; None if there are not enough of them now.

        The first `num_present_blocks` of its blocks were found in the prefix cache and are not to be written. None of
        the others is shared before `start`.
        """
        request = self._make_request(generation, prefill_only=False)
        return request if self._scheduler.reserve(request) else None

    def start(self, request: Request, first_token: int) -> None:
        """All KV of a reserved request is in its blocks: go on from `first_token`, drawn where the KV was computed."""
        if request.state is not RequestState.RESERVED:
            raise ValueError(f"request {request.request_id} is {request.state.name}, not RESERVED")
        request.num_computed_tokens = request.num_tokens
        self.blocks.publish(request)
        request.arrival_s = request.first_token_s = self._clock()
        request.token_ids.append(first_token)
        request.finish_reason = self._reason_to_finish(request)
        if request.finish_reason is FinishReason.UNFINISHED:
            self._scheduler.start(request)
            return
        index = request.num_output_tokens - 1
        self._scheduler.release(request)
        self._ended_early.append(Output(request, index, first_token, None, request.finish_reason, None))

    def release(self, request: Request) -> None:
        """Forget a request, ending it if it is not finished, and free its blocks; full ones stay cached. Idempotent."""
        if not request.is_finished:
            request.finish_reason = FinishReason.ABORT
        self._scheduler.release(request)

    def step(self) -> StepOutput:
        """Run one batch. Returns at once where nothing can run. An error in it ends the requests of the batch only."""
        scheduled = self._scheduler.schedule()
        outputs, self._ended_early = self._ended_early, []
        if scheduled:
            outputs += self._run_safely(scheduled)
        stored, evicted = self.blocks.take_events()
        return StepOutput(outputs, stored, evicted, sum(num_tokens for _, num_tokens in scheduled))

    def current_load(self) -> types_pb2.Load:
        """What a router wants to know; the node adds its state."""
        scheduler = self._scheduler
        unstarted = [*scheduler.waiting, *(request for request in scheduler.running if not request.first_token_s)]
        return types_pb2.Load(
            num_steps=self._speed.num_steps,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + len(scheduler.ready),
            num_waiting_tokens=sum(request.num_uncomputed_tokens for request in unstarted),
            num_blocks=self.num_blocks,
            num_free_blocks=self.blocks.num_free_blocks,
            prefill_tokens_per_s=self._speed.prefill_tokens_per_s,
            step_s=self._speed.step_s,
        )

    @property
    def num_preemptions(self) -> int:
        """Since the engine was made."""
        return self._scheduler.num_preemptions

    def check(self) -> None:
        """Raise RuntimeError unless every block is accounted for."""
        self.blocks.check(self._scheduler.requests())

    def _make_request(self, generation: Generation, *, prefill_only: bool) -> Request:
        self._validate(generation)
        root = root_hash(self.layout.model_fingerprint, generation.cache_salt)
        return Request(generation, root, self.config.block_size, self._clock(), prefill_only=prefill_only)

    def _validate(self, generation: Generation) -> None:
        """Routers have validated all this; a step must not depend on it."""
        token_ids, sampling = generation.token_ids, generation.sampling
        vocab_size = self.model_config.vocab_size
        if not 0 < generation.num_prompt_tokens <= len(token_ids):
            raise InvalidRequest("the prompt must have at least one token", param="prompt")
        if len(token_ids) >= self.config.max_model_len:
            raise ContextLengthExceeded(
                f"{len(token_ids)} tokens leave no room within the model's {self.config.max_model_len}", param="prompt"
            )
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            raise InvalidRequest(f"token ids must be below {vocab_size}", param="prompt")
        if any(not 0 <= token_id < vocab_size for token_id in sampling.logit_bias):
            raise InvalidRequest(f"token ids must be below {vocab_size}", param="logit_bias")
        if generation.num_output_tokens >= sampling.max_tokens:
            raise InvalidRequest("max_tokens leaves nothing to generate", param="max_tokens")

    def _run_safely(self, scheduled: list[Scheduled]) -> list[Output]:
        start_s = self._clock()
        for request, _ in scheduled:
            request.first_scheduled_s = request.first_scheduled_s or start_s
        try:
            outputs = self._run(scheduled)
        except Exception:  # an edge: whatever a step raises ends its requests, never the node
            _log.exception("a step of %d requests failed", len(scheduled))
            failed = [request for request, _ in scheduled if request.state is RequestState.RUNNING]
            return [self._fail(request, BatonError("the node failed to compute this request")) for request in failed]
        self._speed.note(len(scheduled), sum(n for _, n in scheduled), self._clock() - start_s)
        return outputs

    @torch.inference_mode()
    def _run(self, scheduled: list[Scheduled]) -> list[Output]:
        batch = batches.build(scheduled, self._rows, self.config.block_size, self._device)
        hidden = self._decoder.hidden(batch, self.on_layer_group)
        sampled = [i for i, (request, n) in enumerate(scheduled) if n == request.num_uncomputed_tokens]
        is_finite = _rows_finite(hidden)
        drawn: list[tuple[int, Logprobs | None] | None] = [None] * len(scheduled)
        if sampled:
            logits = self._decoder.logits(hidden if len(sampled) == len(scheduled) else hidden[sampled])
            token_ids, logprobs = self._sampler.sample(logits, [scheduled[i].request for i in sampled])
            for i, token_id, logprob, finite in zip(sampled, token_ids, logprobs, _rows_finite(logits), strict=True):
                drawn[i] = (token_id, logprob)
                is_finite[i] = is_finite[i] and finite
        return self._advance(scheduled, drawn, is_finite)

    def _advance(
        self,
        scheduled: list[Scheduled],
        drawn: Sequence[tuple[int, Logprobs | None] | None],
        is_finite: Sequence[bool],
    ) -> list[Output]:
        """Take the batch's results over into the requests."""
        outputs, now_s = [], self._clock()
        for (request, num_tokens), token, finite in zip(scheduled, drawn, is_finite, strict=True):
            request.num_computed_tokens += num_tokens
            if not finite:
                outputs.append(self._fail(request, NumericalError("the model produced NaN or infinite values")))
                continue
            self.blocks.publish(request)
            if token is not None:
                request.first_token_s = request.first_token_s or now_s
                outputs.append(self._append(request, *token))
        return outputs

    def _append(self, request: Request, token_id: int, logprobs: Logprobs | None) -> Output:
        index = request.num_output_tokens
        request.token_ids.append(token_id)
        request.finish_reason = self._reason_to_finish(request)
        if request.prefill_only:
            self._scheduler.hold(request)
        elif request.finish_reason is not FinishReason.UNFINISHED:
            self._scheduler.release(request)
        return Output(request, index, token_id, logprobs, request.finish_reason, None)

    def _fail(self, request: Request, error: BatonError) -> Output:
        request.finish_reason, request.error = FinishReason.ERROR, error
        self.blocks.retract(request)
        if request.prefill_only:  # a transfer may still be reading its blocks
            self._scheduler.hold(request)
        else:
            self._scheduler.release(request)
        return Output(request, request.num_output_tokens, NO_TOKEN, None, FinishReason.ERROR, error)

    def _reason_to_finish(self, request: Request) -> FinishReason:
        """After its last token was appended."""
        sampling, token_id = request.sampling, request.token_ids[-1]
        is_stop = token_id in sampling.stop_token_ids
        is_eos = token_id in self.model_config.eos_token_ids and not sampling.ignore_eos
        if is_stop or is_eos:
            return FinishReason.STOP
        if request.num_output_tokens >= sampling.max_tokens or request.num_tokens >= self.config.max_model_len:
            return FinishReason.LENGTH
        return FinishReason.UNFINISHED


def _rows_finite(rows: Tensor) -> list[bool]:
    """Whether each row of [B, N] is free of NaN and infinities, which all survive a sum."""
    finite: list[bool] = rows.sum(-1, dtype=torch.float32).isfinite().tolist()
    return finite
