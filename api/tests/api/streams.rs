//! Streamed answers, byte by byte.

use std::{sync::Arc, time::Duration};

use banyan_api::Limits;
use banyan_proto::v1::{self, Failure};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    rig::{Rig, quick, rig},
    root::{Step, end, end_with, failed, fails, finish, hello, logprob, placed, token, tokens},
};

fn chat(more: Value) -> Value {
    let mut body = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }], "stream": true });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn parsed(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test]
async fn a_chat_streams_byte_for_byte_as_openai_does() {
    let rig = rig(hello()).await;
    let reply = rig.post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["cache-control"], "no-cache");
    assert_eq!(reply.headers["x-accel-buffering"], "no");
    assert_eq!(reply.headers["x-banyan-node"], "leaf-1");
    assert!(reply.headers.contains_key("x-request-id"));

    let first: Value = serde_json::from_str(&reply.events()[0]).unwrap();
    let (id, created) = (first["id"].as_str().unwrap(), first["created"].as_u64().unwrap());
    let query = id.strip_prefix("chatcmpl-").unwrap();
    let head = format!(
        r#"data: {{"id":"{id}","object":"chat.completion.chunk","created":{created},"model":"tiny","system_fingerprint":"#
    );
    let origin = format!(
        r#""banyan":{{"query":"{query}","node":"leaf-1","attempt":1,"running":true,"trail":[{{"node":"a","reason":"child_with_room","ms":1.5}}]}}"#
    );
    let head = |seen: &str| format!("id: {id}:{seen}\n{head}");
    let [started, one, two, ended] = ["0", "1", "2", "2e"].map(head);
    let expected = [
        format!(
            r#"{started}null,"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}],{origin}}}"#
        ),
        format!(r#"{one}null,"choices":[{{"index":0,"delta":{{"content":"Hello"}},"logprobs":null,"finish_reason":null}}]}}"#),
        format!(r#"{two}null,"choices":[{{"index":0,"delta":{{"content":" there"}},"logprobs":null,"finish_reason":null}}]}}"#),
        format!(r#"{ended}"fp_1","choices":[{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}],{origin}}}"#),
        "data: [DONE]".to_owned(),
        String::new(),
    ];
    assert_eq!(reply.text(), expected.join("\n\n"));
}

#[tokio::test]
async fn who_asks_for_it_is_told_the_place_in_the_queue_and_nobody_else() {
    let waits = |place| Step::Say(v1::answer::Kind::Placed(v1::Placed { place, attempt: 1, ..v1::Placed::default() }));
    let script = || vec![waits(2), waits(1), placed("leaf-1", true), token(0, "Hello"), end(1)];
    let rig = rig(script()).await;
    let mut events = rig.post("/v1/chat/completions", &chat(json!({ "places": true }))).await.events();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events = parsed(&events);
    let told: Vec<_> = events.iter().filter(|event| event["choices"] == json!([])).map(|event| event["banyan"].clone()).collect();
    let places: Vec<_> = told.iter().chain([&events[0]["banyan"]]).filter_map(|origin| origin["place"].as_u64()).collect();
    assert!(places.contains(&1) && places.contains(&2), "{events:?}");
    assert!(told.iter().any(|origin| origin["node"] == "leaf-1" && origin.get("place").is_none()), "{events:?}");
    let plain = rig.post("/v1/chat/completions", &chat(json!({}))).await.events();
    assert!(plain.iter().all(|event| !event.contains("\"choices\":[]") && !event.contains("place")), "{plain:?}");
    // Who was let in to wait hears of a later failure in the stream.
    let rig = self::rig(vec![waits(1), fails(failed(Failure::Deadline))]).await;
    let failed = rig.post("/v1/chat/completions", &chat(json!({ "places": true }))).await;
    assert_eq!(failed.status, 200);
    assert!(failed.text().contains("\"error\""), "{}", failed.text());
}

#[tokio::test]
async fn a_completion_streams_text_completions() {
    let rig = rig(vec![placed("leaf-1", true), token(0, "a"), end_with(v1::Finish { text: "b".into(), ..finish() })]).await;
    let body = json!({ "model": "tiny", "prompt": "0", "stream": true, "echo": true });
    let mut events = rig.post("/v1/completions", &body).await.events();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events = parsed(&events);
    assert!(events.iter().all(|event| event["object"] == "text_completion" && event["id"] == events[0]["id"]));
    let texts: Vec<_> = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["0", "a", "b", ""]);
    assert_eq!(events[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[2]["choices"][0]["finish_reason"], Value::Null);
}

#[tokio::test]
async fn usage_comes_last_and_only_when_asked_for() {
    let rig = rig(hello()).await;
    let asked = rig.post("/v1/chat/completions", &chat(json!({ "stream_options": { "include_usage": true } }))).await;
    let mut events = asked.events();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events = parsed(&events);
    let (last, others) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["object"], "chat.completion.chunk");
    assert_eq!(last["usage"]["total_tokens"], 7);
    assert!(others.iter().all(|event| event.get("usage") == Some(&Value::Null)));
    assert_eq!(others.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn tokens_come_one_after_the_other() {
    let go = Arc::new(Notify::new());
    let wait = Step::Await(go.clone());
    let rig = rig(vec![placed("leaf-1", true), token(0, "one"), wait.clone(), token(1, "two"), wait, end(2)]).await;
    let mut connection = rig.open("/v1/chat/completions", &chat(json!({}))).await;
    let seen = connection.until("\"one\"").await;
    assert!(!seen.contains("two"));
    go.notify_one();
    connection.until("\"two\"").await;
    go.notify_one();
    connection.until("data: [DONE]\n\n").await;
}

#[tokio::test]
async fn choices_stream_side_by_side() {
    let rig =
        Rig::start(|number, _| vec![placed(&format!("leaf-{number}"), true), token(0, &number.to_string()), end(1)], quick())
            .await;
    let mut events =
        rig.post("/v1/chat/completions", &chat(json!({ "n": 3, "stream_options": { "include_usage": true } }))).await.events();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events = parsed(&events);
    for index in 0..3 {
        let own: Vec<_> = events.iter().filter(|event| event["choices"][0]["index"] == index).collect();
        assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(own[1]["choices"][0]["delta"]["content"].as_str().unwrap().len(), 1);
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "stop");
        assert!(own.last().unwrap()["banyan"]["node"].as_str().unwrap().starts_with("leaf-"));
    }
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn a_query_that_moves_on_says_where() {
    let rig = rig(vec![placed("leaf-1", true), token(0, "a"), placed("leaf-2", true), token(1, "b"), end(2)]).await;
    let mut events = rig.post("/v1/chat/completions", &chat(json!({}))).await.events();
    events.pop();
    let nodes: Vec<_> = parsed(&events).iter().map(|event| event["banyan"]["node"].clone()).collect();
    assert_eq!(nodes, [json!("leaf-1"), Value::Null, json!("leaf-2"), json!("leaf-2")]);
}

#[tokio::test]
async fn a_failure_in_the_stream_ends_it_without_done() {
    let rig = rig(vec![placed("leaf-1", true), token(0, "a"), fails(failed(Failure::Engine))]).await;
    let reply = rig.post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!(reply.status, 200);
    let events = parsed(&reply.events());
    let error = &events.last().unwrap()["error"];
    assert_eq!((&error["type"], &error["param"], &error["code"]), (&json!("server_error"), &Value::Null, &Value::Null));
    assert!(!reply.text().contains("[DONE]"));
}

#[tokio::test]
async fn logprobs_stream_with_their_tokens_and_empty_chunks_do_not() {
    let first = tokens(0, "", vec![logprob("\u{e9}", -1.0, &[])]);
    let rig = rig(vec![first, token(1, ""), tokens(2, "\u{e9}x", vec![logprob("x", -2.0, &[])]), end(3)]).await;
    let body = json!({ "model": "tiny", "prompt": "0", "stream": true, "logprobs": 0 });
    let mut events = rig.post("/v1/completions", &body).await.events();
    events.pop();
    let events = parsed(&events);
    let logprobs: Vec<_> = events.iter().map(|event| event["choices"][0]["logprobs"]["text_offset"].clone()).collect();
    assert_eq!(logprobs, [json!([0]), json!([1]), Value::Null]);
}

#[tokio::test]
async fn a_stream_that_waits_long_begins_and_shows_signs_of_life() {
    let limits = Limits { first_token: Duration::from_millis(50), heartbeat: Duration::from_millis(50), ..quick() };
    let go = Arc::new(Notify::new());
    let wait = Step::Await(go.clone());
    let rig = Rig::start(move |_, _| vec![placed("leaf-1", false), wait.clone(), fails(failed(Failure::Engine))], limits).await;
    let mut connection = rig.open("/v1/chat/completions", &chat(json!({}))).await;
    let head = connection.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    connection.until("\"role\":\"assistant\"").await;
    connection.until(": queued at leaf-1\n\n").await;
    connection.until(": queued at leaf-1\n\n").await;
    go.notify_one();
    connection.until("\"error\"").await;
}

#[tokio::test]
async fn a_client_that_goes_away_cancels() {
    for (path, stream) in [("/v1/chat/completions", true), ("/v1/chat/completions", false)] {
        let mut rig = rig(vec![placed("leaf-1", true), token(0, "a"), Step::Hang]).await;
        let mut connection = rig.open(path, &chat(json!({ "stream": stream }))).await;
        if stream {
            connection.until("\"a\"").await;
        } else {
            while rig.root.asked().is_empty() {
                tokio::task::yield_now().await;
            }
        }
        drop(connection);
        rig.root.sees_a_query_dropped().await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_first_token_cancels() {
    let mut rig = rig(vec![placed("", false), Step::Hang]).await;
    let connection = rig.open("/v1/chat/completions", &chat(json!({}))).await;
    while rig.root.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(connection);
    rig.root.sees_a_query_dropped().await;
}
