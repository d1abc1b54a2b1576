"""POST /v1/completions: the text that follows one or several prompts."""

import asyncio
import time

from router.http.exchange import Exchange
from router.openai.answer_format import CompletionFormat
from router.openai.completion_schema import CompletionBody, parse_completion, prompts_of
from router.openai.generate import Generator, Plan, answer_id
from router.openai.prompt_part import PromptPart
from router.openai.sampling import check_ids, check_prompt, num_logprobs, sampling_params, stops
from router.openai.schema import wants_usage
from router.openai.structured_output import grammar_of


class Completions:
    """Serves the endpoint."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._model = generator.model

    async def completion(self, exchange: Exchange, cache_salt: bytes) -> None:
        """One request."""
        body = parse_completion(await exchange.read_body())
        self._model.check_name(body.model)
        exchange.model = body.model
        given, limit = prompts_of(body), self._generator.max_model_len
        prompts: list[list[int]] = []
        for prompt in given:
            if prompts:
                await asyncio.sleep(0)  # others have their turn
            prompts.append(await self._encode(prompt, limit, num_output_tokens=int(body.max_tokens != 0)))
        parts = [
            self._part(body, token_ids, prompt)
            for token_ids, prompt in zip(prompts, given, strict=True)
            for _ in range(body.n or 1)
        ]
        grammar = grammar_of(body)
        plan = Plan(
            form=CompletionFormat(
                answer_id("cmpl"), body.model, int(time.time()), parts, stream_usage=wants_usage(body)
            ),
            prompts=prompts,
            samplings=[sampling_params(body, len(p), self._model.facts, limit, grammar) for p in prompts],
            texts=self._model.token_texts,
            n=body.n or 1,
            stream=bool(body.stream),
            stops=stops(body),
            at_start=False,
        )
        await self._generator.answer(exchange, plan, cache_salt)

    async def _encode(self, prompt: str | list[int], limit: int, *, num_output_tokens: int) -> list[int]:
        token_ids = prompt if isinstance(prompt, list) else await self._model.encode_text(prompt, limit)
        check_prompt(token_ids, limit, "prompt", num_output_tokens=num_output_tokens)
        if token_ids is prompt:
            check_ids(token_ids, self._model.facts, "prompt")
        return token_ids

    def _part(self, body: CompletionBody, token_ids: list[int], prompt: str | list[int]) -> PromptPart:
        echo = prompt if isinstance(prompt, str) or not body.echo else self._model.tokenizer.decode(prompt)
        return PromptPart(
            token_ids,
            self._model.token_texts,
            echo=str(echo) if body.echo else "",
            num_echo_logprobs=num_logprobs(body) if body.echo else -1,
            num_prompt_logprobs=-1 if body.prompt_logprobs is None else body.prompt_logprobs,
        )
