"""Grammars that constrain an output to tool calls with arguments that match the tools' schemas.

Calls have the model's own format (`parsing.style`) or, if that is unknown, are items of a JSON list. Each schema is
embedded as a separate document, so that its `$ref`s still point into itself. Models that think may do so first.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from baton.closed_schema import closed
from baton.errors import InvalidRequest
from baton.request import Grammar, GrammarKind
from router.openai.parsing.style import CALL_MARKERS, OutputStyle
from router.openai.structured_output import MAX_GRAMMAR_BYTES
from router.openai.tool_schema import ToolSpec

MAX_CALLS = 16
_GUIDANCE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}  # as engine.grammar has it for schemas
_OPENED = 'think[lazy]: /(.|\\n)*<\\/think>/\nbreaks: "\\n\\n" | "\\n"\n'


class _Form(NamedTuple):
    """The text around the parts of a call."""

    before: str  # before the name
    between: str  # between name and arguments
    after: str  # after the arguments
    separator: str  # between calls
    opening: str = ""  # before the first call
    closing: str = ""  # after the last call


_HERMES = _Form('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
_LLAMA = _Form('{"name": "', '", "parameters": ', "}", "; ")
_LIST = _Form('{"name": "', '", "arguments": ', "}", ", ", "[", "]")
_FORMS = {"hermes": _HERMES, "llama3": _LLAMA}


def calls_grammar(style: OutputStyle, tools: Sequence[ToolSpec], *, parallel: bool, opened: bool) -> Grammar:
    """Return the grammar of one call or, if `parallel`, up to MAX_CALLS. Raises InvalidRequest.

    `opened`: the prompt has opened a reasoning block.
    """
    form = _FORMS.get(style.calls, _LIST)
    more = f"({_literal(form.separator)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    calls = f"{_literal(form.opening)} call {more} {_literal(form.closing)}"
    lines = [f"start: {_before(style, opened)} calls", f"calls: {calls}", *_calls(form, tools)]
    return _grammar(style, lines, "tools")


def strict_grammar(style: OutputStyle, tools: Sequence[ToolSpec], *, opened: bool) -> Grammar | None:
    """Return the grammar of any text with calls that match their schemas; None if the style has no call marker."""
    marker = CALL_MARKERS.get(style.calls)
    if marker is None:
        return None
    form, calls = _HERMES._replace(before=_HERMES.before.removeprefix(marker)), "call"
    if style.calls == "mistral":
        form, calls = _LIST, f'" "? {_literal("[")} call ({_literal(_LIST.separator)} call)* {_literal("]")}'
    as_token = f" | rest <[{style.marker_id}]>" if style.marker_id is not None else ""
    lines = [
        f"start: {_before(style, opened)} (to_call calls)* rest",
        f"to_call: spelled{as_token}",
        f"spelled[lazy]: /(.|\\n)*{re.escape(marker)}/",
        "rest: /(.|\\n)*/",
        f"calls: {calls}",
        *_calls(form, [tool if tool.strict else _loose(tool) for tool in tools]),
    ]
    return _grammar(style, lines, "tools")


def after_thinking(grammar: Grammar, style: OutputStyle, *, opened: bool) -> tuple[Grammar, bool]:
    """Extend a client's grammar by reasoning before it. Returns it, and whether reasoning may come first.

    Only JSON schemas allow that.
    """
    if not style.thinks or grammar.kind is not GrammarKind.JSON_SCHEMA:
        return grammar, False
    lines = [f"start: {_before(style, opened)} answer", f"answer: {_json(json.loads(grammar.text))}"]
    return _grammar(style, lines, grammar.param), True


def _before(style: OutputStyle, opened: bool) -> str:
    if not style.thinks:
        return ""
    return "think breaks?" if opened else '("<think>" think breaks?)?'


def _calls(form: _Form, tools: Sequence[ToolSpec]) -> list[str]:
    lines = ["call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        head = _literal(form.before + tool.name + form.between)
        lines += [f"call_{i}: {head} arguments_{i} {_literal(form.after)}", f"arguments_{i}: {_json(tool.schema)}"]
    return lines


def _loose(tool: ToolSpec) -> ToolSpec:
    return ToolSpec(name=tool.name, description=None, parameters={"type": "object"}, strict=False)


def _json(schema: dict[str, Any]) -> str:
    return "%json " + json.dumps({"x-guidance": _GUIDANCE} | closed(schema))


def _literal(text: str) -> str:
    """Return a Lark string literal, which has the syntax of a JSON string."""
    return json.dumps(text) if text else ""


def _grammar(style: OutputStyle, lines: list[str], param: str) -> Grammar:
    text = "\n".join([*lines, _OPENED if style.thinks else ""])
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(f"Schemas may have at most {MAX_GRAMMAR_BYTES} bytes together", param=param)
    return Grammar(GrammarKind.CFG, text, param)
