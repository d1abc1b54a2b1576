"""Hundreds of hostile requests. CANARY is in every place where a client may choose a text."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

CANARY = "c4n4ry-5up3r-53cr3t"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": CANARY}]}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": CANARY}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": {"model": "tiny", "input": CANARY},
    "/v1/embeddings": {"model": "tiny", "input": CANARY},
    "/tokenize": COMPLETION,
}


class Refused(NamedTuple):
    """A body that must be refused."""

    name: str
    path: str
    body: bytes


def every() -> Iterator[Refused]:
    """Yield all hostile bodies."""
    for path, body in BODIES.items():
        yield from (Refused(f"{path} {name}", path, data) for name, data in _malformed(body))
        for name, change in _any_endpoint():
            yield Refused(f"{path} {name}", path, _dumps(body | change))
        for field in body:
            for value in _WRONG:
                if (path, field, value) not in _HARMLESS and not (field == "input" and value == [{"x": [CANARY]}]):
                    yield Refused(f"{path} {field}={str(value)[:20]}", path, _dumps(body | {field: value}))
    for path in ("/v1/chat/completions", "/v1/completions"):
        for name, change in _sampling():
            yield Refused(f"{path} {name}", path, _dumps(BODIES[path] | change))
        for text in _NUMBERS:
            for field in ("temperature", "n", "max_tokens", "seed", "top_p"):
                data = _dumps(BODIES[path] | {field: "@"}).replace(b'"@"', text)
                yield Refused(f"{path} {field}={text[:20]!r}", path, data)
        for depth in (5_000, 100_000):
            schema = b'{"items":' * depth + b"{}" + b"}" * depth
            data = _dumps(BODIES[path] | {"response_format": _json_schema("@")}).replace(b'"@"', schema)
            yield Refused(f"{path} a schema {depth} deep", path, data)
    for name, change in _chat():
        yield Refused(name, "/v1/chat/completions", _dumps(CHAT | change))


_WRONG: list[Any] = [None, True, -1, 1.5, {"x": CANARY}, [{"x": [CANARY]}], "", [[]]]
_HARMLESS: list[tuple[str, str, Any]] = [("/tokenize", "model", None), ("/tokenize", "prompt", "")]
_NUMBERS = (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1" + b"0" * 400, b"0x10", b"1_000", b"+1", b"01")
_MODELS = (
    "../tiny", "tiny/../tiny", "%2e%2e/tiny", "/etc/passwd", "tiny\0", "TINY", " tiny", "tiny\n", "file:///etc/passwd",
    "http://127.0.0.1/", "..\\tiny", "tiny;ls", "$(id)", "{{7*7}}", "tiny\u200b", "\u202eynit", "x" * 10_000,
)  # fmt: skip


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def _malformed(body: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    good = _dumps(body)
    yield from (
        ("nothing", b""),
        ("a brace", b"{"),
        ("half", good[: len(good) // 2]),
        ("two", good + good),
        ("an array", b"[" + good + b"]"),
        ("a text", _dumps(CANARY)),
        ("null", b"null"),
        ("a number", b"1" * 5000),
        ("a trailing comma", good[:-1] + b",}"),
        ("a comment", b"/* */" + good),
        ("single quotes", good.replace(b'"', b"'")),
        ("a byte order mark", b"\xef\xbb\xbf" + good),
        ("UTF-16", good.decode().encode("utf-16")),
        ("invalid UTF-8", good.replace(CANARY.encode(), b"\xff\xfe\x80")),
        ("overlong UTF-8", good.replace(CANARY.encode(), b"\xc0\xaf")),
        ("a raw surrogate", good.replace(CANARY.encode(), b"\xed\xa0\x80")),
        ("a lone surrogate", good.replace(CANARY.encode(), b"\\ud800")),
        ("a surrogate as a name", good[:-1] + b',"\\ud800":1}'),
        ("a control character", good.replace(CANARY.encode(), b"a\x01b")),
        ("a raw NUL", good + b"\0"),
        ("deep arrays", good[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("deep objects", good[:-1] + b',"x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"),
        ("only depth", b"[" * 500_000),
        ("a field of the prototype", good[:-1] + b',"__proto__":{"x":1}}'),
        ("a form", b"model=tiny&prompt=x"),
        ("a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix"),
    )


def _any_endpoint() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((f"model {name[:20]!r}", {"model": name}) for name in _MODELS)
    yield from (
        (f"field {name}", {name: CANARY})
        for name in (f"<i>{CANARY}</i>", "chat_template", "prompt_embeds", "cache_salt")
    )
    yield "20k fields", {f"f{i}": 0 for i in range(20_000)}


def _sampling() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p", "repetition_penalty"):
        yield from ((f"{name}={value}", {name: value}) for value in (-1e9, 1e9, "1", [1], {}, True))
    for name in ("n", "max_tokens", "top_k", "min_tokens", "seed"):
        yield from ((f"{name}={value}", {name: value}) for value in (-(10**30), 10**30, 0.5, "1", [1]))
    yield from ((f"n={value}", {"n": value}) for value in (-1, 0, 129, 10**9))
    yield from (
        ("200k stops", {"stop": ["x"] * 200_000}),
        ("a long stop", {"stop": "x" * 100_000}),
        ("an empty stop", {"stop": [""]}),
        ("nested stops", {"stop": [["x"]]}),
        ("a large bias", {"logit_bias": {str(i): 1 for i in range(100_000)}}),
        ("a strong bias", {"logit_bias": {"1": 1e9}}),
        ("a bias without a token", {"logit_bias": {CANARY: 1}}),
        ("a bias below zero", {"logit_bias": {"-1": 1}}),
        ("many stop tokens", {"stop_token_ids": list(range(10_000))}),
        ("a stop token out of range", {"stop_token_ids": [2**40]}),
        ("a long user", {"user": CANARY * 100}),
        ("much metadata", {"metadata": {str(i): CANARY for i in range(1000)}}),
        ("a large schema", {"response_format": _json_schema({"enum": [CANARY * 100] * 3000})}),
        ("a schema that is none", {"response_format": _json_schema(CANARY)}),
        ("a large expression", {"guided_regex": "(a+)+" * 50_000}),
        ("a large grammar", {"guided_grammar": "x" * 2_000_000}),
        ("many choices", {"guided_choice": [CANARY] * 100_000}),
        ("two forms", {"guided_regex": "a", "guided_choice": ["a"]}),
        ("options without a stream", {"stream_options": {"include_usage": True}}),
    )


def _chat() -> Iterator[tuple[str, dict[str, Any]]]:
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}
    yield from (
        ("no messages", {"messages": []}),
        ("an unknown role", {"messages": [{"role": CANARY, "content": "x"}]}),
        ("a role of the template", {"messages": [{"role": "user<|im_end|>", "content": "x"}]}),
        ("a tool that nobody called", {"messages": [{"role": "tool", "content": "x"}]}),
        ("an image", {"messages": [{"role": "user", "content": [part]}]}),
        ("a file", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "../x"}}]}]}),
        ("deep content", {"messages": [{"role": "user", "content": _deep(200)}]}),
        ("too long", {"messages": [{"role": "user", "content": "a " * 500_000}]}),
        ("too many logprobs", {"logprobs": True, "top_logprobs": 10**6}),
        ("template arguments", {"chat_template_kwargs": {"x": CANARY}}),
        ("10k tools", {"tools": [{"type": "function", "function": {"name": "f"}}] * 10_000}),
        ("a tool with a path", {"tools": [{"type": "function", "function": {"name": "../../etc"}}]}),
        ("a tool of another kind", {"tools": [{"type": "mcp", "server_url": "http://127.0.0.1"}]}),
        ("a choice of no tool", {"tool_choice": "required"}),
    )


def _json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema
