"""Validation of generations before they run. Routers have validated them, but a step must not depend on that."""

from baton.errors import ContextLengthExceeded, InvalidRequest
from baton.request import Generation


def validate(generation: Generation, vocab_size: int, max_model_len: int, *, draws_nothing: bool) -> None:
    """Raise InvalidRequest (ContextLengthExceeded), naming the parameter at fault, if the generation cannot run."""
    token_ids, sampling = generation.token_ids, generation.sampling
    if not 0 < generation.num_prompt_tokens <= len(token_ids):
        raise InvalidRequest("the prompt must have at least one token", param="prompt")
    if len(token_ids) + (not draws_nothing) > max_model_len:
        raise ContextLengthExceeded(
            f"{len(token_ids)} tokens leave no room within the model's {max_model_len}", param="prompt"
        )
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        raise InvalidRequest(f"token ids must be below {vocab_size}", param="prompt")
    if any(not 0 <= token_id < vocab_size for token_id in sampling.logit_bias):
        raise InvalidRequest(f"token ids must be below {vocab_size}", param="logit_bias")
    if generation.num_output_tokens >= sampling.max_tokens and not draws_nothing:
        raise InvalidRequest("max_tokens leaves nothing to generate", param="max_tokens")
