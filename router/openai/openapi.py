"""The OpenAPI document, generated from the types that parse bodies and the types that answers are tested against."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from router.openai import answer_schema as answers
from router.openai.chat_schema import ChatBody
from router.openai.completion_schema import CompletionBody
from router.openai.embedding_schema import MAX_INPUTS, EmbeddingBody, ScoreBody
from router.openai.response_schema import Response
from router.openai.responses_schema import ResponsesBody
from router.openai.schema import MAX_CHOICES, MAX_INT32
from router.openai.tokenization_schema import DetokenizeBody, TokenizeBody

_TEMPLATE = "#/components/schemas/{name}"
_REASONS = {
    400: "A parameter is invalid; `param` names it",
    401: "The API key is missing or wrong",
    403: "The API key does not allow this",
    404: "There is no such model",
    405: "The path does not take this method",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is declared to be something other than JSON",
    429: "Too many requests at present: retry after `Retry-After` seconds",
    431: "The headers are too large",
    500: "An internal error",
    503: "No node can serve the request: retry after `Retry-After` seconds",
    504: "The request took longer than its deadline",
}
_OF_EVERY_PATH = (400, 401, 405, 408, 431, 500)
_OF_EVERY_BODY = (403, 404, 413, 415, 429, 503, 504)


_ONE_FORM = "At most one form of output, not together with `ignore_eos`; nodes refuse what they cannot compile"
_COMMON_RULES = dict.fromkeys(
    ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf"), _ONE_FORM
) | {
    "structured_outputs": f"Exactly one of its fields. {_ONE_FORM}",
    "stream_options": "Needs `stream: true`",
    "prompt_logprobs": "Not with `stream: true`",
    "min_tokens": "At most `max_tokens`",
    "max_tokens": "Prompt and output together must fit into the model's context",
}
_TOOL_RULES = {"tools": "Their names differ", "tool_choice": "May only name one of `tools`"}
_RULES: dict[str, dict[str, str]] = {  # what a schema cannot express: generators of clients fail on conditions
    "ChatBody": _COMMON_RULES | _TOOL_RULES | {"top_logprobs": "Needs `logprobs: true`"},
    "CompletionBody": _COMMON_RULES
    | {
        "max_tokens": f"{_COMMON_RULES['max_tokens']}; 0 needs `echo` or `prompt_logprobs`",
        "best_of": "Must equal `n`",
        "n": f"Times prompts, at most {MAX_CHOICES}",
    },
    "ResponsesBody": _TOOL_RULES,
    "EmbeddingBody": {"dimensions": "At most as many as the model has"},
    "ScoreBody": {"text_2": "One text, or as many as `text_1` has, unless that is a single one"},
    "TokenizeBody": {"messages": "Either these or `prompt`"},
    "Message": {
        "content": "Required unless there are `tool_calls`",
        "tool_call_id": "Required of a tool's message",
        "tool_calls": "Only of an assistant's message",
    },
}


class _Post(NamedTuple):
    """An endpoint with a body."""

    summary: str
    body: type
    answer: type
    streams: str = ""  # description of its events, if it can stream


_POSTS = {
    "/v1/chat/completions": _Post(
        "Generate the next message", ChatBody, answers.ChatCompletion, "OpenAI's chat.completion.chunk, then [DONE]"
    ),
    "/v1/completions": _Post(
        "Continue a text", CompletionBody, answers.Completion, "OpenAI's text_completion, then [DONE]"
    ),
    "/v1/responses": _Post("Generate a response, as items", ResponsesBody, Response, "OpenAI's response.* events"),
    "/v1/embeddings": _Post("Compute embeddings of texts", EmbeddingBody, answers.Embeddings),
    "/v1/score": _Post("Compute the similarity of texts", ScoreBody, answers.Scores),
    "/tokenize": _Post("Tokenize a prompt", TokenizeBody, answers.Tokens),
    "/detokenize": _Post("Convert token ids to text", DetokenizeBody, answers.Detokenized),
}


def document(version: str, names: Sequence[str], vocab_size: int, *, framed: bool) -> dict[str, Any]:
    """Return the document. `names`: under which the model is served. `framed`: an empty text has tokens (a BOS)."""
    types: list[type] = [answers.Error, answers.Model, answers.Models, answers.Readiness]
    types += [kind for post in _POSTS.values() for kind in (post.body, post.answer)]
    _, schemas = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    inputs = _prompts(vocab_size, MAX_INPUTS, framed=framed)
    schemas["CompletionBody"]["properties"]["prompt"] = _prompts(vocab_size, MAX_CHOICES, framed=framed)
    schemas["EmbeddingBody"]["properties"]["input"] = inputs
    schemas["DetokenizeBody"]["properties"]["tokens"]["items"] = _token_id(vocab_size)
    for name in ("ChatBody", "CompletionBody"):
        ids = schemas[name]["properties"]["stop_token_ids"]["anyOf"]
        ids[:] = [{**form, "items": _token_id(vocab_size)} if "items" in form else form for form in ids]
    for name, rules in _RULES.items():
        for field, rule in rules.items():
            schemas[name]["properties"][field]["description"] = rule
    for field in ("text_1", "text_2"):
        schemas["ScoreBody"]["properties"][field] = {"anyOf": inputs["anyOf"][:2]}
    for post in _POSTS.values():
        fields = schemas[post.body.__name__]["properties"]
        fields["model"] = {"enum": [*names, *([None] if "anyOf" in fields["model"] else [])]}
    key = {"type": "http", "scheme": "bearer", "description": "Required if the router has API keys"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Baton", "version": version},
        "paths": {path: {"post": _post(path, post)} for path, post in _POSTS.items()} | _gets(names),
        "components": {"schemas": schemas, "securitySchemes": {"key": key}},
        "security": [{}, {"key": []}],
    }


def _prompts(vocab_size: int, most: int, *, framed: bool) -> dict[str, Any]:
    """Return the schema of one or several prompts: texts or token ids. The type itself cannot rule out a mixture."""
    text = {"type": "string", "minLength": 0 if framed else 1}
    token_ids = {"type": "array", "minItems": 1, "items": _token_id(vocab_size)}
    texts, several = ({"type": "array", "minItems": 1, "maxItems": most, "items": x} for x in (text, token_ids))
    return {"anyOf": [text, texts, token_ids, several]}


def _token_id(vocab_size: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 0, "maximum": (vocab_size or MAX_INT32) - 1}


def _post(path: str, post: _Post) -> dict[str, Any]:
    content: dict[str, Any] = _json(post.answer)
    if post.streams:
        event = {"event": {"type": "string"}, "data": {"type": "string"}}
        schema = {"type": "object", "description": post.streams, "properties": event, "required": ["data"]}
        content["text/event-stream"] = {"schema": schema}  # of each event
    return {
        "operationId": path.strip("/").replace("/", "_"),
        "summary": post.summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(post.body)}}},
        "responses": {"200": _answer("The answer", content), **_errors((*_OF_EVERY_PATH, *_OF_EVERY_BODY))},
    }


def _gets(names: Sequence[str]) -> dict[str, Any]:
    model = {"name": "model", "in": "path", "required": True, "schema": {"enum": list(names)}}
    probe = {"application/json": {"schema": _ref(answers.Readiness)}}
    return {
        "/v1/models": _get("List the names under which the model is served", _json(answers.Models)),
        "/v1/models/{model}": _get("Describe one of the names", _json(answers.Model), (404,)) | {"parameters": [model]},
        "/metrics": _get("Prometheus metrics of one router process", {"text/plain": {"schema": {"type": "string"}}}),
        "/health": _get("Whether the process answers", _json(answers.Readiness), key=False),
        "/ready": _get("Whether requests can be served", _json(answers.Readiness), key=False, unready=probe),
    }


def _get(
    summary: str,
    content: dict[str, Any],
    errors: Sequence[int] = (),
    *,
    key: bool = True,
    unready: dict[str, Any] | None = None,
) -> dict[str, Any]:
    responses = {"200": _answer(summary, content), **_errors((*_OF_EVERY_PATH, *errors))}
    if unready is not None:
        responses["503"] = _answer("Requests cannot be served", unready)
    return {"get": {"summary": summary, "responses": responses} | ({} if key else {"security": []})}


def _answer(description: str, content: dict[str, Any]) -> dict[str, Any]:
    header = {
        "description": "The request's id: the client's own if it sent a valid one",
        "schema": {"type": "string"},
    }
    return {"description": description, "headers": {"X-Request-ID": header}, "content": content}


def _errors(statuses: Sequence[int]) -> dict[str, Any]:
    return {str(status): _answer(_REASONS[status], _json(answers.Error)) for status in sorted(statuses)}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(kind)}}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(name=kind.__name__)}
