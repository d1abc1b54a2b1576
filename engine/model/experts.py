"""Mixture-of-experts feed-forward: the router, the experts of each token, and shared experts that process all tokens.

`engine.model.routing` chooses experts; kernels compute them. Checkpoints store experts one by one or together: as
[E, outputs, inputs], or, like GPT-OSS, as [E, inputs, outputs] with gate and up interleaved, or this in MXFP4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model import feed_forward
from engine.model.architecture import MixtureConfig
from engine.model.config import ModelConfig
from engine.model.dequantize import MXFP4_GROUP, mxfp4
from engine.model.feed_forward import FeedForward
from engine.model.packer import Packer
from engine.model.routing import Routing, route
from engine.model.tensors import TensorReader
from kernels.api import Experts, Kernels, Linear


@dataclass(frozen=True, slots=True)
class Mixture:
    """[T, H] -> [T, H]."""

    router: Linear  # [T, H] -> [T, E]
    correction: Tensor | None  # [E] fp32, added to the scores for the choice of experts
    routing: Routing
    experts: Experts
    shared: FeedForward | None

    def __call__(self, x: Tensor) -> Tensor:
        """One row for each row of `x`."""
        expert_ids, weights = route(self.router(x).float(), self.routing, self.correction)
        out = self.experts(x, expert_ids, weights)
        return out if self.shared is None else out + self.shared(x)


class MixtureLoader:
    """Reads the mixtures of one model. At most one layer's experts are in memory twice: as read, and as packed."""

    def __init__(
        self, reader: TensorReader, packer: Packer, wide_kernels: Kernels, config: ModelConfig, mixture: MixtureConfig
    ) -> None:
        """`wide_kernels` compute in fp32."""
        self._reader, self._packer, self._wide_kernels = reader, packer, wide_kernels
        self._config, self._mixture = config, mixture

    def load(self, layer: str) -> Mixture:
        """Read the mixture of the layer with tensors under `layer`; CheckpointError names file and tensor."""
        config, mixture, reader = self._config, self._mixture, self._reader
        block = f"{layer}.{mixture.block}"
        if f"{block}.{mixture.router}.weight" not in reader:
            block = f"{layer}.mlp"  # its name in newer checkpoints of all families
        router = f"{block}.{mixture.router}"
        correction = f"{router}.e_score_correction_bias"
        shared = f"{block}.shared_experts"
        return Mixture(
            router=self._router(router),
            correction=reader.wide(correction, mixture.num_experts) if mixture.correction_bias else None,
            routing=mixture.routing,
            experts=self._experts(f"{block}.experts"),
            shared=feed_forward.load(reader, self._packer, config, shared, mixture.shared_ffn_size)
            if mixture.shared_ffn_size
            else None,
        )

    def _router(self, name: str) -> Linear:
        mixture, reader = self._mixture, self._reader
        read = reader.wide if mixture.wide_router else reader.read
        weight = read(f"{name}.weight", mixture.num_experts, self._config.hidden_size)
        bias = read(f"{name}.bias", mixture.num_experts) if mixture.router_bias else None
        if not mixture.wide_router:
            return self._packer.kernels.pack_linear(weight, bias)
        linear = self._wide_kernels.pack_linear(weight, bias)
        return lambda x: linear(x.float())

    def _experts(self, name: str) -> Experts:
        reader, mixture, activation = self._reader, self._mixture, self._config.activation
        if not mixture.interleaved:
            return self._packer.experts(*self._weights(name), activation)
        gate_up, down = self._interleaved_weights(name)
        num_experts, hidden = mixture.num_experts, self._config.hidden_size
        return self._packer.experts(
            gate_up,
            down,
            activation,
            _by_halves(reader.read(f"{name}.gate_up_proj_bias", num_experts, 2 * mixture.ffn_size)),
            reader.read(f"{name}.down_proj_bias", num_experts, hidden),
        )

    def _weights(self, name: str) -> tuple[Tensor, Tensor]:
        """Read gate | up, [E, 2F, H], and down, [E, H, F]."""
        reader, mixture, hidden = self._reader, self._mixture, self._config.hidden_size
        num_experts, size = mixture.num_experts, mixture.ffn_size
        gate_name, up_name, down_name = mixture.gate_up_down
        if f"{name}.gate_up_proj" in reader:
            gate_up = reader.read(f"{name}.gate_up_proj", num_experts, 2 * size, hidden)
            return gate_up, reader.read(f"{name}.down_proj", num_experts, hidden, size)
        gate_up = reader.room(f"{name}.0.{gate_name}.weight", num_experts, 2 * size, hidden)
        down = reader.room(f"{name}.0.{down_name}.weight", num_experts, hidden, size)
        for expert in range(num_experts):
            reader.read_into(gate_up[expert, :size], f"{name}.{expert}.{gate_name}.weight")
            reader.read_into(gate_up[expert, size:], f"{name}.{expert}.{up_name}.weight")
            reader.read_into(down[expert], f"{name}.{expert}.{down_name}.weight")
        return gate_up, down

    def _interleaved_weights(self, name: str) -> tuple[Tensor, Tensor]:
        """The same from [E, H, 2F], with gate and up interleaved, and [E, F, H]."""
        size, hidden = self._mixture.ffn_size, self._config.hidden_size
        gate_up = self._transposed(f"{name}.gate_up_proj", 2 * size, hidden)
        for expert in gate_up:
            expert.copy_(_by_halves(expert.T).T)
        return gate_up, self._transposed(f"{name}.down_proj", hidden, size)

    def _transposed(self, name: str, num_outputs: int, num_inputs: int) -> Tensor:
        """Read [E, outputs, inputs] from a tensor that is stored as [E, inputs, outputs], or in MXFP4."""
        checkpoint, num_experts = self._reader.checkpoint, self._mixture.num_experts
        target = self._reader.room(name, num_experts, num_outputs, num_inputs)
        if f"{name}_blocks" not in checkpoint:
            stored = checkpoint.tensor(name, (num_experts, num_inputs, num_outputs))
            for expert, turned in zip(target, stored, strict=True):
                expert.copy_(turned.T)
            return target
        shape = (num_experts, num_outputs, num_inputs // MXFP4_GROUP)
        blocks = checkpoint.tensor(f"{name}_blocks", (*shape, MXFP4_GROUP // 2), ("U8",))
        scales = checkpoint.tensor(f"{name}_scales", shape, ("U8",))
        for expert, block, scale in zip(target, blocks, scales, strict=True):
            expert.copy_(mxfp4(block.to(target.device), scale.to(target.device)))
        return target


def _by_halves(x: Tensor) -> Tensor:
    """[..., 2F] with gate and up interleaved -> gate | up."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
