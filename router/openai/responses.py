"""POST /v1/responses: generates as /v1/chat/completions does, with items for input and output. Nothing is stored."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from baton.errors import InvalidRequest
from baton.model_dir import SamplingDefaults
from router.http.exchange import Exchange
from router.openai.answer_format import Format
from router.openai.chat import Chat
from router.openai.chat_schema import ChatBody
from router.openai.conversation import Conversation, for_template, thinking_variables
from router.openai.generate import Generator
from router.openai.parsing.parts import Parser, PlainParser
from router.openai.prompt_part import PromptPart
from router.openai.responses_format import ResponsesFormat
from router.openai.responses_schema import (
    LOGPROBS,
    ContentPart,
    InputItem,
    ResponsesBody,
    parse_responses,
    response_format,
    tools_of,
)

_NAMES = {"max_completion_tokens": "max_output_tokens", "response_format": "text.format", "messages": "input"}


class Responses:
    """Serves the endpoint."""

    def __init__(self, generator: Generator, chat: Chat) -> None:
        self._model = generator.model
        self._check_body = generator.check_body
        self._chat = chat

    async def respond(self, exchange: Exchange) -> None:
        """Serve one request."""
        body = parse_responses(await exchange.read_body(self._check_body))
        self._model.check_name(body.model)
        exchange.model = body.model
        body = _complete(body, self._model.facts.sampling)
        if isinstance(body.input, list):
            self._model.check_sizes(body.input, self._chat.max_model_len, "input")
        tools = tools_of(body)
        given = Conversation(
            messages=messages_of(body),
            tools=[tool.for_template() for tool in tools.listed] or None,
            variables=thinking_variables(body.reasoning.effort if body.reasoning else None, body.chat_template_kwargs),
            param="input",
        )
        form = partial(self._form, body)
        try:
            await self._chat.generate(exchange, chat_body(body), given, tools, form, names=_NAMES)
        except InvalidRequest as error:
            if name := _NAMES.get(error.param or ""):
                error.message, error.param = error.message.replace(str(error.param), name), name
            raise

    def _form(self, body: ResponsesBody, parts: list[PromptPart], parser: Callable[[], Parser] | None) -> Format:
        return ResponsesFormat(body, parts, parser() if parser else PlainParser(), self._model.style.calls)


def _complete(body: ResponsesBody, default: SamplingDefaults) -> ResponsesBody:
    """Fill in the defaults of the parameters that the answer repeats."""
    temperature = default.temperature if body.temperature is None else body.temperature
    return replace(body, temperature=temperature, top_p=default.top_p if body.top_p is None else body.top_p)


def chat_body(body: ResponsesBody) -> ChatBody:
    """Return a chat body with the same parameters, but without messages and tools."""
    logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    return ChatBody(
        model=body.model,
        messages=[],
        stream=body.stream,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=logprobs,
        top_logprobs=body.top_logprobs,
        response_format=response_format(body),
    )


def messages_of(body: ResponsesBody) -> list[dict[str, Any]]:
    """Return the messages for a template. An assistant's reasoning, text and calls in a row become one message."""
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        _add(messages, item)
    return messages


def _add(messages: list[dict[str, Any]], item: InputItem) -> None:
    match item.type:
        case "function_call":
            called = for_template(item.call_id or "", item.name or "", item.arguments or "")
            _assistant(messages).setdefault("tool_calls", []).append(called)
        case "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        case "reasoning":
            if thought := _text(item.content):
                messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
        case _ if item.role == "assistant":
            message = _assistant(messages, fresh=True)
            message["content"] = _text(item.content)
        case _:
            messages.append({"role": item.role, "content": _text(item.content)})


def _assistant(messages: list[dict[str, Any]], *, fresh: bool = False) -> dict[str, Any]:
    """Return the assistant's current message, adding one if the last message is not the assistant's.

    `fresh`: also add one if the last message has text or calls already.
    """
    last = messages[-1] if messages else {}
    spoken = bool(last.get("content") or last.get("tool_calls"))
    if last.get("role") != "assistant" or (fresh and spoken):
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(content: str | Sequence[ContentPart] | None) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content or ())
