"""How PyPI's openai client waits and gives up, against a tree that is soon full. Usage: openai_patience.py BASE_URL"""

import asyncio
import sys
import threading
import uuid

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=30)

# Refused requests come back when they were told, and all are answered.
refused, failures = [], []


def one(number):
    request = {"model": "fake", "prompt": f"question {number}", "max_tokens": 20, "extra_body": {"ignore_eos": True}}
    try:
        client.completions.create(**request)
    except openai.RateLimitError as error:
        assert error.code == "rate_limit_exceeded" and int(error.response.headers["retry-after"]) >= 1, error
        refused.append(number)
        try:
            client.with_options(max_retries=5).completions.create(**request)
        except openai.OpenAIError as error:
            failures.append(error)


for number in range(4):
    one(number)
threads = [threading.Thread(target=one, args=(number,)) for number in range(100, 140)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
assert len(refused) >= 10, f"only {len(refused)} of 40 were refused"

# What was not there in time is asked for again under its key, and found: 400 tokens take two seconds, a try half a one.
key = {"Idempotency-Key": str(uuid.uuid4())}
long = {"model": "fake", "prompt": "long", "max_tokens": 400, "seed": 1, "extra_body": {"ignore_eos": True}}
patient = client.with_options(timeout=0.5, max_retries=20)
text = patient.completions.create(**long, extra_headers=key).choices[0].text
assert text == client.completions.create(**long).choices[0].text
try:
    client.completions.create(**{**long, "seed": 2}, extra_headers=key)
    raise AssertionError("a key was taken for another request")
except openai.ConflictError as error:
    assert error.code == "idempotency_conflict", error

# Without patience it is the client's own error; with a deadline it is the tree's.
try:
    client.with_options(timeout=0.2).completions.create(**long)
    raise AssertionError("two seconds passed in a fifth of one")
except openai.APITimeoutError:
    pass
try:
    client.completions.create(**{**long, "extra_body": {"ignore_eos": True, "deadline_ms": 200}})
    raise AssertionError("two seconds passed in a fifth of one")
except openai.InternalServerError as error:
    assert (error.status_code, error.code) == (504, "deadline_exceeded"), error


async def cancelled():
    """A task that is cancelled in the middle of its stream, and one before its answer."""
    aclient = openai.AsyncOpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=30)

    async def read(stream):
        request = {"model": "fake", "prompt": "[[count 3000]]", "max_tokens": 3000}
        if not stream:
            return await aclient.completions.create(**request)
        async for _ in await aclient.completions.create(**request, stream=True):
            begun.set()

    for stream in (True, False):
        begun = asyncio.Event()
        task = asyncio.create_task(read(stream))
        if stream:
            await asyncio.wait_for(begun.wait(), 20)
        else:
            await asyncio.sleep(0.2)
        task.cancel()
        try:
            await task
            raise AssertionError("it was not cancelled")
        except asyncio.CancelledError:
            pass


asyncio.run(cancelled())
print("ok")
