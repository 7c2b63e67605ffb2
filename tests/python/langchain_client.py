"""What LangChain's users do, with PyPI's langchain-openai against a running API. Usage: langchain_client.py BASE_URL"""

import asyncio
import sys

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

common = {"base_url": sys.argv[1], "api_key": "none", "model": "fake", "max_retries": 0, "timeout": 30}

# Chat: whole, streamed, in a batch, with how likely each token was.
chat = ChatOpenAI(**common)
answer = chat.invoke([("system", "be brief"), ("human", "[[count 5]]")])
assert answer.content == "1 2 3 4 5", answer
assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["output_tokens"] >= 5, answer.usage_metadata
metadata = answer.response_metadata
assert metadata["model_name"] == "fake" and metadata["finish_reason"] == "stop", metadata
assert metadata["system_fingerprint"].startswith("fake-") and metadata["id"].startswith("chatcmpl-"), metadata
chunks = list(ChatOpenAI(**common, stream_usage=True).stream("[[count 20]]"))
assert "".join(chunk.content for chunk in chunks) == " ".join(str(n) for n in range(1, 21)), chunks
assert any(chunk.usage_metadata and chunk.usage_metadata["output_tokens"] >= 20 for chunk in chunks), chunks
many = chat.batch([f"[[count {n}]]" for n in range(1, 9)])
assert [one.content for one in many] == [" ".join(str(i) for i in range(1, n + 1)) for n in range(1, 9)], many
likely = ChatOpenAI(**common, logprobs=True, max_tokens=3).invoke("hello").response_metadata["logprobs"]
assert len(likely["content"]) == 3, likely

# Completions.
llm = OpenAI(**common, max_tokens=16)
assert llm.invoke("[[count 4]]") == "1 2 3 4"
assert "".join(llm.stream("[[count 4]]")) == "1 2 3 4"
assert llm.generate(["[[count 2]]", "[[count 3]]"]).generations[1][0].text == "1 2 3"

# Embeddings. Without the check it sends texts; with it, the ids of another model's tokens.
embeddings = OpenAIEmbeddings(**{**common, "max_retries": 2}, check_embedding_ctx_length=False)
first, second = embeddings.embed_documents(["one", "two"])
assert len(first) == len(second) == 16 and first != second
assert embeddings.embed_query("one") == first


async def side_by_side():
    answers = await asyncio.gather(*(chat.ainvoke(f"[[count {n}]]") for n in range(1, 17)))
    assert [len(answer.content.split()) for answer in answers] == list(range(1, 17)), answers
    stream = chat.astream("[[count 3000]]")
    async for _ in stream:
        break
    await stream.aclose()


asyncio.run(side_by_side())

# Errors are the classes that programs catch, and the text that LangChain looks for.
try:
    chat.invoke("word " * 6000)
    raise AssertionError("a prompt beyond the context was taken")
except ContextOverflowError as error:
    assert isinstance(error, openai.BadRequestError) and error.code == "context_length_exceeded", error
try:
    ChatOpenAI(**{**common, "model": "absent"}).invoke("x")
    raise AssertionError("an absent model answered")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
try:
    for _ in chat.stream("[[fail]]"):
        pass
    raise AssertionError("a failure was taken for an answer")
except openai.APIError:
    pass
print("ok")
