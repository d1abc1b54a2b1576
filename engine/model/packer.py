"""Packs a layer's weights with the kernels, quantised if that was asked for."""

from torch import Tensor

from baton.errors import ConfigError
from kernels.api import Activation, Experts, Kernels, Linear


class Packer:
    """The kernels of one model, and the bits of its weights; ConfigError if a weight cannot be quantised to them."""

    def __init__(self, kernels: Kernels, bits: int) -> None:
        self.kernels = kernels
        self._bits = bits

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """weight: [out, in], bias: [out]."""
        try:
            return self.kernels.pack_linear(weight, bias, self._bits)
        except ValueError as error:
            raise _unroundable(error) from error

    def gated(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> Linear:
        """weight: [2F, in], bias: [2F], gates before ups."""
        try:
            return self.kernels.pack_gated(weight, bias, activation, self._bits)
        except ValueError as error:
            raise _unroundable(error) from error

    def experts(
        self,
        gate_up: Tensor,
        down: Tensor,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> Experts:
        """Shapes as in `Kernels.pack_experts`."""
        try:
            return self.kernels.pack_experts(gate_up, down, activation, gate_up_bias, down_bias, self._bits)
        except ValueError as error:
            raise _unroundable(error) from error


def _unroundable(error: ValueError) -> ConfigError:
    return ConfigError(f"--quantization does not fit this model: {error}")
