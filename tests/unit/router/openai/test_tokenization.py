import pytest

pytestmark = pytest.mark.anyio


async def test_a_prompt_and_back(router, served_model):
    answer = await router.client.post("/tokenize", json={"model": "tiny", "prompt": "Größe", "return_token_strs": True})
    body = answer.json()
    assert answer.status_code == 200
    assert body["tokens"] == served_model.tokenizer.encode("Größe")
    assert (body["count"], body["max_model_len"]) == (len(body["tokens"]), 400)
    assert len(body["token_strs"]) == body["count"]
    back = await router.client.post("/detokenize", json={"tokens": body["tokens"]})
    assert back.json() == {"prompt": "Größe"}


async def test_messages_have_the_tokens_of_a_chat(router, served_model, dispatch):
    messages = [{"role": "user", "content": "hello"}]
    answer = await router.client.post("/tokenize", json={"messages": messages})
    await router.client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert answer.json()["tokens"] == dispatch.jobs[0].token_ids
    assert answer.json()["token_strs"] is None
    back = await router.client.post("/detokenize", json={"tokens": answer.json()["tokens"]})
    assert back.json()["prompt"].startswith("<|im_start|>user\nhello<|im_end|>")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "x"}]}, 400, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": "a " * 10_000}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": False}, 400, "add_generation_prompt"),
        ("/detokenize", {"tokens": [1024]}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
async def test_errors_name_the_field(router, path, body, status, param):
    answer = await router.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_without_framing_there_are_no_added_tokens(model_dirs):
    from baton.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model_dirs["llama3"])
    assert tokenizer.encode("a")[1:] == tokenizer.encode("a", framed=False)
