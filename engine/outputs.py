"""What a step has brought forth: tokens, ends of requests, and changes of the prefix cache."""

from dataclasses import dataclass, field

from baton.errors import BatonError
from baton.prefix_hash import BlockHash
from baton.request import FinishReason
from engine.request import Request
from engine.sampler import Logprobs

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Output:
    """A token of a request, its end, or both."""

    request: Request
    index: int  # output position, those of earlier attempts counted
    token_id: int  # NO_TOKEN where the request ended in an error
    logprobs: Logprobs | None
    finish_reason: FinishReason  # of a prefill-only request: UNFINISHED unless its first token is its last
    error: BatonError | None


@dataclass(slots=True)
class StepOutput:
    """Of one step. Without scheduled tokens nothing could run, and nothing will until the engine is changed."""

    outputs: list[Output] = field(default_factory=list)
    stored: list[BlockHash] = field(default_factory=list)  # net of the time since the step before
    evicted: list[BlockHash] = field(default_factory=list)
    num_scheduled_tokens: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nobody needs to hear of it."""
        return not (self.outputs or self.stored or self.evicted)
