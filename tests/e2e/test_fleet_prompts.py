"""Prompts scored and embedded by real fleets, split and colocated, through OpenAI's client; against transformers."""

import base64
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engine import random_checkpoint
from tests.e2e.local_fleet import LocalFleet, started

MODEL = "random-llama"
PROMPT = [(7 * i * i + 3 * i) % 94 + 3 for i in range(150)]  # several chunks; one character each
TEXT = "A baton is passed on, from hand to hand. "
CHUNK_TOKENS = "64"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint.write(tmp_path_factory.mktemp("checkpoint") / MODEL)


@pytest.fixture(
    scope="module", params=[("--prefill", "2"), ("--colocated", "--decode", "2")], ids=["split", "together"]
)
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> Iterator[LocalFleet]:
    chunks = ("--kv-memory", "16MiB", "--max-num-batched-tokens", CHUNK_TOKENS)
    fleet = started(tmp_path_factory.mktemp("fleet"), model_dir, *chunks, *request.param)
    yield fleet
    fleet.baton("down")


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Callable[[list[int]], tuple[torch.Tensor, torch.Tensor]]:
    """(log-softmax [T, V], embedding [H]) of a prompt."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    def compute(token_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            output = model(torch.tensor([token_ids]), output_hidden_states=True)
        last = output.hidden_states[-1][0, -1]
        return output.logits[0].log_softmax(-1), torch.nn.functional.normalize(last, dim=0)

    return compute


@pytest.fixture(scope="module")
def encode(model_dir: Path) -> Callable[[str], list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def own_logprobs(reference: Any, token_ids: list[int]) -> list[float]:
    rows = reference(token_ids)[0][:-1]
    return rows.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].tolist()


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_an_echoed_prompt_is_scored_as_evaluation_harnesses_ask_for_it(
    fleet: LocalFleet, reference: Any, max_tokens: int
):
    prompts = [PROMPT, PROMPT[40:57], PROMPT[:1]]
    reply = fleet.client().completions.create(
        model=MODEL,
        prompt=prompts,
        echo=True,
        logprobs=2,
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (168, 3 * max_tokens)
    for choice, prompt in zip(reply.choices, prompts, strict=True):
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
        assert len(logprobs.token_logprobs) == len(logprobs.tokens) == len(prompt) + max_tokens
        assert logprobs.token_logprobs[1 : len(prompt)] == pytest.approx(own_logprobs(reference, prompt), abs=1e-4)
        assert logprobs.text_offset is not None
        assert logprobs.text_offset[: len(prompt) + 1] == list(range(len(prompt) + bool(max_tokens)))
        assert choice.text.startswith("".join(logprobs.tokens[: len(prompt)]))
        assert all(own in top for own, top in zip(logprobs.tokens[1:], logprobs.top_logprobs[1:], strict=True))
        if max_tokens:  # what was drawn by the greedy rule is the likeliest
            assert logprobs.token_logprobs[-1] == pytest.approx(max(logprobs.top_logprobs[-1].values()), abs=1e-6)


def test_the_output_is_the_same_with_and_without_scores(fleet: LocalFleet):
    def ask(**more: Any) -> tuple[str, Any]:
        reply = fleet.client().completions.create(
            model=MODEL, prompt=TEXT, max_tokens=12, temperature=1, seed=7, **more
        )
        return reply.choices[0].text, reply.choices[0].logprobs

    plain, _ = ask()
    echoed, logprobs = ask(echo=True, logprobs=0)
    assert echoed == TEXT + plain
    assert logprobs.text_offset[-1] >= len(TEXT)


def test_an_echo_with_scores_in_a_stream(fleet: LocalFleet):
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": TEXT,
        "max_tokens": 4,
        "temperature": 0,
        "echo": True,
        "logprobs": 1,
    }
    whole = fleet.client().completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in fleet.client().completions.create(stream=True, **options) if chunk.choices]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[0].text == TEXT
    assert whole.logprobs is not None
    for name in ("tokens", "token_logprobs", "text_offset"):
        parts = [getattr(chunk.logprobs, name) for chunk in chunks if chunk.logprobs]
        assert [value for part in parts for value in part] == getattr(whole.logprobs, name)
    nothing = fleet.client().completions.create(**options | {"max_tokens": 0}, stream=True)
    assert [chunk.choices[0].text for chunk in nothing] == [TEXT, ""]


def test_prompt_logprobs_of_vllm(fleet: LocalFleet, reference: Any, encode: Any):
    token_ids = encode(TEXT)
    reply = fleet.post("/v1/completions", prompt=TEXT, prompt_logprobs=3, max_tokens=2, n=2).json()
    rows = reference(token_ids)[0]
    for choice in reply["choices"]:
        first, *others = choice["prompt_logprobs"]
        assert first is None
        assert len(others) == len(token_ids) - 1
        for position, row in enumerate(others):
            own = token_ids[position + 1]
            expected = {int(i): float(rows[position, i]) for i in [*rows[position].topk(3).indices, own]}
            assert {int(i): about["logprob"] for i, about in row.items()} == pytest.approx(expected, abs=1e-4)
            assert row[str(own)]["rank"] == int((rows[position] > rows[position, own]).sum()) + 1
            assert sorted(about["rank"] for about in row.values())[:3] == [1, 2, 3]
    chat = fleet.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": TEXT}], prompt_logprobs=0, max_tokens=1
    ).json()
    assert chat["prompt_logprobs"][0] is None
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert [len(row) for row in chat["prompt_logprobs"][1:]] == [1] * (chat["usage"]["prompt_tokens"] - 1)


def test_embeddings_through_openais_client(fleet: LocalFleet, reference: Any, encode: Any):
    inputs = [TEXT * 3, "another", TEXT]
    reply = fleet.client().embeddings.create(model=MODEL, input=inputs)  # the client asks for base64, and decodes it
    assert [item.index for item in reply.data] == [0, 1, 2]
    for item, text in zip(reply.data, inputs, strict=True):
        np.testing.assert_allclose(item.embedding, reference(encode(text))[1], atol=1e-4)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(len(encode(text)) for text in inputs)
    plain = fleet.client().embeddings.create(model=MODEL, input=PROMPT, encoding_format="float", dimensions=8)
    wanted = torch.nn.functional.normalize(reference(PROMPT)[1][:8], dim=0)
    np.testing.assert_allclose(plain.data[0].embedding, wanted, atol=1e-4)
    raw = fleet.post("/v1/embeddings", input=[PROMPT, [9]], encoding_format="base64").json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][1]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, reference([9])[1], atol=1e-4)


def test_many_inputs_beside_a_chat(fleet: LocalFleet, reference: Any):
    answers: list[str] = []

    def chat() -> None:
        reply = fleet.client().completions.create(model=MODEL, prompt=TEXT, max_tokens=40, temperature=0)
        answers.append(reply.choices[0].text)

    thread = threading.Thread(target=chat)
    thread.start()
    inputs = [[3 + i % 250, 3 + i // 250, 7] for i in range(400)]
    reply = fleet.client().embeddings.create(model=MODEL, input=inputs)
    thread.join()
    assert len(answers) == 1
    for i in (0, 399):
        np.testing.assert_allclose(reply.data[i].embedding, reference(inputs[i])[1], atol=1e-4)


def test_scores_are_cosines(fleet: LocalFleet, reference: Any, encode: Any):
    texts = [TEXT, "a b c", TEXT[::-1]]
    vectors = [reference(encode(text))[1] for text in texts]
    reply = fleet.post("/v1/score", text_1=TEXT, text_2=texts).json()
    assert [(item["index"], item["object"]) for item in reply["data"]] == [(0, "score"), (1, "score"), (2, "score")]
    assert [item["score"] for item in reply["data"]] == pytest.approx(
        [float(vectors[0] @ v) for v in vectors], abs=1e-4
    )
    pairs = fleet.post("/v1/score", text_1=texts[:2], text_2=texts[1:]).json()["data"]
    expected = [float(vectors[i] @ vectors[i + 1]) for i in range(2)]
    assert [item["score"] for item in pairs] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/v1/embeddings", {"input": [5] * 513}, "input", "context_length_exceeded"),
        ("/v1/embeddings", {"input": [[5]] * 2049}, "input", "invalid_value"),
        ("/v1/embeddings", {"input": ["a", [5]]}, "input", "invalid_value"),
        ("/v1/embeddings", {"input": "a", "dimensions": 65}, "dimensions", "invalid_value"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2", "invalid_value"),
        ("/v1/score", {"text_1": "a"}, "text_2", "missing_required_parameter"),
        ("/v1/completions", {"prompt": [5] * 513, "echo": True, "max_tokens": 0}, "prompt", "context_length_exceeded"),
        ("/v1/completions", {"prompt": [5] * 512, "echo": True, "max_tokens": 1}, "prompt", "context_length_exceeded"),
    ],
)
def test_what_cannot_be_served_is_named(fleet: LocalFleet, path: str, body: dict[str, Any], param: str, code: str):
    answer = fleet.post(path, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert answer.headers["x-request-id"]


def test_a_prompt_as_long_as_the_model_is_scored(fleet: LocalFleet):
    reply = fleet.post("/v1/completions", prompt=[5] * 512, echo=True, logprobs=0, max_tokens=0).json()
    assert len(reply["choices"][0]["logprobs"]["token_logprobs"]) == 512


def test_scoring_and_embedding_go_on_without_the_node_that_was_doing_it(fleet: LocalFleet, reference: Any):
    """One of the two nodes that compute prompts is killed under load: nothing fails, no position comes twice."""
    nodes = fleet.nodes().values()
    computing = [node for node in nodes if node.role == "prefill"] or [node for node in nodes if node.role == "decode"]
    replies: list[list[float | None]] = []

    def score() -> None:
        for i in range(6):
            prompt = [*PROMPT, 3 + i]
            reply = fleet.client().completions.create(model=MODEL, prompt=prompt, echo=True, logprobs=0, max_tokens=0)
            assert reply.choices[0].logprobs is not None
            replies.append([*(reply.choices[0].logprobs.token_logprobs or ())])
            fleet.client().embeddings.create(model=MODEL, input=[prompt, prompt[:9]])

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    os.kill(computing[0].pid or 0, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert len(replies) == 24
    expected = own_logprobs(reference, PROMPT)
    for reply in replies:
        assert reply[1 : len(PROMPT)] == pytest.approx(expected, abs=1e-4)
