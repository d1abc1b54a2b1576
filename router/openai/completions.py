"""POST /v1/completions: continues one or several prompts."""

import asyncio
import time
from array import array
from collections.abc import Sequence

from router.http.exchange import Exchange
from router.openai.completion_format import CompletionFormat
from router.openai.completion_schema import CompletionBody, Reader, prompts_of
from router.openai.generate import Generator, Plan, answer_id
from router.openai.prompt_part import PromptPart
from router.openai.sampling import check_prompt, num_logprobs, sampling_params, stops
from router.openai.schema import wants_usage
from router.openai.structured_output import grammar_of


class Completions:
    """Serves the endpoint."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._model = generator.model
        self._reader = Reader(generator.model.facts.vocab_size)

    async def completion(self, exchange: Exchange) -> None:
        """Serve one request."""
        body = await self._reader.read(exchange, self._generator.check_body)
        self._model.check_name(body.model)
        exchange.model = body.model
        given, limit = prompts_of(body), self._generator.max_model_len
        prompts: list[Sequence[int]] = []
        for prompt in given:
            if prompts:
                await asyncio.sleep(0)  # give other requests a turn
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
        await self._generator.answer(exchange, plan)

    async def _encode(self, prompt: "str | array[int]", limit: int, *, num_output_tokens: int) -> Sequence[int]:
        token_ids = await self._model.encode_text(prompt, limit) if isinstance(prompt, str) else prompt
        check_prompt(token_ids, limit, "prompt", num_output_tokens=num_output_tokens)
        return token_ids

    def _part(self, body: CompletionBody, token_ids: Sequence[int], prompt: "str | array[int]") -> PromptPart:
        echo = prompt if isinstance(prompt, str) or not body.echo else self._model.tokenizer.decode(prompt.tolist())
        return PromptPart(
            token_ids,
            self._model.token_texts,
            echo=str(echo) if body.echo else "",
            num_echo_logprobs=num_logprobs(body) if body.echo else -1,
            num_prompt_logprobs=-1 if body.prompt_logprobs is None else body.prompt_logprobs,
        )
