"""From a checkpoint to the layers of the decoder. This module assembles layers; other modules read their attention and
feed-forward, `engine.model.checkpoint` reads files, and the kernels pack weights.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model import feed_forward, leftovers
from engine.model.attention import AttentionLoader, AttentionWeights
from engine.model.checkpoint import Checkpoint
from engine.model.config import ModelConfig
from engine.model.experts import MixtureLoader
from engine.model.latent_attention import LatentAttentionLoader
from engine.model.packer import Packer
from engine.model.tensors import TensorReader
from kernels.api import Attention, Kernels, Linear
from kernels.dispatch import load as load_kernels

_HEAD = "lm_head.weight"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Norm weights are [H] fp32, or None if the layer has no such norm."""

    before_attention: Tensor | None
    projections: AttentionWeights
    attention: Attention
    after_attention: Tensor | None
    before_feed_forward: Tensor | None
    feed_forward: Linear  # [T, H] -> [T, H]
    after_feed_forward: Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a whole decoder."""

    embedding: Tensor  # [V, H]
    embedding_scale: float
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    lm_head: Linear


class WeightLoader:
    """Reads the weights of one model."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        bits: int = 16,
    ) -> None:
        """`bits` 8 or 4 quantises the layers' weights; embedding, output head and routers keep their dtype."""
        self._config, self._kernels = config, kernels
        self._packer = packer = Packer(kernels, bits)
        self._reader = reader = TensorReader(checkpoint, dtype, device, config.quantized)
        self._attention: AttentionLoader | LatentAttentionLoader = (
            LatentAttentionLoader(reader, packer, config, config.latent)
            if config.latent
            else AttentionLoader(reader, packer, config)
        )
        self._mixture = config.mixture and MixtureLoader(reader, packer, self._wide_kernels(), config, config.mixture)

    def load(self, progress: Callable[[float], None]) -> Weights:
        """Read all weights; `progress` is called with the fraction done, last 1.0. CheckpointError names the tensor."""
        config, reader = self._config, self._reader
        reader.checkpoint.check_copies()
        embedding = reader.read("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        layers = []
        for index in range(config.num_layers):
            progress(index / (config.num_layers + 1))
            layers.append(self._layer(index))
        final_norm = reader.wide("model.norm.weight", config.hidden_size) + config.norm_offset
        scale = torch.tensor(config.embedding_scale, dtype=reader.dtype).item()  # rounded as in the model's own code
        lm_head = self._kernels.pack_linear(self._head(embedding), None)
        weights = Weights(embedding, scale, tuple(layers), final_norm, lm_head)
        leftovers.warn(reader.checkpoint, config)
        progress(1.0)
        return weights

    def _head(self, embedding: Tensor) -> Tensor:
        """[V, H]: the embedding if tied to it, unless the checkpoint has another output head, as in transformers 5."""
        config, reader = self._config, self._reader
        if config.tie_word_embeddings and _HEAD not in reader:
            return embedding
        head = reader.read(_HEAD, config.vocab_size, config.hidden_size)
        if not config.tie_word_embeddings:
            return head
        if torch.equal(head, embedding):
            return embedding
        _log.warning("%s differs from the embedding, though config.json ties them: it is used as it is", _HEAD)
        return head

    def _layer(self, index: int) -> LayerWeights:
        config, prefix, norms = self._config, f"model.layers.{index}", self._config.norms
        attention = f"{prefix}.self_attn"
        sinks = self._reader.wide(f"{attention}.sinks", config.num_heads) if config.sinks else None
        return LayerWeights(
            before_attention=self._norm(prefix, norms.before_attention),
            projections=self._attention.load(attention),
            attention=Attention(config.attention_scale, config.windows[index], config.attention_softcap, sinks),
            after_attention=self._norm(prefix, norms.after_attention),
            before_feed_forward=self._norm(prefix, norms.before_feed_forward),
            feed_forward=self._feed_forward(index, prefix),
            after_feed_forward=self._norm(prefix, norms.after_feed_forward),
        )

    def _feed_forward(self, index: int, prefix: str) -> Linear:
        config = self._config
        if self._mixture and config.mixture and config.mixture.layers[index]:
            return self._mixture.load(prefix)
        return feed_forward.load(self._reader, self._packer, config, f"{prefix}.mlp", config.intermediate_size)

    def _norm(self, prefix: str, name: str) -> Tensor | None:
        """[H] fp32."""
        if not name:
            return None
        return self._reader.wide(f"{prefix}.{name}.weight", self._config.hidden_size) + self._config.norm_offset

    def _wide_kernels(self) -> Kernels:
        """Kernels that compute in fp32, since those of a CPU support a single dtype."""
        reader = self._reader
        if reader.dtype is torch.float32 or reader.device.type == "cuda":
            return self._kernels
        return load_kernels(reader.device, torch.float32)
