"""Renders conversations to text with the model directory's chat template.

The result equals that of transformers' `apply_chat_template(add_generation_prompt=True)`, byte for byte. Templates run
in a sandbox, with limits on output size and time. They only ever come from the model directory, never from a request.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from baton.errors import CheckpointError, ContextLengthExceeded, InvalidRequest
from baton.model_dir import read_json, read_text

TIMEOUT_S = 5.0
_MAX_REASON_CHARS = 300
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_WITH_TOOLS = Path("additional_chat_templates", "tool_use.jinja")
_NO_VARIABLES: Mapping[str, Any] = {}
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A compiled chat template, with the special tokens that it may use as variables."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
        *,
        with_tools: str | None = None,
    ) -> None:
        """`with_tools`: the template to use instead if there are tools. Raises jinja2.TemplateSyntaxError."""
        self.source = source + (with_tools or "")
        environment = _environment(now)
        self._template = _from_string(environment, source)
        self._with_tools = self._template if with_tools is None else _from_string(environment, with_tools)
        self._variables = dict(variables)

    @classmethod
    def load(cls, model_dir: Path) -> "ChatTemplate | None":
        """Load the template of a model directory, or return None if it has none. Raises CheckpointError."""
        config = read_json(model_dir / "tokenizer_config.json", required=False)
        path = model_dir / "chat_template.jinja"
        source, with_tools = read_text(path, required=False), read_text(model_dir / _WITH_TOOLS, required=False)
        if source is None:
            path = model_dir / "tokenizer_config.json"
            source, with_tools = _templates(path, config.get("chat_template"))
        if source is None:
            return None
        try:
            return cls(source, _named_tokens(model_dir, config), with_tools=with_tools)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"{path}: chat template, line {error.lineno}: {error.message}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_chars: int,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] = _NO_VARIABLES,
    ) -> str:
        """Render the prompt of a conversation, ready for the assistant's turn.

        `tools` are in OpenAI's format; `variables` are additional variables of the template. Raises InvalidRequest if
        the template refuses the conversation, ContextLengthExceeded if the result exceeds `max_chars`.
        """
        given = [_fields(message) for message in messages]
        try:
            return self._render_within(given, max_chars, {"tools": tools, **variables})
        except _Refused as error:
            raise InvalidRequest(str(error)[:_MAX_REASON_CHARS], param="messages") from None
        except _RENDER_ERRORS:
            what = "these messages with these tools" if tools else "these messages"
            raise InvalidRequest(f"the model's chat template cannot render {what}", param="messages") from None

    def _render_within(self, messages: list[dict[str, Any]], max_chars: int, more: dict[str, Any]) -> str:
        deadline = time.monotonic() + TIMEOUT_S
        pieces, num_chars = [], 0
        template = self._with_tools if more["tools"] else self._template
        stream = template.generate(
            messages=messages, documents=None, add_generation_prompt=True, **self._variables, **more
        )
        for piece in stream:
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > max_chars:
                raise ContextLengthExceeded("the messages are longer than the model's context", param="messages")
            if time.monotonic() > deadline:
                raise InvalidRequest("the chat template takes too long to render these messages", param="messages")
        return "".join(pieces)


class _Refused(jinja2.TemplateError):
    """Raised when the template calls `raise_exception`."""


class _GenerationBlock(Extension):
    """`{% generation %}`, which marks the assistant's part for training; here it renders as its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own form

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeNamespace(Namespace):
    """jinja's namespace, but without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # positional only: a template may call an attribute `self`
        namespace, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(namespace, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a chat template cannot set attributes that begin with an underscore")


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    def strftime_now(pattern: str) -> str:
        return now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": strftime_now,
        "namespace": _SafeNamespace,
    }
    return environment


def _from_string(environment: jinja2.Environment, source: str) -> jinja2.Template:
    template = environment.from_string(source)
    template.globals = dict(template.globals)  # copied by each rendering, which is ten times as slow for a ChainMap
    return template


def _fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's fields that are not None; its reasoning also as `thinking`, which GPT-OSS' template reads."""
    fields = {name: value for name, value in message.items() if value is not None}
    return {"thinking": fields["reasoning_content"], **fields} if "reasoning_content" in fields else fields


def _raise_exception(message: object) -> None:
    raise _Refused(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replace jinja's filter, which escapes HTML: no model was trained on that."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _templates(path: Path, given: Any) -> tuple[str | None, str | None]:
    """Return the template and, if there is one, that for tools.

    `given` is a single template, or several named ones, of which `default` and `tool_use` are used.
    """
    if given is None or isinstance(given, str):
        return given, None
    try:
        named = given if isinstance(given, dict) else {entry["name"]: entry["template"] for entry in given}
        source, with_tools = named["default"], named.get("tool_use")
    except (KeyError, TypeError):
        raise CheckpointError(f"{path}: none of its chat templates is called default") from None
    if not isinstance(source, str) or not isinstance(with_tools, str | None):
        raise CheckpointError(f"{path}: chat_template must be a string, or a list of named strings")
    return source, with_tools


def _named_tokens(model_dir: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return bos_token and the like as template variables. Older models keep them in special_tokens_map.json."""
    if "added_tokens_decoder" not in config:
        config = {**config, **read_json(model_dir / "special_tokens_map.json", required=False)}
    tokens = {}
    for name in _NAMED_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens
