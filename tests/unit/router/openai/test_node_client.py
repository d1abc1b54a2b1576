"""The endpoints as OpenAI's own client for Node sees them, over a real socket."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

REPLY = "Größe 🎉 and some more words, to be streamed."
CALL = '[{"name": "weather", "arguments": {"city": "Rome"}}]'
CLIENT = Path(__file__).with_name("openai_client.mjs")
PACKAGE = "openai@6.49.0"

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def script(request):
    """Put the script beside an installed client. Skips without Node, or if the package cannot be fetched."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("node and npm are not installed")
    folder = request.config.cache.mkdir("openai_node")
    if not (folder / "node_modules" / "openai" / "package.json").exists():
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError):
            pytest.skip(f"npm cannot install {PACKAGE}")
    shutil.copy(CLIENT, folder)
    return folder / CLIENT.name


async def test_answers_as_the_client_parses_them(script, make_app, serve, dispatch, served_model):
    said = dispatch.reply

    async def say(job, sink, handle):
        tokens = served_model.tokenizer.encode(CALL) if job.sampling.grammar else said
        await dispatch.say(job, sink, handle, tokens)

    dispatch.script = say
    async with serve(make_app(keys=["sk-right"])) as router:
        url = f"http://127.0.0.1:{router.port}/v1"
        process = await asyncio.create_subprocess_exec(
            "node", str(script), url, "sk-right", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found = json.loads(out)
    assert found["whole"] == found["streamed"] == found["response"] == found["completion"] == REPLY
    assert found["requestId"].startswith("req-")
    assert found["models"] == ["tiny", "alias"]
    assert found["usage"]["completion_tokens"] == len(said) + 1
    assert [call["function"] for call in found["calls"]] == [{"name": "weather", "arguments": '{"city": "Rome"}'}]
    assert found["events"][0] == "response.created"
    assert found["events"][-1] == "response.completed"
    invalid = "invalid_request_error"
    assert found["failures"] == {
        "value": ["BadRequestError", 400, invalid, "temperature", "invalid_value", True],
        "unknown": ["BadRequestError", 400, invalid, "foo", "unknown_parameter", True],
        "model": ["NotFoundError", 404, invalid, "model", "model_not_found", True],
        "key": ["AuthenticationError", 401, invalid, None, "invalid_api_key", True],
    }
