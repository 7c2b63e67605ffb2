//! More than the tree can take, and clients that do not take what they asked for. In one process, where bounds can be small.

use std::time::Duration;

use banyan_api::Limits;
use banyan_node::LaneLimits;
use banyan_tests::{Cluster, clients::Wish, history::Seen};
use futures::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use crate::assert_told_well;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_is_refused_at_once_and_what_was_accepted_is_answered() {
    for lanes in [LaneLimits { entries: 8, ..LaneLimits::default() }, LaneLimits { bytes: 600, ..LaneLimits::default() }] {
        let slow = Duration::from_millis(20);
        let cluster = Cluster::builder().lanes(lanes).token_time(slow).slots(1).node("a", "root").start().await;
        let api = cluster.api();
        let stories = join_all((0..100).map(|number| async move { Wish::count(20).ask(api, number).await })).await;
        assert_told_well(&stories);
        let refused = |seen: &Seen| matches!(seen, Seen::Failed { status: Some(429), .. });
        let (refused, answered): (Vec<_>, Vec<_>) =
            stories.iter().flat_map(|story| story.seen.last()).partition(|(_, seen)| refused(seen));
        assert!(refused.len() > 70 && answered.len() > 4, "{} were refused, {} answered", refused.len(), answered.len());
        // Nobody waits to hear that there is no room: the first answer takes 0.4 s, and all refusals are there before.
        let first = answered.iter().map(|(at, _)| *at).min().expect("some are answered");
        assert!(refused.iter().all(|(at, _)| *at < first));

        let held = join_all((0..100).map(|_| async move {
            let body = json!({ "model": "fake", "prompt": "[[count 20]]", "max_tokens": 24 });
            api.post("/v1/completions", &body).await
        }))
        .await;
        for answer in held.iter().filter(|answer| answer.status.as_u16() == 429) {
            let seconds = answer.headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            assert!(seconds.is_some_and(|seconds| (1..=60).contains(&seconds)), "{:?}", answer.headers);
        }
        cluster.until("root", "nothing is left over", |root| root.live == 0 && root.waiting == 0).await;
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_slows_nobody_and_is_cut_off() {
    let limits = Limits { write_stall: Duration::from_millis(500), ..Limits::default() };
    let quick = Duration::from_millis(1);
    let cluster = Cluster::builder().limits(limits).token_time(quick).slots(32).node("a", "root").start().await;
    let api = cluster.api();
    // Choices enough that the kernel's buffers can't take them all.
    let body = json!({ "model": "fake", "prompt": "[[count 4000]]", "max_tokens": 4000, "stream": true, "n": 24 }).to_string();
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream = socket.connect(api.0).await.expect("the API listens");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.expect("the API takes the request");
    cluster.until("root", "it is answered", |root| root.live == 24).await;
    let neighbour = tokio::spawn(async move { Wish::count(300).ask(api, 0).await });
    assert_told_well(&[neighbour.await.expect("no client panics")]);
    cluster.until("root", "it is cut off", |root| root.live == 0).await;
    // What the kernels still have comes, and then the end, which is not that of the answer.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"), "it was answered to the end");
    cluster.until("a", "nothing runs", |a| a.running == 0 && a.queued == 0).await;
    cluster.stop().await;
}
