"""OpenAI's own client, and a model that outputs what a test wants."""

import openai
import pytest


@pytest.fixture
async def client(router):
    url = f"http://127.0.0.1:{router.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def say(dispatch, served_model):
    def say(text):
        dispatch.facts.max_model_len = 4096
        dispatch.reply = served_model.tokenizer.encode(text)

    return say
