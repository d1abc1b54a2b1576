import json
from array import array
from typing import Any

import pytest

from baton.errors import InvalidRequest
from router.openai import id_lists
from router.openai.completion_schema import CompletionBody, Reader, prompts_of

COMPLETION = {"model": "m", "prompt": "secret"}
ANY_VOCABULARY = Reader()


def parse(change: dict[str, Any], reader: Reader = ANY_VOCABULARY) -> CompletionBody:
    return reader.parse(json.dumps({**COMPLETION, **change}).encode())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["a"] * 2, "n": 65}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_a_bad_field_of_a_completion_is_named(change, param):
    with pytest.raises(InvalidRequest) as raised:
        prompts_of(parse(change))
    assert raised.value.param == param


def test_ids_beyond_the_vocabulary_are_refused_while_a_body_is_read():
    reader = Reader(10)
    for prompt in ([3, 10], [[3], [10]]):
        with pytest.raises(InvalidRequest) as raised:
            parse({"prompt": prompt}, reader)
        assert (raised.value.param or "").startswith("prompt[")
    for prompt in ("text", ["text"], [3, 9], [[3], [9]]):
        body = parse({"prompt": prompt}, reader)
        assert isinstance(body, CompletionBody)


SCHEMA_OF_IDS = {"name": "s", "schema": {"prompt": [1] * 5000}}


def test_long_lists_of_ids_are_read_like_short_ones():
    reader, ids = Reader(10), [i % 10 for i in range(5000)]
    for change in ({}, {"stream": True, "n": 2}):
        body = parse({"prompt": ids, **change}, reader)
        assert prompts_of(body) == [array("I", ids)]
        assert isinstance(body, CompletionBody)
        assert body.n == change.get("n")
    decoy = {"metadata": {"prompt": "x"}, "response_format": {"type": "json_schema", "json_schema": SCHEMA_OF_IDS}}
    for data in ({**decoy, **COMPLETION, "prompt": "text"}, {**decoy, **COMPLETION, "prompt": ids}):
        body = reader.parse(json.dumps(data).encode())
        (prompt,) = prompts_of(body)
        assert prompt == data["prompt"] if isinstance(prompt, str) else list(prompt) == ids
    for wrong, param in ((10, "prompt[5000]"), (-1, "prompt[5000]"), (None, "prompt[5000]"), ("a", "prompt")):
        with pytest.raises(InvalidRequest) as raised:
            prompts_of(parse({"prompt": [*ids, wrong]}, reader))
        assert raised.value.param == param
    for change in ({"n": 0}, {"stop": 1}, {"unknown": 1}):
        with pytest.raises(InvalidRequest) as raised:
            parse({"prompt": ids, **change}, reader)
        assert raised.value.param == next(iter(change))


def test_long_lists_of_lists_of_ids_are_read_like_short_ones():
    reader, ids = Reader(10), [[i % 10] * 50 for i in range(100)]
    assert prompts_of(parse({"prompt": ids}, reader)) == [array("I", prompt) for prompt in ids]
    wrong = {"n": 0}, {"n": 2}, {"prompt": [*ids, [10]]}, {"prompt": [*ids, "a"]}
    for change, param in zip(wrong, ("n", "prompt", "prompt[100][0]", "prompt"), strict=True):
        with pytest.raises(InvalidRequest) as raised:
            prompts_of(parse({"prompt": ids, **change}, reader))
        assert raised.value.param == param


def test_the_last_of_two_prompts_in_a_body_is_used():
    """As for every other field, also if one name is escaped."""
    ids = json.dumps([1] * 5000)
    for name in ("prompt", r"promp\u0074"):
        body = ANY_VOCABULARY.parse(f'{{"model":"m","prompt":{ids},"{name}":[7,8]}}'.encode())
        assert [list(prompt) for prompt in prompts_of(body)] == [[7, 8]]


@pytest.mark.parametrize("wrong", [[10], [-1], [], ["a"], [1.5], "a", 1, [[1]]])
def test_very_many_lists_with_one_invalid_are_refused_without_decoding_them(monkeypatch, wrong):
    monkeypatch.setattr(id_lists, "decode", None)
    with pytest.raises(InvalidRequest, match="Expected token ids below 10") as raised:
        parse({"prompt": [*[[1] * 1000] * 40, wrong]}, Reader(10))
    assert raised.value.param == "prompt"


def test_the_error_gives_no_position_once_ids_have_been_cut_out_of_a_body():
    data = json.dumps({"prompt": [1] * 5000, "model": "m"}).encode()[:-1]
    with pytest.raises(InvalidRequest) as raised:
        ANY_VOCABULARY.parse(data)
    assert "not valid JSON" in raised.value.message
    assert "byte" not in raised.value.message


def test_token_ids_are_packed_once():
    for prompt in ([3, 9], [[3, 9]]):
        body = parse({"prompt": prompt})
        (packed,) = prompts_of(body)
        assert packed == array("I", [3, 9])
