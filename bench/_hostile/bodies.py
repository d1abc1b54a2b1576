"""Hostile bodies: those that would take the router longest to read, or a node longest to compile."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

MIB = 2**20
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"

Attack = tuple[str, bytes]
"""Path and body."""


def attacks(model: str) -> Iterator[Attack]:
    """Yield attacks in turn, without end. All of them must be refused."""
    fixed = list(_fixed(model))
    for number in itertools.count():
        yield from fixed
        for explode in (_regex, _schema):  # each is new to the nodes, which remember those that they have refused
            yield CHAT, _chat(model, **explode(number))


def _fixed(model: str) -> Iterator[Attack]:
    text = "a" * 6 * MIB
    schema: dict[str, Any] = {"enum": [[]] * 120_000}
    yield CHAT, _chat(model, x=0).replace(b": 0}", b": " + b"[" * 3 * MIB + b"]" * 3 * MIB + b"}")
    yield COMPLETIONS, _filled(model, "prompt", "[1]", 130_000)
    yield CHAT, _chat(model, stop=["x"] * 200_000)
    yield COMPLETIONS, json.dumps({"model": model, "prompt": text}).encode()
    yield COMPLETIONS, json.dumps({"model": model, "prompt": "\n" * 3 * MIB}).encode()
    yield EMBEDDINGS, _filled(model, "input", '"a"', 250_000)
    yield CHAT, _chat(model, logit_bias={str(i): 1 for i in range(250_000)})
    yield CHAT, json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}] * 32_000}).encode()
    yield "/detokenize", _filled(model, "tokens", "1", 990_000)
    yield CHAT, _chat(model, stop_token_ids=[1] * 990_000)
    yield CHAT, _chat(model, **{"k" * 6 * MIB: 1})
    yield RESPONSES, json.dumps({"model": model, "input": [{"role": "user", "content": "x"}] * 32_000}).encode()
    yield CHAT, _chat(model, tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}] * 2)
    yield CHAT, _chat(model, response_format=_format(schema))
    yield CHAT, _chat(model, guided_choice=["a"] * 250_000)
    yield CHAT, _chat(model, temperature=0.5).replace(b"0.5", b"0." + b"9" * 6 * MIB)


def _chat(model: str, **fields: Any) -> bytes:
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 0} | fields
    ).encode()


def _filled(model: str, field: str, item: str, times: int) -> bytes:
    return f'{{"model":"{model}","{field}":[{",".join([item] * times)}]}}'.encode()


def _format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _regex(number: int) -> dict[str, Any]:
    return {"guided_regex": rf"(.*{number}.*){{40}}(a|b|ab)*(\p{{L}}{{500}}){{3}}"}


def _schema(number: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": 10**9, "pattern": f"^(a+)+{number}$"}
    for _ in range(30):
        schema = (
            {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 10**6}]}
            if len(str(schema)) < 30_000
            else schema
        )
    return {"response_format": _format(schema)}
