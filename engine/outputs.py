"""The results of a step: tokens, ends of requests, log-probabilities of prompts, and changes of the prefix cache."""

from dataclasses import dataclass, field

from baton.errors import BatonError
from baton.kv.prefix_hash import BlockHash
from baton.request import FinishReason
from engine.prompt_logprobs import PromptLogprobs
from engine.request import Request
from engine.sampling.sampler import Logprobs

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Output:
    """A token of a request, its end, or both."""

    request: Request
    index: int  # output position, counting the tokens of earlier attempts
    token_id: int  # NO_TOKEN if the request ended without one
    logprobs: Logprobs | None
    finish_reason: FinishReason  # UNFINISHED for a prefill-only request, unless its first token is its last
    error: BatonError | None


@dataclass(slots=True)
class StepOutput:
    """The results of one step. If no tokens were scheduled, nothing can run until a call changes the engine.

    Tokens are columns: request `requests[i]` has drawn `token_ids[i]`, at output position `indices[i]`.
    """

    requests: list[Request] = field(default_factory=list)  # the same list while the same requests draw
    token_ids: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    logprobs: dict[int, Logprobs] = field(default_factory=dict)  # by i, where they were asked for
    begun: list[Request] = field(default_factory=list)  # requests that drew their first token on this node
    ended: list[Request] = field(default_factory=list)  # requests that stopped running: finished, failed, or prefilled
    prompt_logprobs: list[tuple[Request, PromptLogprobs]] = field(default_factory=list)
    stored: list[BlockHash] = field(default_factory=list)  # net changes since the previous step
    evicted: list[BlockHash] = field(default_factory=list)
    num_scheduled_tokens: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.requests or self.ended or self.prompt_logprobs or self.stored or self.evicted)

    @property
    def outputs(self) -> list[Output]:
        """Tokens and ends as one object each, for callers that handle few of them."""
        ended = {id(request): request for request in self.ended}
        outputs = []
        for i, (request, index, token_id) in enumerate(zip(self.requests, self.indices, self.token_ids, strict=True)):
            over = ended.pop(id(request), None) is not None
            reason = request.finish_reason if over else FinishReason.UNFINISHED
            outputs.append(Output(request, index, token_id, self.logprobs.get(i), reason, None))
        outputs += [
            Output(request, request.num_output_tokens, NO_TOKEN, None, request.finish_reason, request.error)
            for request in ended.values()
        ]
        return outputs
