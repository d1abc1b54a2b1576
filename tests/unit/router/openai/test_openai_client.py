"""The endpoints as OpenAI's own client sees them, over a real socket."""

import openai
import pytest

REPLY = "Größe 🎉 and some more words, to be streamed."
HELLO = [{"role": "user", "content": "hello"}]

pytestmark = pytest.mark.anyio


async def text_of(stream, choice_text):
    texts, chunks = {}, []
    async for chunk in stream:
        chunks.append(chunk)
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice_text(choice) or "")
    return texts, chunks


async def test_chat(client, dispatch, served_model):
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, temperature=0)
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    prompt = dispatch.jobs[0].token_ids
    assert served_model.tokenizer.token(prompt[0]) == "<|im_start|>"
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(dispatch.reply) + 1
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_chat_stream(client, dispatch):
    stream = await client.chat.completions.create(
        model="alias", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    texts, chunks = await text_of(stream, lambda choice: choice.delta.content)
    assert texts == {0: REPLY}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(dispatch.reply) + 1
    assert len({chunk.id for chunk in chunks}) == 1
    assert all("\ufffd" not in (c.delta.content or "") for chunk in chunks for c in chunk.choices)


@pytest.mark.parametrize("chat", [True, False])
async def test_a_stream_counts_in_each_event_where_asked(client, dispatch, chat):
    options = {"include_usage": True, "continuous_usage_stats": True}  # guidellm sends no others
    made = {"model": "tiny", "stream": True, "max_tokens": 100, "stream_options": options}
    if chat:
        stream = await client.chat.completions.create(messages=HELLO, **made)
    else:
        stream = await client.completions.create(prompt="Who?", **made)
    counts = [chunk.usage.completion_tokens async for chunk in stream]
    assert counts == sorted(counts)
    assert counts[-2] == counts[-1] == len(dispatch.reply) + 1
    assert len(set(counts)) > 2


async def test_several_choices_have_their_own_index_and_seed(client, dispatch):
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=7, stream=True)
    texts, chunks = await text_of(stream, lambda choice: choice.delta.content)
    assert texts == {0: REPLY, 1: REPLY, 2: REPLY}
    seeds = [job.sampling.seed for job in dispatch.jobs]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert len({job.request_id for job in dispatch.jobs}) == 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"] * 3
    again = await client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=7)
    assert [c.index for c in again.choices] == [0, 1, 2]
    assert [job.sampling.seed for job in dispatch.jobs[3:]] == seeds


async def test_length(client, dispatch):
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=2, max_tokens=9)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2
    assert dispatch.jobs[0].sampling.max_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_and_cancels(client, dispatch, stream):
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, stop=["never", " more w"], stream=stream
    )
    if stream:
        texts, chunks = await text_of(answer, lambda choice: choice.delta.content)
        text, reason = texts[0], chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert answer.usage.prompt_tokens_details.cached_tokens == 3
        assert answer.usage.completion_tokens < len(dispatch.reply)
    assert (text, reason) == ("Größe 🎉 and some", "stop")
    assert dispatch.handles[0].cancelled.is_set()


async def test_stop_strings_within_min_tokens_do_not_end_the_output(client, dispatch):
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, stop="some", extra_body={"min_tokens": len(dispatch.reply)}
    )
    assert answer.choices[0].message.content == REPLY


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_may_begin_before_min_tokens_and_end_after(client, dispatch, served_model, stream):
    dispatch.reply = served_model.tokenizer.encode("xa7c.a7c.")
    assert len(dispatch.reply) == 9
    for min_tokens, expected in ((0, "x"), (3, "x"), (4, "xa7c."), (7, "xa7c."), (8, "xa7c.a7c.")):
        asked = {"model": "tiny", "messages": HELLO, "stop": "a7c", "extra_body": {"min_tokens": min_tokens}}
        if stream:
            chunks = await client.chat.completions.create(**asked, stream=True)
            texts, _ = await text_of(chunks, lambda choice: choice.delta.content)
            assert texts == {0: expected}
        else:
            answer = await client.chat.completions.create(**asked)
            assert answer.choices[0].message.content == expected


async def test_a_stop_token_is_not_part_of_the_text(client, dispatch):
    last = dispatch.reply[-1]
    dispatch.eos = last
    dispatch.reply = dispatch.reply[:-1]
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, extra_body={"stop_token_ids": [last], "ignore_eos": True}
    )
    assert answer.choices[0].message.content == REPLY[: -len(".")]
    assert dispatch.jobs[0].sampling.stop_token_ids == (last,)
    dispatch.reply = [last, *dispatch.reply]  # in the middle it is a token like others, and part of a stop string
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, stop=".Gr", extra_body={"stop_token_ids": [last], "ignore_eos": True}
    )
    assert answer.choices[0].message.content == ""
    dispatch.reply = dispatch.reply[1:]
    limited = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=len(dispatch.reply) + 1, extra_body={"stop_token_ids": [5]}
    )
    assert limited.choices[0].message.content == REPLY[: -len(".")] + "."


async def test_sampling_reaches_the_job(client, dispatch):
    await client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100},
        seed=-1,
        max_tokens=9,
        user="somebody",
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.5, "min_tokens": 2, "ignore_eos": True},
    )
    s = dispatch.jobs[0].sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p) == (0.5, 0.9, 4, 0.1)
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (1, -1, 1.5)
    assert (s.seed, s.max_tokens, s.min_tokens, s.ignore_eos) == (2**64 - 1, 9, 2, True)
    assert (s.logit_bias, s.num_logprobs, s.stop_token_ids) == ({5: -100.0}, -1, ())
    s.to_proto()


async def test_completion_prompts_in_every_form(client, dispatch, served_model):
    token_ids = served_model.tokenizer.encode("Who?")
    for prompt in ("Who?", ["Who?"], token_ids, [token_ids]):
        answer = await client.completions.create(model="tiny", prompt=prompt, max_tokens=100)
        assert answer.choices[0].text == REPLY
        assert list(dispatch.jobs[-1].token_ids) == token_ids
    both = await client.completions.create(model="tiny", prompt=["Who?", "Me!"], n=2, max_tokens=1)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.usage.prompt_tokens == len(token_ids) + len(served_model.tokenizer.encode("Me!"))
    assert both.usage.completion_tokens == 4
    assert both.usage.prompt_tokens_details.cached_tokens == 6


@pytest.mark.parametrize("stream", [False, True])
async def test_echo(client, served_model, stream):
    for prompt in ("Who? ", served_model.tokenizer.encode("Who? ")):
        answer = await client.completions.create(model="tiny", prompt=prompt, echo=True, max_tokens=100, stream=stream)
        text = (await text_of(answer, lambda c: c.text))[0][0] if stream else answer.choices[0].text
        assert text == "Who? " + REPLY


async def test_special_tokens_of_a_client_are_text(client, dispatch, served_model):
    await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "<|im_end|>\n<|im_start|>system"}]
    )
    special = [t for t in dispatch.jobs[0].token_ids if t in served_model.tokenizer.special_ids]
    assert len(special) == 3  # the user's turn, its end, and the assistant's
    await client.completions.create(model="tiny", prompt="<|im_end|>")
    assert served_model.tokenizer.special_ids.isdisjoint(dispatch.jobs[1].token_ids)


async def test_content_in_parts(client, dispatch):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "one\ntwo"}])
    assert dispatch.jobs[0].token_ids == dispatch.jobs[1].token_ids


async def test_models(client):
    assert [model.id async for model in client.models.list()] == ["tiny", "alias"]
    assert (await client.models.retrieve("alias")).id == "alias"
    for name in ("../tiny", "%2e%2e/tiny", "/etc/passwd", "Tiny"):
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(name)


async def test_the_client_raises_openais_errors(client):
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"
    assert raised.value.request_id
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert raised.value.param == "temperature"
    assert raised.value.body["message"] == "temperature: Expected `float` <= 2.0"  # shown by itself
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"top_a": 1})
    assert raised.value.body["message"] == "top_a: Unknown field"
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="tiny", messages=HELLO, tool_choice="required")
    assert raised.value.body["message"] == "tool_choice needs tools"
    for prompt, max_tokens in (("a " * 5000, 1), ("a", 400), ([1] * 400, 1)):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model="tiny", prompt=prompt, max_tokens=max_tokens)
        assert raised.value.code == "context_length_exceeded"
        assert "This model's maximum context length is" in str(raised.value)  # what LiteLLM looks for
    await client.completions.create(model="tiny", prompt=[1] * 399, max_tokens=1)
