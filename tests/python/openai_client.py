"""What people's programs do: PyPI's openai client against a running API. Usage: openai_client.py BASE_URL"""

import sys
import threading
import time

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=30)


def raises(kind, **request):
    """Expects the client to raise exactly this kind of error, and returns it."""
    try:
        client.completions.create(**request)
    except kind as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}"
        return error
    raise AssertionError(f"{request} did not raise {kind.__name__}")


# Models.
models = [model.id for model in client.models.list()]
assert models == ["fake"], models
assert client.models.retrieve("fake").object == "model"
try:
    client.models.retrieve("absent")
    raise AssertionError("an absent model was found")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error

# Chat, whole.
chat = client.chat.completions.create(
    model="fake", messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": "[[count 5]]"}]
)
assert chat.id.startswith("chatcmpl-") and chat.object == "chat.completion", chat
assert chat.choices[0].message.role == "assistant" and chat.choices[0].message.content == "1 2 3 4 5", chat
assert chat.choices[0].finish_reason == "stop", chat
assert chat.usage.completion_tokens >= 5 and chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens

# Chat, streamed, with usage.
pieces, usage, began, times = [], None, time.monotonic(), []
for chunk in client.chat.completions.create(
    model="fake",
    messages=[{"role": "user", "content": [{"type": "text", "text": "[[count 20]]"}]}],
    stream=True,
    stream_options={"include_usage": True},
):
    assert chunk.object == "chat.completion.chunk", chunk
    if chunk.usage:
        usage = chunk.usage
    for choice in chunk.choices:
        if choice.delta.content:
            pieces.append(choice.delta.content)
            times.append(time.monotonic())
assert "".join(pieces) == " ".join(str(n) for n in range(1, 21)), pieces
assert len(pieces) >= 10 and times[-1] - times[0] > 0.03, "the pieces came all at once"
assert usage and usage.completion_tokens >= 20, usage

# Completions: whole, streamed, several prompts, stop strings, a length.
text = client.completions.create(model="fake", prompt="[[count 4]]").choices[0].text
assert text == "1 2 3 4", text
text = "".join(
    chunk.choices[0].text for chunk in client.completions.create(model="fake", prompt="[[count 4]]", stream=True) if chunk.choices
)
assert text == "1 2 3 4", text
both = client.completions.create(model="fake", prompt=["[[count 2]]", "[[count 3]]"])
assert [choice.text for choice in sorted(both.choices, key=lambda choice: choice.index)] == ["1 2", "1 2 3"], both
stopped = client.completions.create(model="fake", prompt="[[count 9]]", stop=[" 4"]).choices[0]
assert (stopped.text, stopped.finish_reason) == ("1 2 3", "stop"), stopped
short = client.completions.create(model="fake", prompt="[[count 9]]", max_tokens=2).choices[0]
assert (short.text, short.finish_reason) == ("1 2", "length"), short
same = {client.completions.create(model="fake", prompt="seeded", max_tokens=12, seed=3).choices[0].text for _ in range(3)}
assert len(same) == 1, same

# Several choices, each with a text of its own, and how likely each token was, in both dialects.
several = client.chat.completions.create(
    model="fake", messages=[{"role": "user", "content": "tell me"}], n=3, seed=1, logprobs=True, max_tokens=4
)
assert [choice.index for choice in several.choices] == [0, 1, 2], several
assert len({choice.message.content for choice in several.choices}) == 3, several
assert all(len(choice.logprobs.content) == 4 for choice in several.choices), several
echoed = client.completions.create(model="fake", prompt=[1, 32, 64], echo=True, logprobs=0, max_tokens=1).choices[0]
assert echoed.text.startswith("The banyan sees"), echoed
assert echoed.logprobs.token_logprobs[0] is None and len(echoed.logprobs.tokens) == 4, echoed
read = client.completions.create(model="fake", prompt="one two", echo=True, logprobs=1, max_tokens=0)
assert (read.choices[0].text, read.usage.completion_tokens) == ("one two", 0), read

# Embeddings: the client asks for base64 and shows numbers; written as numbers they are the same.
texts = [f"text {number}" for number in range(100)]
packed = client.embeddings.create(model="fake", input=texts)
plain = client.embeddings.create(model="fake", input=texts, encoding_format="float")
assert [one.index for one in packed.data] == list(range(100)) and packed.usage.prompt_tokens == 200, packed.usage
for one, other in zip(packed.data, plain.data):
    assert all(abs(a - b) < 1e-7 for a, b in zip(one.embedding, other.embedding, strict=True)), (one, other)
assert len({tuple(one.embedding) for one in packed.data}) > 80, "each text lies elsewhere, but for words that the fake takes for one"
assert client.embeddings.create(model="fake", input=[1, 2, 3]).data[0].embedding != packed.data[0].embedding

# Many at once, each with its own answer.
failures = []


def one(number):
    answer = client.completions.create(model="fake", prompt=f"[[count {number}]]", max_tokens=64).choices[0].text
    if answer != " ".join(str(n) for n in range(1, number + 1)):
        failures.append((number, answer))


threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 33)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures

# Errors are the classes that programs catch.
error = raises(openai.NotFoundError, model="absent", prompt="x")
assert error.code == "model_not_found", error
error = raises(openai.BadRequestError, model="fake", prompt="x", temperature=-1)
assert error.param == "temperature", error
error = raises(openai.BadRequestError, model="fake", prompt="word " * 6000)
assert error.code == "context_length_exceeded", error
raises(openai.InternalServerError, model="fake", prompt="[[fail]]")

# A client that stops reading in the middle leaves nothing behind; the test looks at the tree.
stream = client.completions.create(model="fake", prompt="[[count 2000]]", max_tokens=2000, stream=True)
next(iter(stream))
stream.close()
print("ok")
