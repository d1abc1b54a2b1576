"""Every field of every endpoint, and values that no field has, or that only some have: never a 5xx, nor a traceback."""

import asyncio
import json
import logging

import msgspec
import pytest

from router.openai.chat_schema import ChatBody
from router.openai.completion_schema import CompletionBody
from router.openai.embedding_schema import EmbeddingBody, ScoreBody
from router.openai.responses_schema import ResponsesBody
from router.openai.tokenization_schema import DetokenizeBody, TokenizeBody
from tests.unit.router.test_hostile_fuzz import ask

TEXT = {"model": "tiny", "prompt": "hi"}
ENDPOINTS = {
    "/v1/chat/completions": (ChatBody, {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (CompletionBody, TEXT),
    "/v1/responses": (ResponsesBody, {"model": "tiny", "input": "hi"}),
    "/v1/embeddings": (EmbeddingBody, {"model": "tiny", "input": "hi"}),
    "/v1/score": (ScoreBody, {"model": "tiny", "text_1": "a", "text_2": "b"}),
    "/tokenize": (TokenizeBody, TEXT),
    "/detokenize": (DetokenizeBody, {"model": "tiny", "tokens": [1, 2]}),
}
VALUES = [
    b"1e400", b"-1e400", b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616", b"-0.0", b"-0",
    b"1e-400", b"1E2", b"NaN", b'"NaN"', b"true", b'""', b'"\\u0000"', b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xff"',
    b'"\xed\xa0\x80"', b'"\xef\xbf\xbf"', b"[]", b"{}", b"[[]]", b'[""]', b"[null]", b'{"":null}', b"[1e400]",
    b'{"a":{"a":{"a":1}}}', b'"<|im_end|>"', b"1" * 400, b"1" * 5000, b"0." + b"1" * 400, b'"' + b"x" * 3000 + b'"',
    b'{"a":' * 300 + b"1" + b"}" * 300, b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b"[" + b"[]," * 5000 + b"[]]", b'"' + b"x" * 300_000 + b'"',
]  # fmt: skip


@pytest.mark.parametrize("path", ENDPOINTS)
def test_any_value_of_any_field_is_answered(make_app, caplog, path):
    caplog.set_level(logging.INFO)
    app, (kind, body) = make_app(), ENDPOINTS[path]

    async def every():
        for field in msgspec.structs.fields(kind):
            others = {name: value for name, value in body.items() if name != field.encode_name}
            for value in VALUES:
                data = json.dumps(others).encode()[:-1] + b',"%b":%b}' % (field.encode_name.encode(), value)
                answer = await ask(app, path, data, [])
                assert answer.status == 200 or 400 <= answer.status < 500, (field.name, value[:50], answer.body)
                if answer.status >= 400:
                    assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}

    asyncio.run(every())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
