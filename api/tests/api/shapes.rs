//! Whole answers, key by key.

use banyan_proto::v1;
use serde_json::{Value, json};

use crate::{
    rig::{Rig, quick, rig},
    root::{end, end_with, finish, hello, logprob, placed, token, tokens},
};

fn chat() -> Value {
    json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }] })
}

/// Takes out what differs from run to run, after a look at it.
fn settled(mut answer: Value, prefix: &str) -> Value {
    let id = answer["id"].take();
    let query = answer["banyan"]["query"].take();
    assert_eq!(id.as_str().unwrap(), format!("{prefix}{}", query.as_str().unwrap()));
    assert!(id.as_str().unwrap().parse::<banyan_proto::QueryId>().is_ok());
    assert!(answer["created"].take().as_u64().unwrap() > 1_700_000_000);
    answer
}

#[tokio::test]
async fn a_chat_has_openais_shape() {
    let rig = rig(hello()).await;
    let reply = rig.post("/v1/chat/completions", &chat()).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.headers["x-banyan-node"], "leaf-1");
    assert!(reply.headers["x-request-id"].starts_with("req-"));
    assert_eq!(
        settled(reply.json(), "chatcmpl-"),
        json!({
            "id": null, "object": "chat.completion", "created": null, "model": "tiny", "system_fingerprint": "fp_1",
            "choices": [{
                "index": 0, "message": { "role": "assistant", "content": "Hello there", "refusal": null },
                "logprobs": null, "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": { "cached_tokens": 1 },
            },
            "banyan": {
                "query": null, "node": "leaf-1", "attempt": 1, "running": true,
                "trail": [{ "node": "a", "reason": "child_with_room", "ms": 1.5 }],
            },
        })
    );
}

#[tokio::test]
async fn a_completion_has_openais_shape() {
    let length = v1::FinishReason::Length.into();
    let rig = rig(vec![
        placed("leaf-1", true),
        token(0, "one"),
        end_with(v1::Finish { reason: length, text: " two".into(), ..finish() }),
    ])
    .await;
    let reply = rig.post("/v1/completions", &json!({ "model": "tiny", "prompt": "zero ", "echo": true })).await;
    let answer = settled(reply.json(), "cmpl-");
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"], json!([{ "index": 0, "text": "zero one two", "logprobs": null, "finish_reason": "length" }]));
}

#[tokio::test]
async fn the_node_reads_what_the_client_meant() {
    let rig = rig(hello()).await;
    let mut body = chat();
    body["temperature"] = json!(0);
    body["seed"] = json!(42);
    body["priority"] = json!(3);
    body["deadline_ms"] = json!(60_000);
    body["max_tokens"] = json!(10);
    rig.post("/v1/chat/completions", &body).await;
    let (header, generation) = rig.root.asked().remove(0);
    assert_eq!((header.model.as_str(), header.priority, header.id.len()), ("tiny", 3, 16));
    assert!((50_000..=60_000).contains(&header.remaining_ms), "{}", header.remaining_ms);
    assert!((12..512).contains(&header.tokens_max), "{}", header.tokens_max);
    assert!(!header.owner.is_empty());
    let message = v1::Message { role: "user".into(), content: "hi".into() };
    assert_eq!(generation.prompt, Some(v1::generation::Prompt::Chat(v1::Transcript { messages: vec![message] })));
    let sampling = generation.sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed, generation.max_tokens), (0.0, 1.0, 42, 10));
}

#[tokio::test]
async fn logprobs_come_in_both_dialects() {
    let steps = vec![
        placed("leaf-1", true),
        tokens(0, "He", vec![logprob("He", -0.25, &[("He", -0.25), ("She", -2.0)])]),
        tokens(1, "llo", vec![logprob("llo", -0.5, &[("llo", -0.5), ("y", -1.0)])]),
        end(2),
    ];
    let rig = rig(steps).await;
    let mut body = chat();
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    let answer = rig.post("/v1/chat/completions", &body).await.json();
    let top = |token: &str, logprob: f64| json!({ "token": token, "logprob": logprob, "bytes": token.as_bytes() });
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({ "refusal": null, "content": [
            { "token": "He", "logprob": -0.25, "bytes": [72, 101], "top_logprobs": [top("He", -0.25), top("She", -2.0)] },
            { "token": "llo", "logprob": -0.5, "bytes": [108, 108, 111], "top_logprobs": [top("llo", -0.5), top("y", -1.0)] },
        ]})
    );
    let answer = rig.post("/v1/completions", &json!({ "model": "tiny", "prompt": "x", "logprobs": 2 })).await.json();
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({
            "tokens": ["He", "llo"], "token_logprobs": [-0.25, -0.5], "text_offset": [0, 2],
            "top_logprobs": [{ "He": -0.25, "She": -2.0 }, { "llo": -0.5, "y": -1.0 }],
        })
    );
    let asked: Vec<_> = rig.root.asked().into_iter().map(|(_, generation)| generation.sampling.unwrap()).collect();
    assert!(asked.iter().all(|sampling| sampling.logprobs && sampling.top_logprobs == 2));
}

#[tokio::test]
async fn several_prompts_and_choices_are_queries_of_one_answer() {
    let rig = Rig::start(
        |_, generation| {
            let Some(v1::generation::Prompt::Text(prompt)) = &generation.prompt else { panic!("{generation:?}") };
            let text = format!("{prompt}/{}", generation.sampling.as_ref().unwrap().seed == 9);
            vec![placed("leaf-1", true), token(0, &text), end(1)]
        },
        quick(),
    )
    .await;
    let body = json!({ "model": "tiny", "prompt": ["a", "b"], "n": 2, "seed": 9 });
    let answer = rig.post("/v1/completions", &body).await.json();
    let texts: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a/true", "a/false", "b/true", "b/false"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 10);
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    let ids: std::collections::BTreeSet<_> = rig.root.asked().into_iter().map(|(header, _)| header.id).collect();
    assert_eq!(ids.len(), 4);
    assert!(answer["choices"].as_array().unwrap().iter().all(|choice| choice["banyan"]["node"] == "leaf-1"));
}

#[tokio::test]
async fn models_are_those_of_the_nodes() {
    let rig = rig(hello()).await;
    let gpt2 = json!({
        "id": "openai-community/gpt2", "object": "model", "created": 1_700_000_000, "owned_by": "banyan",
        "banyan": { "chat": false, "context": 512, "nodes": ["leaf-1"] },
    });
    let list = rig.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0], gpt2);
    assert_eq!(list["data"][1]["banyan"]["chat"], true);
    assert_eq!(rig.get("/v1/models/openai-community/gpt2").await.json(), gpt2);
    assert_eq!(rig.get("/v1/models/openai-community%2Fgpt2").await.json(), gpt2);
    let missing = rig.get("/v1/models/tinny").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.error()["code"], "model_not_found");
    assert!(missing.error()["message"].as_str().unwrap().contains("did you mean 'tiny'?"));
}

#[tokio::test]
async fn the_articles_page_gets_its_own_object_back() {
    let rig = rig(hello()).await;
    let answer = rig.post("/arranca/", &json!({ "text": "Oh! ", "timestamp": 12.5 })).await;
    assert_eq!(answer.json(), json!({ "text": "Oh! Hello there", "timestamp": 12.5, "request_id": 1 }));
    assert_eq!(answer.headers["x-banyan-node"], "leaf-1");
    let answer = rig.post("/arranca", &json!({ "text": "" })).await;
    assert_eq!(answer.json(), json!({ "text": "Hello there", "request_id": 2 }));
    assert_eq!(rig.root.asked()[0].0.model, "openai-community/gpt2");
    assert_eq!(rig.post("/arranca/", &json!({ "timestamp": 1 })).await.error()["param"], "text");
    assert_eq!(rig.post("/arranca/", &json!([])).await.status, 400);
}
