//! Conversations: over WebSockets and over REST, kept for whoever comes back.

use banyan_tests::{Banyan, eventually, process::banyan, socket::Socket};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_goes_on_at_another_api_after_its_own_died_in_the_middle() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("--store {}", folder.path().join("store.db").display());
    let up = Banyan::up("--nodes 1 --token-time 10ms").await;
    let etcd = up.fact("registry").await;
    let start = |name: &str| Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd} {store} --replica {name}"));
    let (one, other) = (start("one"), start("other"));
    let (here, there) = (one.api().await, other.api().await);
    eventually("both are ready", || async {
        (here.get("/readyz").await.status.is_success() && there.get("/readyz").await.status.is_success()).then_some(())
    })
    .await;

    let (mut socket, ready) = Socket::open(here.0, "clientId=browser", None).await.expect("it connects");
    assert_eq!((&ready["type"], &ready["replica"], &ready["messages"]), (&json!("ready"), &json!("one"), &json!(0)));
    let (done, tokens) = socket.turn(&json!({ "text": "[[count 5]]", "max_tokens": 20 })).await.expect("an answer");
    assert_eq!((&done["type"], &done["text"]), (&json!("done"), &json!("1 2 3 4 5")), "{done}");
    assert!(tokens >= 2, "it was streamed");
    assert_eq!((&done["replica"], &done["node"], &done["history"]), (&json!("one"), &json!("node-1"), &json!("kept")));
    assert!(done["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{done}");

    socket.say(&json!({ "text": "[[count 400]]", "max_tokens": 500 })).await.expect("it listens");
    assert_eq!(socket.hear().await.expect("it begins")["type"], "token");
    one.signal("KILL").await;
    while socket.hear().await.is_ok() {}

    let (mut socket, ready) = Socket::open(there.0, "client_id=browser", None).await.expect("it connects");
    assert_eq!((&ready["messages"], &ready["unanswered"]), (&json!(3), &json!(true)), "{ready}");
    socket.say(&json!({ "type": "continue", "max_tokens": 500 })).await.expect("it listens");
    assert_eq!(socket.hear().await.expect("it goes on")["type"], "token");
    let busy = socket.turn(&json!({ "text": "too early" })).await.expect("it listens").0;
    assert!(busy["error"]["message"].as_str().is_some_and(|message| message.contains("under way")), "{busy}");
    let (stopped, _) = socket.turn(&json!({ "type": "stop" })).await.expect("it stops");
    assert_eq!((&stopped["type"], &stopped["replica"]), (&json!("done"), &json!("other")));
    assert!(stopped["text"].as_str().is_some_and(|text| text.starts_with('1')), "{stopped}");
    for wrong in
        [json!([]), json!({ "text": 5 }), json!({ "text": "a", "temperature": 9 }), json!({ "text": "a", "model": "none" })]
    {
        let (error, _) = socket.turn(&wrong).await.expect("it stays open");
        assert_eq!(error["type"], "error", "{wrong}: {error}");
    }
    drop(socket);

    let listed = there.get("/v1/conversations").await.json();
    let id = listed["data"][0]["id"].as_str().unwrap_or_else(|| panic!("{listed}")).to_owned();
    assert_eq!(listed["data"][0]["title"], "[[count 5]]");
    let read = there.get(&format!("/v1/conversations/{id}")).await.json();
    let roles: Vec<_> = read["items"].as_array().expect("messages").iter().map(|item| item["role"].clone()).collect();
    assert_eq!(roles[..4], ["user", "assistant", "user", "assistant"], "{read}");
    let path = format!("/v1/conversations/{id}");
    let renamed = there.ask("PATCH", &path, &[], json!({ "title": "counting" }).to_string()).await.json();
    assert_eq!(renamed["title"], "counting");
    let found = there.get("/v1/conversations/search?q=count%20400").await.json();
    assert_eq!((&found["data"][0]["id"], &found["data"][0]["title"]), (&json!(id), &json!("counting")));
    let added = json!({ "messages": [{ "role": "user", "content": "a note" }] });
    assert_eq!(there.post(&format!("{path}/messages"), &added).await.status, 200);
    assert_eq!(there.delete(&path).await.json()["deleted"], true);
    assert_eq!(there.get(&path).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_belongs_to_its_key_and_ends_when_nobody_says_anything() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("--store {}", folder.path().join("store.db").display());
    let mut secrets = Vec::new();
    for name in ["me", "you"] {
        secrets.push(banyan(&format!("key create --name {name} {store}")).await.out.trim().to_owned());
    }
    let up = Banyan::up(&format!("--nodes 1 {store} --chat-idle 300ms")).await;
    let api = up.api().await;
    assert!(Socket::open(api.0, "client_id=a", None).await.is_err(), "no key");
    assert!(Socket::open(api.0, "", Some(&secrets[0])).await.is_err(), "no client");
    let (mut mine, _) = Socket::open(api.0, "client_id=a", Some(&secrets[0])).await.expect("it connects");
    let (done, _) = mine.turn(&json!({ "text": "[[count 2]]" })).await.expect("an answer");
    assert_eq!(done["text"], "1 2");
    let closed = mine.hear().await.expect_err("nobody says anything");
    assert!(closed.contains("idle"), "{closed}");
    let (_, ready) = Socket::open(api.0, "client_id=a", Some(&secrets[1])).await.expect("it connects");
    assert_eq!(ready["messages"], 0, "another key's conversation");
    let (_, ready) = Socket::open(api.0, "client_id=a", Some(&secrets[0])).await.expect("it connects");
    assert_eq!(ready["messages"], 2);
}
