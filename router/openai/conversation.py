"""A conversation as a chat template takes it, whichever endpoint it came by."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from router.openai.chat_schema import Message, Switches, ToolCall
from router.openai.tool_schema import NO_TOOLS, Tools


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Messages, tools, and how much is to be thought; all of it texts of a client."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    variables: Mapping[str, bool | str] = {}  # what else the template is told
    param: str = "messages"  # the client's name for the messages, for errors

    @property
    def texts(self) -> list[str]:
        """Every string in it that a client may choose."""
        texts: list[str] = []
        for message in self.messages:
            for name, value in message.items():
                if not isinstance(value, str):
                    texts += _strings(value)
                elif name != "role":
                    texts.append(value)
        return texts + list(_strings(self.tools)) if self.tools else texts

    def mapped(self, change: Callable[[str], str]) -> "Conversation":
        """The same with every string changed."""
        messages, tools = _mapped(self.messages, change), _mapped(self.tools, change)
        return msgspec.structs.replace(self, messages=messages, tools=tools)


def conversation(
    messages: Sequence[Message], tools: Tools = NO_TOOLS, variables: Mapping[str, bool | str] | None = None
) -> Conversation:
    """The conversation of a chat body."""
    listed = [tool.for_template() for tool in tools.listed] if tools.listed else None
    return Conversation(messages=[_fields(message) for message in messages], tools=listed, variables=variables or {})


def thinking_variables(effort: str | None, switches: Switches | None = None) -> dict[str, bool | str]:
    """What templates call the wish to think more or less, or not at all. A switch of the client's goes before."""
    told: dict[str, bool | str] = {}
    if effort is not None:
        told = {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
    given = msgspec.structs.asdict(switches) if switches is not None else {}
    return told | {name: value for name, value in given.items() if value is not None}


def for_template(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A tool call for a template, which writes the arguments as JSON itself, from the object."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        value = arguments
    function = {"name": name, "arguments": value if isinstance(value, dict) else arguments}
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


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return value
