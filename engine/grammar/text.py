"""Converts a grammar as the client wrote it to the form that llguidance compiles.

The conversion parses the client's text, so it belongs where time and memory are limited (`jail`). It does not find out
whether the result can be compiled.
"""

import re
from typing import Any

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from baton.closed_schema import closed
from baton.errors import InvalidRequest
from baton.request import Grammar, GrammarKind

# Limits runs of whitespace between JSON tokens: small models might otherwise never stop emitting it.
_JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}
_LARK_START = re.compile(r"(?m)^[ \t]*[?!]+start[ \t]*:")  # Lark's marks, which say how to build a tree of the text


def serialized(grammar: Grammar) -> str:
    """Return the form that LLMatcher takes. Raises InvalidRequest if the text is not of the grammar's kind."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return _grammars(json_schema=_schema(grammar))
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.CHOICE:
            return _grammars(lark_grammar=_choice(grammar))
        case GrammarKind.CFG:
            return _grammars(lark_grammar=_lark(grammar))


def _schema(grammar: Grammar) -> dict[str, Any]:
    try:
        schema = msgspec.json.decode(grammar.text)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("The schema is not valid JSON", param=grammar.param) from None
    if not isinstance(schema, dict):
        raise InvalidRequest("A JSON schema must be an object", param=grammar.param)
    schema = closed(schema)
    schema.setdefault("x-guidance", _JSON_OPTIONS)
    return schema


def _choice(grammar: Grammar) -> str:
    """As a Lark grammar, whose strings are written like JSON's."""
    try:
        choices = msgspec.json.decode(grammar.text, type=list[str])
    except msgspec.DecodeError:
        raise InvalidRequest("Expected a list of strings", param=grammar.param) from None
    return "start: " + " | ".join(msgspec.json.encode(choice).decode() for choice in choices)


def _lark(grammar: Grammar) -> str:
    """Convert a text in Lark's notation, or in GBNF, to Lark."""
    if _LARK_START.search(grammar.text):  # `any_to_lark` would take it for GBNF
        return grammar.text
    try:
        lark: str = any_to_lark(grammar.text)
    except Exception as error:  # the converter raises nothing more precise
        raise InvalidRequest(f"The grammar is neither Lark nor GBNF: {error}", param=grammar.param) from None
    return lark


def _grammars(**grammar: Any) -> str:
    """Wrap the grammar in a list: llguidance would parse a client's text that begins with a brace as such a list."""
    return msgspec.json.encode({"grammars": [grammar]}).decode()
