"""From a checkpoint and flags to an engine that is ready to run. Whatever can go wrong fails here, with the reason."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from baton.other_formats import ADAPTER
from baton.process.settings import EngineFlags
from engine import vector_math
from engine.engine import Engine
from engine.grammar.grammars import Grammars
from engine.kv_cache import KVCache
from engine.model.checkpoint import Checkpoint
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.replay import replaying
from engine.model.rotary import layer_tables
from engine.model.weights import WeightLoader
from engine.resolve import kv_fingerprint, layout, resolve
from kernels.api import Kernels
from kernels.dispatch import load as load_kernels

_log = logging.getLogger(__name__)


def load_engine(
    model_dir: str | Path,
    flags: EngineFlags,
    progress: Callable[[float], None] = lambda fraction: None,
    kernels: Kernels | None = None,
) -> Engine:
    """Load a checkpoint and return an engine that is ready to run. Raises ConfigError (CheckpointError) if it cannot.

    `progress` is called with the fraction of weights loaded so far. `kernels` defaults to the fastest for the device.
    """
    model = ModelConfig.load(model_dir)
    config = resolve(flags, model_dir, model)
    torch.set_num_threads(config.num_threads)
    vector_math.settle()
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    kernels = kernels or load_kernels(device, dtype, flags.deterministic)
    with torch.inference_mode():
        loader = WeightLoader(model, Checkpoint(model_dir), kernels, dtype, device, config.weight_bits)
        weights = loader.load(progress)
        if Path(model_dir, ADAPTER).exists():
            _log.warning("%s in %s is ignored: the base model is served, without the adapter", ADAPTER, model_dir)
        cos_sin = layer_tables(model, config.max_model_len, device)
    fingerprint = kv_fingerprint(model_dir, model, config)
    cache = KVCache(layout(model, config.block_size, config.dtype, fingerprint), config.num_blocks, device)
    grammars = Grammars(model_dir, model.vocab_size, model.eos_token_ids)
    decoder = Decoder(model, weights, kernels, cache, cos_sin)
    return Engine(config, model, replaying(decoder, config, kernels, flags), cache, grammars=grammars)
