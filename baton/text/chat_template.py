"""Conversations to text, by the chat template of the model directory and of nowhere else.

Renders what transformers' `apply_chat_template(add_generation_prompt=True)` renders, byte for byte. The template runs
in a sandbox, and within limits of size and time. Turning the text into token ids is the business of `tokenizer`.
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
    """A compiled template with the special tokens that it may name."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
        *,
        with_tools: str | None = None,
    ) -> None:
        """`with_tools` is used in its stead where there are tools. Raises jinja2.TemplateSyntaxError."""
        self.source = source + (with_tools or "")
        environment = _environment(now)
        self._template = _from_string(environment, source)
        self._with_tools = self._template if with_tools is None else _from_string(environment, with_tools)
        self._variables = dict(variables)

    @classmethod
    def load(cls, model_dir: Path) -> "ChatTemplate | None":
        """The template of a model directory; None where it has none."""
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
        """The prompt of a conversation, ready for the assistant's turn.

        `tools` are as OpenAI's clients send them; `variables` are what the template may know besides. Raises
        InvalidRequest where the template refuses the conversation, ContextLengthExceeded beyond `max_chars`.
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
                raise InvalidRequest("the messages take too long to render", param="messages")
        return "".join(pieces)


class _Refused(jinja2.TemplateError):
    """The template's own `raise_exception`."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's part for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own form

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeNamespace(Namespace):
    """jinja's namespace without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be the name of an attribute
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
    template.globals = dict(template.globals)  # each rendering copies it: a chain of maps takes ten times as long
    return template


def _fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a message has; its reasoning also under the name that GPT-OSS' template reads."""
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
    """jinja's own escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _templates(path: Path, given: Any) -> tuple[str | None, str | None]:
    """A template; or of a list of named ones those that are called `default` and, if there is one, `tool_use`."""
    if given is None or isinstance(given, str):
        return given, None
    try:
        named = given if isinstance(given, dict) else {entry["name"]: entry["template"] for entry in given}
        source, with_tools = named["default"], named.get("tool_use")
    except (KeyError, TypeError):
        raise CheckpointError(f"{path}: none of its chat templates is called default") from None
    if not isinstance(source, str) or not isinstance(with_tools, str | None):
        raise CheckpointError(f"{path}: chat_template is no text")
    return source, with_tools


def _named_tokens(model_dir: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token and its like. Older directories keep them in special_tokens_map.json."""
    if "added_tokens_decoder" not in config:
        config = {**config, **read_json(model_dir / "special_tokens_map.json", required=False)}
    tokens = {}
    for name in _NAMED_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens
