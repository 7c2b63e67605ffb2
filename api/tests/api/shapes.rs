//! Whole answers, key by key.

use banyan_proto::v1;
use serde_json::{Value, json};

use crate::{
    rig::{Rig, quick, rig},
    root::{echoing, end, end_with, finish, hello, logprob, placed, token, tokens},
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
async fn an_echo_begins_with_its_prompts_logprobs() {
    let of_prompt = vec![logprob("Once", 0.0, &[]), logprob(" upon", -0.5, &[(" upon", -0.5), (" a", -2.0)])];
    let first = echoing("Once upon", of_prompt, " a", vec![logprob(" a", -3.0, &[(" the", -0.25), (" one", -1.0)])]);
    let rig = rig(vec![placed("leaf-1", true), first, end(1)]).await;
    let body = json!({ "model": "tiny", "prompt": [5, 6], "echo": true, "logprobs": 2, "max_tokens": 1 });
    let wanted = json!({
        "tokens": ["Once", " upon", " a"], "token_logprobs": [null, -0.5, -3.0], "text_offset": [0, 4, 9],
        "top_logprobs": [null, { " upon": -0.5, " a": -2.0 }, { " the": -0.25, " one": -1.0, " a": -3.0 }],
    });
    let choice = rig.post("/v1/completions", &body).await.json()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["logprobs"]), (&json!("Once upon a"), &wanted));
    let generation = rig.root.asked().remove(0).1;
    assert_eq!((generation.tell(), generation.max_tokens), (v1::Tell::Echo, 1));

    // Streamed, the same in one event.
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = rig.post("/v1/completions", &streamed).await.events();
    let choice = serde_json::from_str::<Value>(&events[0]).unwrap()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["logprobs"]), (&json!("Once upon a"), &wanted));
}

#[tokio::test]
async fn a_prompt_that_is_only_echoed_comes_with_the_end() {
    let told = v1::Told { text: "Once".into(), logprobs: vec![logprob("Once", 0.0, &[])], embedding: vec![] };
    let rig =
        rig(vec![placed("leaf-1", true), end_with(v1::Finish { told: Some(told), completion_tokens: 0, ..finish() })]).await;
    for stream in [false, true] {
        let body = json!({ "model": "tiny", "prompt": "Once", "echo": true, "logprobs": 0, "max_tokens": 0, "stream": stream });
        let reply = rig.post("/v1/completions", &body).await;
        let answer: Value = if stream { serde_json::from_str(&reply.events()[0]).unwrap() } else { reply.json() };
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["logprobs"]["token_logprobs"]), (&json!("Once"), &json!([null])));
        assert!(rig.root.asked().pop().unwrap().1.prompt_only);
    }
}

#[tokio::test]
async fn embeddings_come_as_numbers_and_as_base64_in_the_order_of_their_texts() {
    let rig = Rig::start(
        |_, generation| {
            let Some(v1::generation::Prompt::Text(text)) = &generation.prompt else { panic!("{generation:?}") };
            assert!(generation.prompt_only && generation.tell() == v1::Tell::Embedding);
            let told = v1::Told { embedding: vec![text.parse().unwrap(), -2.5], ..Default::default() };
            vec![placed("leaf-1", true), end_with(v1::Finish { told: Some(told), completion_tokens: 0, ..finish() })]
        },
        quick(),
    )
    .await;
    let inputs: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let reply = rig.post("/v1/embeddings", &json!({ "model": "tiny", "input": inputs })).await;
    assert_eq!(reply.headers["x-banyan-node"], "leaf-1");
    let answer = reply.json();
    for (number, one) in answer["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!(*one, json!({ "object": "embedding", "index": number, "embedding": [number as f32, -2.5] }));
    }
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("tiny")));
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 500, "total_tokens": 500 }));
    let body = json!({ "model": "tiny", "input": "1", "encoding_format": "base64" });
    assert_eq!(rig.post("/v1/embeddings", &body).await.json()["data"][0]["embedding"], "AACAPwAAIMA=");
}

#[tokio::test]
async fn a_node_that_knows_no_embeddings_is_an_error() {
    let rig = rig(hello()).await;
    let reply = rig.post("/v1/embeddings", &json!({ "model": "tiny", "input": "a" })).await;
    assert_eq!(reply.status, 500);
    assert!(reply.error()["message"].as_str().unwrap().contains("one version"), "{}", reply.text());
}

#[tokio::test]
async fn what_is_documented_is_there() {
    let rig = rig(hello()).await;
    let reply = rig.get("/openapi.json").await;
    assert_eq!(reply.headers["content-type"], "application/json");
    let document = reply.json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let path = path.replace("{id}", "tiny");
            let method = method.to_uppercase();
            // It goes on for as long as somebody listens.
            if path == "/v1/tree/events" {
                continue;
            }
            let reply = crate::client::ask(rig.api.address(), &method, &path, &[], b"{}").await;
            assert_ne!(reply.status, 405, "{method} {path}");
            assert!(!reply.text().contains("there is nothing at"), "{method} {path}");
            assert!(operation["responses"].get(reply.status.to_string()).is_some(), "{method} {path}: {}", reply.status);
        }
    }
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
