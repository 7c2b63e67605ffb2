// What people's programs do: npm's openai client against a running API. Usage: node openai_client.mjs BASE_URL
import assert from "node:assert/strict";
import { createRequire } from "node:module";

// The package lies beside the build, not beside this file.
const { OpenAI } = createRequire(`${process.env.BANYAN_TEST_NODE}/`)("openai");
const baseURL = process.argv[2];
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 30_000 });
const counted = (n) => Array.from({ length: n }, (_, i) => i + 1).join(" ");
const user = (content) => [{ role: "user", content }];

// Models.
const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ["fake"]);
assert.equal((await client.models.retrieve("fake")).object, "model");

// Chat: whole, streamed with usage, several choices.
const chat = await client.chat.completions.create({ model: "fake", messages: user("[[count 5]]") });
assert.equal(chat.choices[0].message.content, "1 2 3 4 5");
assert.equal(chat.choices[0].finish_reason, "stop");
let text = "";
let usage;
const stream = await client.chat.completions.create({
  model: "fake", messages: user("[[count 20]]"), stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, counted(20));
assert.ok(usage.completion_tokens >= 20);
const helper = client.chat.completions.stream({ model: "fake", messages: user("[[count 7]]") });
assert.equal(await helper.finalContent(), counted(7));
const several = await client.chat.completions.create({ model: "fake", messages: user("tell"), n: 2, seed: 1, max_tokens: 6 });
assert.notEqual(several.choices[0].message.content, several.choices[1].message.content);

// Completions: whole, streamed, by token ids, echoed.
assert.equal((await client.completions.create({ model: "fake", prompt: "[[count 4]]" })).choices[0].text, "1 2 3 4");
text = "";
for await (const chunk of await client.completions.create({ model: "fake", prompt: "[[count 4]]", stream: true })) {
  text += chunk.choices[0]?.text ?? "";
}
assert.equal(text, "1 2 3 4");
const echoed = await client.completions.create({ model: "fake", prompt: [1, 32, 64], echo: true, logprobs: 1, max_tokens: 2 });
assert.ok(echoed.choices[0].text.startsWith("The banyan sees"));
assert.equal(echoed.choices[0].logprobs.tokens.length, 5);

// Embeddings: it asks for base64 by itself.
const packed = await client.embeddings.create({ model: "fake", input: ["one", "two"] });
const plain = await client.embeddings.create({ model: "fake", input: ["one", "two"], encoding_format: "float" });
assert.deepEqual(packed.data.map((one) => one.embedding.length), [16, 16]);
packed.data.forEach((one, i) => one.embedding.forEach((x, j) => assert.equal(x, Math.fround(plain.data[i].embedding[j]))));

// A batch, from its file to its answers.
const line = (n) => ({
  custom_id: `line-${n}`, method: "POST", url: "/v1/completions", body: { model: "fake", prompt: `[[count ${n}]]`, max_tokens: 16 },
});
const lines = [1, 2, 3].map((n) => JSON.stringify(line(n))).join("\n");
const file = await client.files.create({ purpose: "batch", file: new File([lines], "in.jsonl") });
let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/completions", completion_window: "24h" });
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = await client.batches.retrieve(batch.id);
}
assert.deepEqual([batch.status, batch.request_counts.completed], ["completed", 3]);
const answered = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map((one) => JSON.parse(one));
assert.deepEqual(answered.map((one) => one.response.body.choices[0].text), ["1", "1 2", "1 2 3"]);
const outputs = [];
for await (const one of client.files.list({ purpose: "batch_output" })) outputs.push(one.id);
assert.deepEqual(outputs, [batch.output_file_id]);

// Errors.
const fails = async (kind, request, check) => {
  await assert.rejects(client.completions.create({ model: "fake", prompt: "x", ...request }), (error) => {
    assert.equal(error.constructor.name, kind);
    check(error);
    return true;
  });
};
await fails("NotFoundError", { model: "absent" }, (error) => assert.equal(error.code, "model_not_found"));
await fails("BadRequestError", { temperature: -1 }, (error) => assert.equal(error.param, "temperature"));
await fails("BadRequestError", { prompt: "word ".repeat(6000) }, (error) => assert.equal(error.code, "context_length_exceeded"));
await fails("InternalServerError", { prompt: "[[fail]]" }, (error) => assert.equal(error.type, "server_error"));
await assert.rejects(async () => {
  for await (const _ of await client.completions.create({ model: "fake", prompt: "[[fail]]", stream: true }));
});

// A timeout is retried under one key, and finds the answer of the first try.
const slow = { model: "fake", prompt: "slow", max_tokens: 400, seed: 1, ignore_eos: true };
const whole = await client.completions.create(slow);
const retried = await client.completions.create(slow, { timeout: 500, maxRetries: 20, headers: { "Idempotency-Key": `node-${Date.now()}` } });
assert.equal(retried.choices[0].text, whole.choices[0].text);
await assert.rejects(client.completions.create(slow, { timeout: 200 }), OpenAI.APIConnectionTimeoutError);

// Cancelled in the middle, and before the answer; the test looks at the tree.
const long = await client.completions.create({ model: "fake", prompt: "[[count 3000]]", max_tokens: 3000, stream: true });
for await (const _ of long) break;
const abort = new AbortController();
const pending = client.completions.create({ model: "fake", prompt: "[[count 3000]]", max_tokens: 3000 }, { signal: abort.signal });
setTimeout(() => abort.abort(), 200);
await assert.rejects(pending, OpenAI.APIUserAbortError);
console.log("ok");
