"""How a node runs its model (`EngineConfig`). `engine.model.config` describes the model itself."""

from dataclasses import dataclass

WEIGHT_BITS = {"none": 16, "int8": 8, "int4": 4}  # of the layers' weights; 16 stands for the weights' own dtype


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a node runs its model. Made by `engine.resolve` from flags, the model and the machine."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    dtype: str
    device: str
    num_threads: int = 0
    quantization: str = "none"
    stretches_after: int = 0  # tokens beyond which a request gets another rotary embedding; 0: never
    runs_ahead: bool = False  # a step is launched before the results of the previous one are known

    @property
    def weight_bits(self) -> int:
        """Bits of the layers' weights, as in WEIGHT_BITS."""
        return WEIGHT_BITS[self.quantization]

    @property
    def max_blocks_per_request(self) -> int:
        """Blocks that a request of `max_model_len` tokens takes."""
        return -(-self.max_model_len // self.block_size)
