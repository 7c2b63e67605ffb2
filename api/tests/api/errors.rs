//! Whatever goes wrong has a status, all four keys, and says what to do next.

use std::{sync::Arc, time::Duration};

use banyan_proto::v1::{self, Failure};
use serde_json::{Value, json};

use crate::{
    client,
    rig::{Rig, quick, rig, view},
    root::{ScriptedRoot, Step, end, failed, fails, hello, placed, token},
};

fn chat() -> Value {
    json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }] })
}

#[tokio::test]
async fn every_failure_of_the_tree_has_its_status() {
    use Failure::{Cancelled, Deadline, Duplicate, Engine, Invalid, Overloaded, Poison, TooLong, UnknownModel};
    let cases = [
        (v1::Failed { retry_after_ms: 2500, ..failed(Overloaded) }, 429, "rate_limit_error", json!("rate_limit_exceeded")),
        (
            v1::Failed { models: vec!["tinny".into()], ..failed(UnknownModel) },
            404,
            "invalid_request_error",
            json!("model_not_found"),
        ),
        (v1::Failed { limit: 512, got: 700, ..failed(TooLong) }, 400, "invalid_request_error", json!("context_length_exceeded")),
        (v1::Failed { param: "stop".into(), ..failed(Invalid) }, 400, "invalid_request_error", Value::Null),
        (failed(Deadline), 504, "server_error", json!("deadline_exceeded")),
        (failed(Poison), 500, "server_error", Value::Null),
        (failed(Engine), 500, "server_error", Value::Null),
        (failed(Cancelled), 500, "server_error", Value::Null),
        (failed(Duplicate), 500, "server_error", Value::Null),
        (failed(Failure::Unspecified), 500, "server_error", Value::Null),
    ];
    let all = cases.clone();
    let rig = Rig::start(move |number, _| vec![placed("", false), fails(all[number / 2].0.clone())], quick()).await;
    for (failed, status, kind, code) in cases {
        // A stream that has not begun fails with the same status as a whole answer.
        for stream in [false, true] {
            let mut body = chat();
            body["stream"] = json!(stream);
            let reply = rig.post("/v1/chat/completions", &body).await;
            let error = reply.error();
            assert_eq!((reply.status, &error["type"], &error["code"]), (status, &json!(kind), &code), "{failed:?}");
            assert!(error["message"].as_str().unwrap().len() > 20, "{error}");
            match failed.reason() {
                Overloaded => {
                    assert_eq!(reply.headers["retry-after"], "3");
                    assert_eq!(reply.headers["retry-after-ms"], "2500");
                }
                TooLong => {
                    assert_eq!(error["param"], "messages");
                    assert!(error["message"].as_str().unwrap().contains("512"), "{error}");
                }
                Invalid => assert_eq!(error["param"], "stop"),
                UnknownModel => assert!(error["message"].as_str().unwrap().contains("'tinny'"), "{error}"),
                Poison | Deadline => assert_eq!(reply.headers["x-should-retry"], "false"),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_root_that_leaves_without_a_successor_is_an_error_in_the_end() {
    let rig = rig(vec![fails(failed(Failure::ShuttingDown))]).await;
    let reply = rig.post("/v1/chat/completions", &chat()).await;
    assert_eq!((reply.status, &reply.headers["retry-after"][..]), (503, "1"), "{}", reply.text());
    assert!(rig.root.asked().len() > 1, "whoever comes next was waited for");
}

#[tokio::test]
async fn nobody_is_told_to_wait_longer_than_clients_do() {
    let rig = rig(vec![fails(v1::Failed { retry_after_ms: 3_600_000, ..failed(Failure::Overloaded) })]).await;
    assert_eq!(rig.post("/v1/chat/completions", &chat()).await.headers["retry-after"], "60");
}

#[tokio::test]
async fn bad_requests_are_refused_before_the_root_is_asked() {
    let rig = rig(hello()).await;
    for (path, body, param) in [
        ("/v1/chat/completions", json!({ "model": "tiny" }), json!("messages")),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "a" }] }), json!("model")),
        ("/v1/chat/completions", json!({ "model": "", "messages": [] }), json!("model")),
        ("/v1/completions", json!({ "model": "tiny" }), json!("prompt")),
        ("/v1/completions", json!({ "model": "tiny", "prompt": "a", "temperature": -1 }), json!("temperature")),
        ("/v1/completions", json!([1]), Value::Null),
    ] {
        let reply = rig.post(path, &body).await;
        assert_eq!((reply.status, &reply.error()["param"]), (400, &param), "{body}");
    }
    let malformed = client::ask(rig.api.address(), "POST", "/v1/completions", &[], b"{\"model\": oops}").await;
    assert_eq!(malformed.status, 400);
    assert!(malformed.error()["message"].as_str().unwrap().contains("line 1 column 11"), "{}", malformed.text());
    assert!(rig.root.asked().is_empty());
}

#[tokio::test]
async fn wrong_paths_and_methods_say_which_are_right() {
    let rig = rig(hello()).await;
    let lost = rig.get("/v1/chat/completion").await;
    assert_eq!(lost.status, 404);
    assert!(lost.error()["message"].as_str().unwrap().contains("did you mean /v1/chat/completions?"));
    let wrong = rig.get("/v1/completions").await;
    assert_eq!((wrong.status, wrong.headers["allow"].as_str()), (405, "POST,DELETE"));
    assert!(wrong.error()["message"].as_str().unwrap().contains("use POST"));
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_as_every_bad_request_is() {
    let rig = rig(hello()).await;
    for path in ["/v1/models/%ff", "/v1/models/a/%c3%28", "/v1/models/%80%80"] {
        let reply = rig.get(path).await;
        assert_eq!(reply.status, 400, "{path}");
        assert!(reply.error()["message"].as_str().unwrap().contains("UTF-8"), "{}", reply.text());
    }
}

#[tokio::test]
async fn pages_are_read_and_not_posted_to() {
    let rig = rig(hello()).await;
    for path in ["/", "/app.js"] {
        let reply = rig.post(path, &json!({})).await;
        assert_eq!((reply.status, reply.headers["allow"].as_str()), (405, "GET,HEAD"), "{path}");
        let message = reply.error()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("use GET") && !message.contains("did you mean"), "{message}");
    }
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused() {
    let rig = Rig::start(|_, _| hello(), banyan_api::Limits { body_bytes: 1000, ..quick() }).await;
    let mut body = chat();
    body["messages"][0]["content"] = json!("x".repeat(1000));
    let reply = rig.post("/v1/chat/completions", &body).await;
    assert_eq!(reply.status, 413);
    assert!(reply.error()["message"].as_str().unwrap().contains("1000 bytes"));
    // Without an announced length it is noticed on the way.
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.to_string().len());
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"
    );
    assert_eq!(client::raw(rig.api.address(), head.as_bytes()).await.status, 413);
}

#[tokio::test]
async fn without_a_root_it_says_so_within_the_retry_time() {
    let rig = rig(hello()).await;
    rig.view.send_replace(Arc::new(view(None, &["tiny"])));
    let reply = rig.post("/v1/chat/completions", &chat()).await;
    assert_eq!(reply.status, 503);
    assert!(reply.error()["message"].as_str().unwrap().contains("banyan node run root"));
    assert_eq!(reply.headers["retry-after"], "1");
}

#[tokio::test]
async fn a_root_that_restarts_is_asked_again() {
    let mut limits = quick();
    limits.root_retry = Duration::from_secs(10);
    let rig = Rig::start(|_, _| hello(), limits).await;
    // Registered, but not there yet.
    let place = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    rig.view.send_replace(Arc::new(view(Some(&address.to_string()), &["tiny"])));
    let body = chat();
    let (reply, late) = tokio::join!(rig.post("/v1/chat/completions", &body), async {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        ScriptedRoot::on(listener, Arc::new(|_, _| hello()))
    });
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(late.asked().len(), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_before_its_first_token_is_asked_for_again() {
    let rig = Rig::start(
        |number, _| match number {
            0 => vec![placed("leaf-1", false), Step::Break],
            // It has not noticed yet.
            1 => vec![fails(failed(Failure::Duplicate))],
            2 => vec![fails(failed(Failure::NotFound))],
            _ => hello(),
        },
        quick(),
    )
    .await;
    let reply = rig.post("/v1/chat/completions", &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let ids: std::collections::BTreeSet<_> = rig.root.asked().into_iter().map(|(header, _)| header.id).collect();
    assert_eq!(ids.len(), 1, "the same query, asked again");
}

#[tokio::test]
async fn an_answer_that_breaks_later_is_asked_for_behind_what_came() {
    let rig = Rig::start(
        |number, _| match number {
            0 => vec![placed("leaf-1", true), token(0, "Hel"), Step::Break],
            1 => vec![token(1, "lo"), fails(failed(Failure::ShuttingDown))],
            _ => vec![token(0, "Hel"), token(1, "lo"), token(2, "!"), end(3)],
        },
        quick(),
    )
    .await;
    let reply = rig.post("/v1/chat/completions", &chat()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "Hello!");
}

#[tokio::test]
async fn an_answer_that_breaks_again_and_again_is_an_error() {
    let rig = rig(vec![placed("leaf-1", true), token(0, "Hel"), Step::Break]).await;
    let reply = rig.post("/v1/chat/completions", &chat()).await;
    assert_eq!(reply.status, 503);
    assert!(rig.root.asked().len() > 1);
}

#[tokio::test]
async fn no_position_is_told_twice_and_none_is_left_out() {
    let twice = rig(vec![token(0, "a"), token(0, "a"), token(1, "b"), end(2)]).await;
    let answer = twice.post("/v1/chat/completions", &chat()).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "ab");
    let gap = rig(vec![token(0, "a"), token(2, "c"), end(3)]).await;
    assert_eq!(gap.post("/v1/chat/completions", &chat()).await.status, 500);
}

#[tokio::test]
async fn a_silent_root_is_not_ready_and_a_tree_without_models_neither() {
    let rig = rig(hello()).await;
    assert_eq!(rig.get("/livez").await.json(), json!({ "status": "live" }));
    assert_eq!(rig.get("/readyz").await.json(), json!({ "status": "ready" }));
    rig.view.send_replace(Arc::new(view(Some(&rig.root.address.to_string()), &[])));
    assert_eq!(rig.get("/readyz").await.json()["why"], "no node serves a model yet");
    rig.view.send_replace(Arc::new(view(Some(&rig.root.address.to_string()), &["tiny"])));
    let Rig { api, root, .. } = rig;
    drop(root);
    let not_ready = async { while client::ask(api.address(), "GET", "/readyz", &[], b"").await.status != 503 {} };
    tokio::time::timeout(Duration::from_secs(20), not_ready).await.expect("still ready");
}
