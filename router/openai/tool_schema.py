"""Tools of /v1/chat/completions and /v1/responses: their schema in bodies, and the tools that a request may call.

A function's parameters keep the client's order of keys, since templates show them to the model as they are.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from router.openai.schema import CacheControl, Text
from router.openai.structured_output import Name, RawSchema, check_depth

MAX_TOOLS = 128
_MAX_SCHEMA_BYTES = 512 * 1024  # all tools together
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}

CallID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]


class Function(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: Name
    description: Text | None = None
    parameters: RawSchema = msgspec.UNSET
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A tool of a chat body; functions are the only kind."""

    type: Literal["function"]
    function: Function
    cache_control: CacheControl | None = None  # accepted and ignored


class FunctionRef(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The name of one of the tools."""

    name: Name


class ToolRef(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A reference to one of the tools, in the format of chat bodies."""

    type: Literal["function"]
    function: FunctionRef


class AllowedTools(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A subset of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolRef], Meta(min_length=1, max_length=MAX_TOOLS)]


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="function"):
    """This tool has to be called."""

    function: FunctionRef


class AllowedChoice(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="allowed_tools"):
    """Only some of the tools may be called."""

    allowed_tools: AllowedTools


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A function, independent of the endpoint."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of its arguments. A function without parameters takes none."""
        return _NO_PARAMETERS | {"additionalProperties": False} if self.parameters is None else self.parameters

    def for_template(self) -> dict[str, Any]:
        """Return the tool in the format of chat templates."""
        fields = {"name": self.name, "description": self.description, "parameters": self.parameters or _NO_PARAMETERS}
        return {"type": "function", "function": {name: value for name, value in fields.items() if value is not None}}


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of a request."""

    listed: Sequence[ToolSpec] = ()  # shown to the model
    allowed: Sequence[ToolSpec] = ()  # may be called
    required: bool = False  # whether one must be called
    parallel: bool = True  # whether several may be called

    @property
    def names(self) -> frozenset[str]:
        """The names of the allowed tools."""
        return frozenset(tool.name for tool in self.allowed)

    @property
    def narrowed(self) -> bool:
        """Whether not all tools are allowed."""
        return len(self.allowed) < len(self.listed)

    @property
    def constrained(self) -> bool:
        """Whether not any call will do: some tool's arguments must match its schema, or not all tools are allowed."""
        return self.narrowed or any(tool.strict for tool in self.allowed)


NO_TOOLS = Tools()


def tool_specs(functions: Iterable[tuple[str, Function]]) -> list[ToolSpec]:
    """Convert functions, given with their field's path. Raises InvalidRequest for invalid or too large schemas."""
    listed = list(functions)
    if sum(len(f.parameters) for _, f in listed if f.parameters is not msgspec.UNSET) > _MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"Expected schemas of at most {_MAX_SCHEMA_BYTES} bytes", param="tools")
    return [_tool_spec(function, param) for param, function in listed]


def _tool_spec(function: Function, param: str) -> ToolSpec:
    return ToolSpec(
        name=function.name,
        description=function.description,
        parameters=_parameters(function.parameters, f"{param}.parameters"),
        strict=bool(function.strict),
    )


def chosen(
    tools: Sequence[ToolSpec], mode: str, names: Sequence[str] | None = None, *, parallel: bool | None = None
) -> Tools:
    """Return the tools for a tool choice. Raises InvalidRequest.

    `mode`: none, auto or required. `names`: the tools that may be called; None: all.
    """
    if mode == "none":
        return NO_TOOLS
    known = {tool.name: tool for tool in tools}
    if len(known) != len(tools):
        raise InvalidRequest("Two tools have the same name", param="tools")
    if not tools and (mode == "required" or names is not None):
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")
    if any(name not in known for name in names or ()):
        raise InvalidRequest("tool_choice names no tool of this request", param="tool_choice")
    allowed = tools if names is None else [known[name] for name in dict.fromkeys(names)]
    return Tools(listed=tools, allowed=allowed, required=mode == "required", parallel=parallel is not False)


def tools_of(tools: Sequence[Tool] | None, choice: ToolChoice | None, *, parallel: bool | None) -> Tools:
    """Return the tools of a chat body. Raises InvalidRequest."""
    if not tools and choice in (None, "auto"):
        return NO_TOOLS
    specs = tool_specs((f"tools[{i}].function", tool.function) for i, tool in enumerate(tools or ()))
    match choice:
        case NamedChoice(function=function):
            return chosen(specs, "required", [function.name], parallel=False)
        case AllowedChoice(allowed_tools=some):
            return chosen(specs, some.mode, [tool.function.name for tool in some.tools], parallel=parallel)
        case _:
            return chosen(specs, choice or "auto", parallel=parallel)


def _parameters(raw: RawSchema, param: str) -> dict[str, Any] | None:
    if isinstance(raw, msgspec.UnsetType):
        return None
    check_depth(bytes(raw), param)
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("Expected a JSON schema", param=param) from None
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest("Expected a JSON schema, which is an object", param=param)
    return value
