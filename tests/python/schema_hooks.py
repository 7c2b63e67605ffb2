"""What schemathesis is kept from: asking for what takes long, or ends by the clock on purpose. And what no schema says well: which
fields go together, so that most of what it makes is answered and not refused."""

import schemathesis

TOKENS_MAX = 10_000_000
TOKENS = 64


def is_count(value):
    return type(value) is int and 0 <= value <= TOKENS_MAX


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    # A deadline of a millisecond passes, and 504 is what it is for. One that is none is to be refused.
    if type(body.get("deadline_ms")) is int and 1 <= body["deadline_ms"] <= 60_000:
        body["deadline_ms"] += 60_000
    # The one model that there is, most of the time.
    if isinstance(body.get("model"), str) and 0 < len(body["model"]) < 64:
        body["model"] = "fake"
    if "messages" not in body and "prompt" not in body:
        return body
    # What is no count stays as it is, to be refused.
    if is_count(body.get("max_tokens")) and is_count(body.get("max_completion_tokens")):
        del body["max_completion_tokens"]
    for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        if is_count(body.get(name)):
            body[name] = min(body[name], TOKENS)
            if body[name] == 0 and body.get("echo") is not True:
                body[name] = 1
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = TOKENS
    most = body["max_tokens"] if body.get("max_completion_tokens") is None else body["max_completion_tokens"]
    if is_count(body.get("min_tokens")) and is_count(most):
        body["min_tokens"] = min(body["min_tokens"], most)
    if isinstance(body.get("stream_options"), dict) and body.get("stream") in (None, False):
        body["stream"] = True
    if "messages" in body and is_count(body.get("top_logprobs")) and body.get("logprobs") in (None, False):
        body["logprobs"] = True
    return body


@schemathesis.hook
def map_headers(context, headers):
    # Both name an earlier request; a random one names none.
    for name in ("Idempotency-Key", "Last-Event-ID"):
        (headers or {}).pop(name, None)
    return headers
