//! More than can be served: who comes back when told is known, and nothing takes more memory than it may.

use std::{sync::Arc, time::Duration};

use banyan_api::Limits;
use banyan_proto::v1::{self, Failure};
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    rig::{Rig, quick, rig},
    root::{Step, end, failed, fails, hello, token},
};

fn ask(text: &str) -> serde_json::Value {
    json!({ "model": "tiny", "prompt": text })
}

#[tokio::test]
async fn who_comes_back_at_its_time_says_so_to_the_root() {
    let full = v1::Failed { retry_after_ms: 1, kept: true, ..failed(Failure::Overloaded) };
    let script = move |number, _: &v1::Generation| if number < 2 { vec![fails(full.clone())] } else { hello() };
    let rig = Rig::start(script, quick()).await;
    for prompt in ["first", "second"] {
        let refused = rig.post("/v1/completions", &ask(prompt)).await;
        assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (429, "1"));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    for prompt in ["another", "second", "first", "first"] {
        assert_eq!(rig.post("/v1/completions", &ask(prompt)).await.status, 200);
    }
    let returning: Vec<bool> = rig.root.asked().iter().map(|(header, _)| header.returning).collect();
    // A place is kept for one visit.
    assert_eq!(returning, [false, false, false, true, true, false]);
}

#[tokio::test]
async fn who_was_promised_nothing_comes_anew() {
    let full = v1::Failed { retry_after_ms: 1, ..failed(Failure::Overloaded) };
    let rig = rig(vec![fails(full)]).await;
    for _ in 0..2 {
        assert_eq!(rig.post("/v1/completions", &ask("a")).await.status, 429);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(rig.root.asked().iter().all(|(header, _)| !header.returning));
}

#[tokio::test]
async fn requests_take_no_more_memory_than_they_may_until_they_are_answered() {
    let go = Arc::new(Notify::new());
    let steps = vec![token(0, "a"), Step::Await(go.clone()), end(1)];
    let limits = Limits { body_bytes: 4096, bodies_bytes: 4096, ..quick() };
    let rig = Rig::start(move |_, _| steps.clone(), limits).await;
    let mut large = ask(&"x".repeat(3500));
    large["stream"] = json!(true);
    let mut first = rig.open("/v1/completions", &large).await;
    first.until("\"text\":\"a\"").await;
    let refused = rig.post("/v1/completions", &large).await;
    assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (429, "1"));
    assert_eq!(refused.error()["code"], "rate_limit_exceeded");
    go.notify_one();
    // The last chunk: the answer is handed over.
    first.until("\r\n0\r\n\r\n").await;
    go.notify_one();
    assert_eq!(rig.post("/v1/completions", &large).await.status, 200);
}
