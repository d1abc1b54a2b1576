"""POST /v1/chat/completions, and what /v1/responses shares with it: generating from a conversation.

Outputs are parsed only if tools may be called or the model may write reasoning; all others are passed through.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import msgspec

from baton.errors import InvalidRequest
from baton.request import Grammar
from router.http.exchange import Exchange
from router.openai.answer_format import ChatFormat, Format
from router.openai.chat_schema import ChatBody, parse_chat
from router.openai.conversation import Conversation, conversation, thinking_variables
from router.openai.generate import Generator, Plan, answer_id
from router.openai.message_format import MessageFormat
from router.openai.parsing.parts import Parser
from router.openai.parsing.reasoning import CLOSING, OPENING
from router.openai.prompt_part import PromptPart
from router.openai.sampling import check_prompt, sampling_params, stops
from router.openai.schema import wants_usage
from router.openai.structured_output import grammar_of
from router.openai.tool_grammar import after_thinking, calls_grammar, strict_grammar
from router.openai.tool_schema import Tools, tools_of

_SAME_NAMES: Mapping[str, str] = {}


class MakeFormat(Protocol):
    """Makes the format of an endpoint's answer."""

    def __call__(self, parts: list[PromptPart], parser: Callable[[], Parser] | None) -> Format:
        """`parts` has one entry per choice; `parser` makes a parser for each output, None if they need no parsing."""


class Chat:
    """Serves the endpoint."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._model = generator.model

    @property
    def max_model_len(self) -> int:
        """The limit on prompt and output tokens of a request; 0: none."""
        return self._generator.max_model_len

    async def chat(self, exchange: Exchange) -> None:
        """Serve one request."""
        body = parse_chat(await exchange.read_body(self._generator.check_body))
        self._model.check_name(body.model)
        exchange.model = body.model
        self._model.check_sizes(body.messages, self.max_model_len, "messages")
        tools = tools_of(body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
        given = conversation(body.messages, tools, thinking_variables(body.reasoning_effort, body.chat_template_kwargs))
        await self.generate(exchange, body, given, tools, partial(self._form, body))

    async def generate(
        self,
        exchange: Exchange,
        body: ChatBody,
        given: Conversation,
        tools: Tools,
        form: MakeFormat,
        names: Mapping[str, str] = _SAME_NAMES,
    ) -> None:
        """Generate an answer to the conversation `given`, with the parameters of `body`.

        The messages and tools of `body` itself are ignored. `names` maps its fields to the client's names for them, for
        use in errors.
        """
        model, limit, n = self._model, self.max_model_len, body.n or 1
        token_ids = await model.encode_chat(given, limit)
        check_prompt(token_ids, limit, given.param)
        opened = model.style.thinks and model.ends_with(token_ids, OPENING)
        over = model.style.thinks and model.ends_with(token_ids, CLOSING)
        grammar, reasons = self._shape(body, tools, opened=opened, over=over)
        if grammar is not None and grammar.param in names:
            grammar = msgspec.structs.replace(grammar, param=names[grammar.param])
        parser = self._parser(tools, reasons=reasons, opened=opened, free=grammar is None)
        num_logprobs = -1 if body.prompt_logprobs is None else body.prompt_logprobs
        scored = PromptPart(token_ids, model.token_texts, num_prompt_logprobs=num_logprobs)
        others = [PromptPart(token_ids, model.token_texts)] * (n - 1)  # the prompt is scored once for all choices
        plan = Plan(
            form=form([scored, *others], parser),
            prompts=[token_ids],
            samplings=[sampling_params(body, len(token_ids), model.facts, limit, grammar)],
            texts=model.token_texts if parser is None else model.marked_texts,
            n=n,
            stream=bool(body.stream),
            stops=stops(body),
        )
        await self._generator.answer(exchange, plan)

    def _form(self, body: ChatBody, parts: list[PromptPart], parser: Callable[[], Parser] | None) -> Format:
        named = (answer_id("chatcmpl"), body.model, int(time.time()), parts)
        if parser is None:
            return ChatFormat(*named, stream_usage=wants_usage(body))
        return MessageFormat(*named, parser, self._model.style.calls, stream_usage=wants_usage(body))

    def _shape(self, body: ChatBody, tools: Tools, *, opened: bool, over: bool) -> tuple[Grammar | None, bool]:
        """Return the grammar that the output must match, and whether it may begin with reasoning.

        `opened`, `over`: the prompt ends with the opening or the closing mark of a reasoning block.
        """
        thinks = self._model.style.thinks
        style = msgspec.structs.replace(self._model.style, thinks=thinks and not over)
        if tools.required:
            if (asked := grammar_of(msgspec.structs.replace(body, response_format=None))) is not None:
                raise InvalidRequest("A form of output cannot be combined with a required tool call", param=asked.param)
            return calls_grammar(style, tools.allowed, parallel=tools.parallel, opened=opened), thinks
        asked = grammar_of(body)
        if asked is not None:
            return after_thinking(asked, style, opened=opened)
        return strict_grammar(style, tools.allowed, opened=opened) if tools.constrained else None, thinks

    def _parser(self, tools: Tools, *, reasons: bool, opened: bool, free: bool) -> Callable[[], Parser] | None:
        style = self._model.style
        if not reasons and not (tools.allowed and (style.calls or tools.required)):
            return None
        return lambda: style.parser(
            tools.names,
            forced=tools.required,
            parallel=tools.parallel,
            reasons=reasons,
            opened=opened,
            free=free,
            only=tools.narrowed,
        )
