"""The dense feed-forward of a layer: gate and up as one product fused with the activation, then down."""

from dataclasses import dataclass

from torch import Tensor

from engine.model.config import ModelConfig
from engine.model.packer import Packer
from engine.model.tensors import TensorReader
from kernels.api import Linear


@dataclass(frozen=True, slots=True)
class FeedForward:
    """[T, H] -> [T, H]."""

    gated: Linear  # [T, H] -> [T, F]
    down: Linear  # [T, F] -> [T, H]

    def __call__(self, x: Tensor) -> Tensor:
        """One row for each row of `x`."""
        return self.down(self.gated(x))


def load(reader: TensorReader, packer: Packer, config: ModelConfig, prefix: str, ffn_size: int) -> FeedForward:
    """Read the feed-forward with tensors under `prefix`; CheckpointError names file and tensor."""
    hidden = config.hidden_size

    def gate_up(kind: str, *rest: int) -> Tensor:
        parts = {f"{prefix}.gate_proj.{kind}": ffn_size, f"{prefix}.up_proj.{kind}": ffn_size}
        return reader.outputs(parts, f"{prefix}.gate_up_proj.{kind}", *rest)

    has_bias = config.mlp_bias
    return FeedForward(
        gated=packer.gated(gate_up("weight", hidden), gate_up("bias") if has_bias else None, config.activation),
        down=packer.linear(
            reader.read(f"{prefix}.down_proj.weight", hidden, ffn_size),
            reader.read(f"{prefix}.down_proj.bias", hidden) if has_bias else None,
        ),
    )
