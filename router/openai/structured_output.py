"""Structured output: converts OpenAI's `response_format`, or vLLM's equivalents, to a `Grammar`.

At most one constraint may be given. Only sizes are checked here. The nodes compile the grammar and, if that fails,
refuse the request with an error that names the client's field.
"""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from baton.request import Grammar, GrammarKind

MAX_GRAMMAR_BYTES = 64 * 1024
MAX_CHOICE_STRINGS = 4096
MAX_CONTAINERS = 2**13
MAX_DEPTH = 200  # nesting of objects and lists; parsers' own limits differ between Python versions
_ANY_OBJECT = '{"type":"object"}'

Name: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}(?!\n)$")]  # Python's $ overlooks a newline
GrammarText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_BYTES)]
ChoiceStrings: TypeAlias = Annotated[
    list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_CHOICE_STRINGS)
]


RawSchema: TypeAlias = (  # kept as the raw JSON of the body
    Annotated[msgspec.Raw, Meta(extra_json_schema={"type": ["object", "null"]})] | msgspec.UnsetType
)
RawOrText: TypeAlias = (  # the same, or a string that contains it
    Annotated[msgspec.Raw, Meta(extra_json_schema={"type": ["object", "string", "null"]})] | msgspec.UnsetType
)


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The schema of a response format. It is always enforced; name, description and `strict` are ignored."""

    name: Name
    schema: RawSchema = msgspec.UNSET
    strict: bool | None = None
    description: Annotated[str, Meta(max_length=4096)] | None = None


class TextFormat(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class JSONObjectFormat(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JSONSchemaFormat(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that a schema describes."""

    json_schema: NamedSchema


class Structured(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """vLLM's `structured_outputs`. Exactly one of the fields must be given."""

    json: RawOrText = msgspec.UNSET
    regex: GrammarText | None = None
    choice: ChoiceStrings | None = None
    grammar: GrammarText | None = None
    json_object: bool | None = None


class StructuredFields(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The fields of a generating body that constrain its output."""

    response_format: TextFormat | JSONObjectFormat | JSONSchemaFormat | None = None
    guided_json: RawOrText = msgspec.UNSET
    guided_regex: GrammarText | None = None
    guided_choice: ChoiceStrings | None = None
    guided_grammar: GrammarText | None = None  # Lark or GBNF
    regex: GrammarText | None = None  # SGLang's name for guided_regex
    ebnf: GrammarText | None = None  # SGLang's name for guided_grammar
    structured_outputs: Structured | None = None
    guided_decoding_backend: Annotated[str, Meta(max_length=512)] | None = None  # accepted and ignored


def grammar_of(body: StructuredFields) -> Grammar | None:
    """Return the grammar that the output must match; None if it may be anything. Raises InvalidRequest."""
    guided = body.guided_json or body.guided_regex or body.guided_choice or body.guided_grammar
    if not (body.response_format or guided or body.regex or body.ebnf or body.structured_outputs):
        return None
    grammars = [*_of_response_format(body.response_format), *_of_guided(body), *_of_structured(body.structured_outputs)]
    if len({(grammar.kind, grammar.text) for grammar in grammars}) > 1:  # clients of old and new vLLM send one twice
        named = " and ".join(dict.fromkeys(grammar.param for grammar in grammars))
        raise InvalidRequest(f"Only one form of output at a time, not {named}", param=grammars[1].param)
    for grammar in grammars:
        _check_size(grammar.text.encode(), grammar.param)
    return grammars[0] if grammars else None


def _of_response_format(given: TextFormat | JSONObjectFormat | JSONSchemaFormat | None) -> list[Grammar]:
    param = "response_format"
    if isinstance(given, JSONSchemaFormat):
        schema = _of_schema(given.json_schema.schema, param)
        return schema or [Grammar(GrammarKind.JSON_SCHEMA, _ANY_OBJECT, param)]
    return [Grammar(GrammarKind.JSON_SCHEMA, _ANY_OBJECT, param)] if isinstance(given, JSONObjectFormat) else []


def _of_guided(body: StructuredFields) -> list[Grammar]:
    return [
        *_of_schema(body.guided_json, "guided_json"),
        *_of_text(GrammarKind.REGEX, body.guided_regex, "guided_regex"),
        *_of_choice(body.guided_choice, "guided_choice"),
        *_of_text(GrammarKind.CFG, body.guided_grammar, "guided_grammar"),
        *_of_text(GrammarKind.REGEX, body.regex, "regex"),
        *_of_text(GrammarKind.CFG, body.ebnf, "ebnf"),
    ]


def _of_structured(given: Structured | None) -> list[Grammar]:
    if given is None:
        return []
    param = "structured_outputs"
    grammars = [
        *_of_schema(given.json, param),
        *_of_text(GrammarKind.REGEX, given.regex, param),
        *_of_choice(given.choice, param),
        *_of_text(GrammarKind.CFG, given.grammar, param),
        *_of_text(GrammarKind.JSON_SCHEMA, _ANY_OBJECT if given.json_object else None, param),
    ]
    if len(grammars) != 1:
        raise InvalidRequest("Expected one of json, regex, choice, grammar and json_object: true", param=param)
    return grammars


def _of_schema(raw: RawOrText, param: str) -> list[Grammar]:
    """Return the grammar of a schema, kept as it is in the body: the order of properties matters."""
    given = b"" if raw is msgspec.UNSET else bytes(raw).strip()
    try:  # raw JSON has not been validated yet
        text = msgspec.json.decode(given, type=str).strip() if given[:1] == b'"' else given.decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("Expected a JSON schema in UTF-8", param=param) from None
    if not text or text == "null":
        return []
    if text[:1] != "{":
        raise InvalidRequest("Expected a JSON schema, which is an object", param=param)
    _check_size(text.encode(), param)
    if text.count("{") + text.count("[") > MAX_CONTAINERS:
        raise InvalidRequest("The schema has too many objects and lists", param=param)
    check_depth(text.encode(), param)
    return [Grammar(GrammarKind.JSON_SCHEMA, text, param)]


def _check_size(grammar: bytes, param: str) -> None:
    if len(grammar) > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(f"Expected at most {MAX_GRAMMAR_BYTES} bytes", param=param)


def check_depth(schema: bytes, param: str) -> None:
    """Raise InvalidRequest for a schema that is nested too deeply. Invalid JSON is left to the parser to report."""
    if schema.count(b"{") + schema.count(b"[") <= MAX_DEPTH:
        return
    try:
        level = _containers([[msgspec.json.decode(schema)]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    except RecursionError:
        raise InvalidRequest("The schema is nested too deeply", param=param) from None
    for _ in range(MAX_DEPTH):
        level = _containers(level)
    if level:
        raise InvalidRequest("The schema is nested too deeply", param=param)


def _containers(level: list[Any]) -> list[Any]:
    """Return the objects and lists that are direct children of these."""
    values = (node.values() if isinstance(node, dict) else node for node in level)
    return [value for some in values for value in some if isinstance(value, dict | list)]


def _of_text(kind: GrammarKind, text: str | None, param: str) -> list[Grammar]:
    return [] if text is None else [Grammar(kind, text, param)]


def _of_choice(choices: list[str] | None, param: str) -> list[Grammar]:
    return [] if choices is None else [Grammar(GrammarKind.CHOICE, msgspec.json.encode(choices).decode(), param)]
