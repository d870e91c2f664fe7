// What OpenAI's client for Node sees of the server at BASE_URL, as one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "none", maxRetries: 0 });
const shift = JSON.parse(process.env.TOOL);
const common = { model: "base", messages: [{ role: "user", content: "shift it" }], max_tokens: 300, seed: 1 };
const seen = {};

seen.models = (await client.models.list()).data.map((model) => model.id);
seen.whole = (await client.chat.completions.create({ ...common, max_tokens: 20, temperature: 0 })).choices[0].message.content;

seen.streamed = "";
seen.usage = null;
const stream = await client.chat.completions.create({
  ...common, max_tokens: 20, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta?.content ?? "";
  seen.usage = chunk.usage ?? seen.usage;
}

const runner = client.chat.completions.stream({
  ...common, tools: [shift], tool_choice: "required", parallel_tool_calls: false,
});
seen.call = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function;

const schema = { name: "move", schema: shift.function.parameters, strict: true };
const formed = await client.chat.completions.create({
  ...common, response_format: { type: "json_schema", json_schema: schema },
});
seen.formed = JSON.parse(formed.choices[0].message.content);

seen.dimensions = (await client.embeddings.create({ model: "encoder", input: "add" })).data[0].embedding.length;

try {
  await client.chat.completions.create({ ...common, model: "nobody" });
} catch (error) {
  seen.error = { kind: error.constructor.name, status: error.status, code: error.code, requestID: error.requestID };
}

const aborted = new AbortController();
seen.pieces = 0;
try {
  const long = await client.chat.completions.create({ ...common, max_tokens: 1500, stream: true }, { signal: aborted.signal });
  for await (const chunk of long) {
    seen.pieces += 1;
    if (seen.pieces === 3) aborted.abort();
  }
} catch (error) {
  seen.abort = error.constructor.name;
}
console.log(JSON.stringify(seen));
