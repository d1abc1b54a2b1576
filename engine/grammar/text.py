"""A grammar as a client wrote it, brought into the one form that llguidance compiles.

Conversion parses the client's text, so it belongs where time and memory are bounded (`jail`). Whether the
result can be compiled is found out by compiling it.
"""

from typing import Any

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from baton.errors import InvalidRequest
from baton.request import Grammar, GrammarKind

# Runs of whitespace between JSON tokens end: small models would go on with them for ever.
_JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}


def serialized(grammar: Grammar) -> str:
    """What LLMatcher takes. Raises InvalidRequest for a text that is not of its kind."""
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
        raise InvalidRequest("The schema is no valid JSON", param=grammar.param) from None
    if not isinstance(schema, dict):
        raise InvalidRequest("A JSON schema is an object", param=grammar.param)
    schema.setdefault("x-guidance", _JSON_OPTIONS)
    return schema


def _choice(grammar: Grammar) -> str:
    """Lark's strings are written as JSON's."""
    try:
        choices = msgspec.json.decode(grammar.text, type=list[str])
    except msgspec.DecodeError:
        raise InvalidRequest("Expected a list of strings", param=grammar.param) from None
    return "start: " + " | ".join(msgspec.json.encode(choice).decode() for choice in choices)


def _lark(grammar: Grammar) -> str:
    """Of a text in Lark's notation, or in GBNF."""
    try:
        lark: str = any_to_lark(grammar.text)
    except Exception as error:  # the converter raises nothing more precise
        raise InvalidRequest(f"Neither Lark nor GBNF: {error}", param=grammar.param) from None
    return lark


def _grammars(**grammar: Any) -> str:
    """Never the client's text itself: llguidance would take one that begins with a brace for a list like this."""
    return msgspec.json.encode({"grammars": [grammar]}).decode()
