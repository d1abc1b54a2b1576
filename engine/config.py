"""How a node runs its model: `EngineConfig`; what the model is, `engine.model.config` says."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a node runs its model: made by `engine.resolve` from flags, the model and the machine."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    dtype: str
    device: str
    num_threads: int = 0
    quantization: str = "none"
    stretches_after: int = 0  # tokens beyond which a request's rotary embedding is another; 0: it never is
    runs_ahead: bool = False  # a step is launched before the results of the one before are there

    @property
    def weight_bits(self) -> int:
        """Of the weights of layers; 16 stands for their own type."""
        return {"none": 16, "int8": 8, "int4": 4}[self.quantization]

    @property
    def max_blocks_per_request(self) -> int:
        """Blocks of a request of `max_model_len` tokens."""
        return -(-self.max_model_len // self.block_size)
