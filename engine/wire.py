"""Results of the engine as the messages that are sent to routers."""

from baton.request import Generation
from baton.v1 import types_pb2
from engine.outputs import Output
from engine.sampling.sampler import Logprobs


def token_logprobs(generation: Generation, index: int, logprobs: Logprobs) -> types_pb2.TokenLogprobs:
    """The log-probabilities of the token at output position `index`."""
    return types_pb2.TokenLogprobs(
        key=generation.key,
        attempt=generation.attempt,
        index=index,
        logprob=logprobs.logprob,
        top_token_ids=logprobs.top_token_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def first_token(output: Output) -> types_pb2.FirstToken:
    """The first token of a prefill-only request."""
    request, logprobs = output.request, output.logprobs
    return types_pb2.FirstToken(
        key=request.key,
        attempt=request.attempt,
        token_id=output.token_id,
        index=output.index,
        finish_reason=output.finish_reason.value,
        logprobs=None if logprobs is None else token_logprobs(request.generation, output.index, logprobs),
        num_cached_tokens=request.num_cached_tokens,
        queue_s=request.first_scheduled_s - request.arrival_s,
        prefill_s=request.first_token_s - request.first_scheduled_s,
    )
