"""Log-probabilities as OpenAI's own client sees them."""

import pytest

from router.job import PromptLogprobs, PromptResult
from router.openai.logprobs_format import completion_logprobs
from router.openai.token_entry import TokenEntry

pytestmark = pytest.mark.anyio

REPLY = "Größe 🎉 and some more words, to be streamed."


HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_logprobs(client, dispatch, stream):
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=2, stream=stream
    )
    if stream:
        content = [e async for c in answer for e in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    else:
        content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == REPLY
    assert len(content) == len(dispatch.reply)
    assert content[0].logprob == -0.25
    assert [top.logprob for top in content[0].top_logprobs] == [-0.25, -9999.0]


async def test_completion_logprobs(client, dispatch):
    answer = await client.completions.create(model="tiny", prompt="a", logprobs=1, max_tokens=100)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == answer.usage.completion_tokens
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert (logprobs.tokens.pop(), logprobs.text_offset.pop()) == ("<|im_end|>", len(REPLY))
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or REPLY[offset:].startswith(token)
    assert b"".join(map(bytes_of, logprobs.tokens)).decode() == REPLY
    assert all(-0.25 in top.values() for top in logprobs.top_logprobs)


def bytes_of(token):
    return bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:") else token.encode()


def test_parts_of_characters_are_told_apart():
    top = [(b"\xf0", -0.5), (b"\xe2\x80", -1.0), (b"a", -2.0)]
    columns = completion_logprobs([TokenEntry(token=b"\xf0\x9f", logprob=-3.0, top=top, offset=0)])
    assert columns["tokens"] == [r"bytes:\xf0\x9f"]
    listed = {r"bytes:\xf0": -0.5, r"bytes:\xe2\x80": -1.0, "a": -2.0, r"bytes:\xf0\x9f": -3.0}
    assert columns["top_logprobs"] == [listed]


async def test_offsets_behind_an_incomplete_character(client, dispatch, served_model):
    encode = served_model.tokenizer.encode
    dispatch.reply = [*encode("Hi"), *encode("🎈")[:-1], *encode("you"), *encode("🎈")[:1]]
    answer = await client.completions.create(model="tiny", prompt="a", logprobs=0, max_tokens=100)
    choice = answer.choices[0]
    assert choice.text == "Hi\ufffdyou\ufffd"
    whole = [
        (t, o)
        for t, o in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True)
        if not t.startswith("bytes:")
    ]
    assert all(choice.text[offset:].startswith(token) for token, offset in whole[:-1])
    assert whole[-1] == ("<|im_end|>", len(choice.text))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("has_text", [True, False])
@pytest.mark.parametrize("reply", [[], [70]])
async def test_a_scored_prompt_is_followed_by_one_token_whatever_it_is(client, dispatch, reply, has_text, stream):
    """Evaluation harnesses take the last row for the output, and all before it for the prompt."""
    dispatch.reply = reply
    say = dispatch.say

    async def score(job, sink, handle):
        sink.on_prompt(PromptResult([PromptLogprobs(position=1, logprobs=[-1.0, -2.0], ranks=[1, 1])]))
        await say(job, sink, handle, reply)

    dispatch.script = score
    prompt = [60, 61, 62] if has_text else [dispatch.eos] * 3
    fields = {"model": "tiny", "prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 1, "stream": stream}
    answer = await client.completions.create(**fields)
    choices = [chunk.choices[0] async for chunk in answer] if stream else answer.choices
    rows = [row for choice in choices if choice.logprobs for row in choice.logprobs.token_logprobs]
    assert rows == [None, -1.0, -2.0, -0.25]


async def test_logprobs_end_where_a_stop_string_begins(client):
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, stop=[" more w"])
    tokens = b"".join(bytes(entry.bytes) for entry in answer.choices[0].logprobs.content).decode()
    assert tokens == answer.choices[0].message.content == "Größe 🎉 and some"
