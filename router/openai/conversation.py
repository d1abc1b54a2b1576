"""A conversation in the form that chat templates take, from either endpoint."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from router.openai.chat_schema import Message, Switches, ToolCall
from router.openai.tool_schema import NO_TOOLS, Tools


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Messages, tools and template variables, with texts that clients wrote."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    variables: Mapping[str, bool | str] = {}  # further variables of the template
    param: str = "messages"  # the request field that holds the messages, for errors

    @property
    def texts(self) -> list[str]:
        """All strings in it that a client may choose freely."""
        texts: list[str] = []
        for message in self.messages:
            for name, value in message.items():
                if name != "role" or not isinstance(value, str):
                    _add_strings(value, texts)
        _add_strings(self.tools, texts)
        return texts

    def mapped(self, change: Callable[[str], str]) -> "Conversation":
        """Return the conversation with `change` applied to every string of messages and tools."""
        messages, tools = _mapped(self.messages, change), _mapped(self.tools, change)
        return msgspec.structs.replace(self, messages=messages, tools=tools)


def conversation(
    messages: Sequence[Message], tools: Tools = NO_TOOLS, variables: Mapping[str, bool | str] | None = None
) -> Conversation:
    """Make the conversation of a chat body."""
    listed = [tool.for_template() for tool in tools.listed] if tools.listed else None
    return Conversation(messages=[_fields(message) for message in messages], tools=listed, variables=variables or {})


def thinking_variables(effort: str | None, switches: Switches | None = None) -> dict[str, bool | str]:
    """Return the template variables that control thinking. The client's own switches take precedence over `effort`."""
    implied: dict[str, bool | str] = {}
    if effort is not None:
        implied = {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
    given = msgspec.structs.asdict(switches) if switches is not None else {}
    return implied | {name: value for name, value in given.items() if value is not None}


def for_template(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """Return a tool call for a template, with the arguments as an object, since templates write the JSON themselves."""
    value: Any = arguments
    if arguments.lstrip()[:1] == "{":
        with contextlib.suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            value = msgspec.json.decode(arguments)
    function = {"name": name, "arguments": value}
    return {"id": call_id, "type": "function", "function": function}


def _fields(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.thought is not None:
        fields["reasoning_content"] = message.thought
    if message.tool_calls:
        fields["tool_calls"] = [_called(call) for call in message.tool_calls]
    return fields


def _called(call: ToolCall) -> dict[str, Any]:
    return for_template(call.id, call.function.name, call.function.arguments)


def _add_strings(value: Any, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, list):
        for item in value:
            _add_strings(item, texts)
    elif isinstance(value, dict):
        texts.extend(value)
        for item in value.values():
            _add_strings(item, texts)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return value
