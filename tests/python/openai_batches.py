"""OpenAI's client with keys, limits, files and batches. Arguments: the API's address, and the secret of a key with --rpm 6."""

import json
import sys
import time

import openai

base, key = sys.argv[1:]
client = openai.OpenAI(base_url=base, api_key=key, max_retries=0)


def line(name, **body):
    body = {"model": "fake", "messages": [{"role": "user", "content": "[[count 3]]"}], **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


# Of these two lines the good one counts towards the six requests a minute of the key.
content = "\n".join([line("good"), line("bad", temperature=9)])
file = client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
assert (file.filename, file.purpose, file.bytes) == ("in.jsonl", "batch", len(content)), file
assert client.files.retrieve(file.id).id == file.id
assert client.files.content(file.id).text == content
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"job": "a"}
)
while batch.status in ("validating", "in_progress", "finalizing"):
    time.sleep(0.05)
    batch = client.batches.retrieve(batch.id)
assert batch.status == "completed", batch
assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (2, 1, 1), batch
assert batch.metadata == {"job": "a"}, batch
good = json.loads(client.files.content(batch.output_file_id).text)
assert good["custom_id"] == "good" and good["response"]["status_code"] == 200, good
assert good["response"]["body"]["choices"][0]["message"]["content"] == "1 2 3", good
bad = json.loads(client.files.content(batch.error_file_id).text)
assert bad["custom_id"] == "bad" and bad["response"]["body"]["error"]["param"] == "temperature", bad
assert client.batches.list(limit=1).data[0].id == batch.id
assert client.files.delete(file.id).deleted
assert file.id not in [one.id for one in client.files.list()]
try:
    client.batches.retrieve("batch_none")
    raise AssertionError("there is no such batch")
except openai.NotFoundError:
    pass

# Keys.
try:
    openai.OpenAI(base_url=base, api_key="sk-wrong").models.list()
    raise AssertionError("nobody has that key")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error

# Limits: what the headers say comes true.
ask = {"model": "fake", "prompt": "[[count 1]]", "max_tokens": 4}
answer = client.completions.with_raw_response.create(**ask)
left = int(answer.headers["x-ratelimit-remaining-requests"])
assert answer.headers["x-ratelimit-limit-requests"] == "6" and left <= 5, answer.headers
for _ in range(left):
    client.completions.create(**ask)
try:
    client.completions.create(**ask)
    raise AssertionError("the minute's requests are used up")
except openai.RateLimitError as error:
    assert error.code == "rate_limit_exceeded", error
    assert 0 < int(error.response.headers["retry-after"]) <= 10, error.response.headers
print("ok")
