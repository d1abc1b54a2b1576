// What OpenAI's own client for Node makes of the router at process.argv[2]: one JSON object on stdout.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3], maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const functions = [{ type: "function", function: { name: "weather", parameters: { type: "object" } } }];
const found = {};

async function failure(call) {
  try {
    await call();
  } catch (error) {
    return [error.constructor.name, error.status, error.type, error.param, error.code, Boolean(error.requestID)];
  }
}

const whole = await client.chat.completions.create({ model: "tiny", messages }).withResponse();
found.whole = whole.data.choices[0].message.content;
found.requestId = whole.data._request_id;
found.models = (await client.models.list()).data.map((model) => model.id);

const pieces = [];
for await (const chunk of await client.chat.completions.create({
  model: "tiny", messages, stream: true, stream_options: { include_usage: true },
})) pieces.push(chunk);
found.streamed = pieces.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
found.usage = pieces.at(-1).usage;

const calling = client.chat.completions.stream({ model: "tiny", messages, tools: functions, tool_choice: "required" });
found.calls = (await calling.finalMessage()).tool_calls;

const responding = client.responses.stream({ model: "tiny", input: "hello" });
found.events = [];
responding.on("event", (event) => found.events.push(event.type));
found.response = (await responding.finalResponse()).output_text;

found.completion = (await client.completions.create({ model: "tiny", prompt: "hello", max_tokens: 100 })).choices[0].text;
found.failures = {
  value: await failure(() => client.chat.completions.create({ model: "tiny", messages, temperature: 3 })),
  unknown: await failure(() => client.chat.completions.create({ model: "tiny", messages, foo: 1 })),
  model: await failure(() => client.chat.completions.create({ model: "other", messages })),
  key: await failure(() => client.withOptions({ apiKey: "wrong" }).models.list()),
};
console.log(JSON.stringify(found));
