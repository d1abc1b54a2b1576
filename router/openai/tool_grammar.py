"""Grammars that hold an output to calls of tools, each with arguments that its schema describes.

A call is written as the model would write it (`parsing.style`), or as an item of a JSON list where nobody knows how.
Each schema stays a document of its own: its `$ref`s point into itself. A model that thinks may do so first.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from baton.errors import InvalidRequest
from baton.request import Grammar, GrammarKind
from router.openai.parsing.style import OutputStyle
from router.openai.structured_output import MAX_GRAMMAR_BYTES
from router.openai.tool_schema import ToolSpec

MAX_CALLS = 16
_GUIDANCE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}  # as engine.grammar has it for schemas
_OPENED = 'think[lazy]: /(.|\\n)*<\\/think>/\nbreaks: "\\n\\n" | "\\n"\n'


class _Form(NamedTuple):
    """How calls are written."""

    before: str  # the name
    between: str  # name and arguments
    after: str  # the arguments
    separator: str
    opening: str = ""  # of the whole list
    closing: str = ""


_HERMES = _Form('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
_LLAMA = _Form('{"name": "', '", "parameters": ', "}", "; ")
_LIST = _Form('{"name": "', '", "arguments": ', "}", ", ", "[", "]")
_FORMS = {"hermes": _HERMES, "llama3": _LLAMA}


def calls_grammar(style: OutputStyle, tools: Sequence[ToolSpec], *, parallel: bool, opened: bool) -> Grammar:
    """One call, or up to MAX_CALLS. `opened`: the prompt has begun a reasoning block. Raises InvalidRequest."""
    form = _FORMS.get(style.calls, _LIST)
    more = f"({_literal(form.separator)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    calls = f"{_literal(form.opening)} call {more} {_literal(form.closing)}"
    lines = [f"start: {_before(style, opened)} calls", f"calls: {calls}", *_calls(form, tools)]
    return _grammar(style, lines, "tools")


def strict_grammar(style: OutputStyle, tools: Sequence[ToolSpec], *, opened: bool) -> Grammar | None:
    """Any text with calls in it, which are held to their schemas; None where no marker tells calls from text."""
    if style.calls != "hermes":
        return None
    form = _HERMES._replace(before=_HERMES.before.removeprefix("<tool_call>"))
    lines = [
        f"start: {_before(style, opened)} (to_call call)* rest",
        "to_call[lazy]: /(.|\\n)*<tool_call>/",
        "rest: /(.|\\n)*/",
        *_calls(form, [tool if tool.strict else _loose(tool) for tool in tools]),
    ]
    return _grammar(style, lines, "tools")


def after_thinking(grammar: Grammar, style: OutputStyle, *, opened: bool) -> tuple[Grammar, bool]:
    """What a client asked for, and whether reasoning may come first, which only schemas allow."""
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
    return "%json " + json.dumps({"x-guidance": _GUIDANCE} | schema)


def _literal(text: str) -> str:
    """Lark's strings are written as JSON's."""
    return json.dumps(text) if text else ""


def _grammar(style: OutputStyle, lines: list[str], param: str) -> Grammar:
    text = "\n".join([*lines, _OPENED if style.thinks else ""])
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(f"Schemas may have at most {MAX_GRAMMAR_BYTES} bytes together", param=param)
    return Grammar(GrammarKind.CFG, text, param)
