//! More than a tree can serve, over HTTP and with a real process.

use std::time::Duration;

use banyan_tests::Banyan;
use futures::future::join_all;
use hyper::StatusCode;
use serde_json::json;

#[tokio::test]
async fn who_is_refused_and_comes_back_as_told_is_answered() {
    // Two at once, a tenth of a second each; two wait at the node and eight at the root.
    let up = Banyan::up("--nodes 1 --batch 2 --lane-entries 17 --token-time 5ms").await;
    let api = up.api().await;
    let ask = |number: u32| async move {
        let body = json!({ "model": "fake", "prompt": format!("question {number}"), "max_tokens": 20, "ignore_eos": true });
        api.post("/v1/completions", &body).await
    };
    // The tree learns how long answers take.
    for number in 0..4 {
        assert_eq!(ask(number).await.status, StatusCode::OK);
    }
    let visit = |number: u32| async move {
        let first = ask(number).await;
        if first.status == StatusCode::OK {
            return 0;
        }
        assert_eq!(first.status, StatusCode::TOO_MANY_REQUESTS);
        let header = |name: &str| first.headers[name].to_str().expect("digits").parse::<u64>().expect("a number");
        let (seconds, milliseconds) = (header("retry-after"), header("retry-after-ms"));
        assert!((1..=60).contains(&seconds) && milliseconds <= 1000 * seconds, "{seconds} s, {milliseconds} ms");
        let error = &first.json()["error"];
        assert_eq!(error["code"], "rate_limit_exceeded");
        assert!(error["message"].as_str().is_some_and(|message| message.contains("a place is kept")), "{error}");
        // What a client is told to wait is what is tested.
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        assert_eq!(ask(number).await.status, StatusCode::OK, "question {number} came back after {milliseconds} ms");
        1
    };
    let refused: u32 = join_all((100..140).map(visit)).await.into_iter().sum();
    assert!(refused >= 20, "{refused} of 40 were refused");
}
