"""A chat request with tools, and its answer."""

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "tools": [WEATHER, TIME]}
CITY = '{"city": "Zürich"}'
CALLS = (
    f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {CITY}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)


def prompt(dispatch, served_model):
    return served_model.tokenizer.decode(dispatch.jobs[-1].token_ids, special=True)


async def streamed(client, **fields):
    """Stream an answer; return the message that its deltas add up to, the finish reason, and the chunks."""
    message, reason, chunks = {"content": "", "reasoning_content": "", "tool_calls": []}, None, []
    async for chunk in await client.chat.completions.create(**fields, stream=True):
        chunks.append(chunk)
        delta, reason = chunk.choices[0].delta, chunk.choices[0].finish_reason or reason
        message["content"] += delta.content or ""
        message["reasoning_content"] += getattr(delta, "reasoning_content", "")
        for call in delta.tool_calls or ():
            if call.id:
                assert call.index == len(message["tool_calls"])
                assert (call.type, call.function.arguments) == ("function", "")
                message["tool_calls"].append([call.id, call.function.name, ""])
            else:
                assert call.function.name is None
                message["tool_calls"][call.index][2] += call.function.arguments
    return message, reason, chunks
