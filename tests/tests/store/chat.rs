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
async fn a_page_brings_its_conversations_and_a_link_shows_one_without_a_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("--store {}", folder.path().join("store.db").display());
    let key = format!("Bearer {}", banyan(&format!("key create --name me {store}")).await.out.trim());
    let up = Banyan::up(&format!("--nodes 1 {store}")).await;
    let api = up.api().await;
    let ask = async |method: &str, path: &str, body: serde_json::Value| {
        api.ask(method, path, &[("authorization", &key), ("content-type", "application/json")], body.to_string()).await
    };
    let message = |id: &str, parent: Option<&str>, role: &str, content: &str| json!({ "id": id, "parent": parent, "role": role, "content": content, "extra": { "mode": "chat" } });
    let path = "/v1/conversations/talk1";
    let whole = json!({ "title": "Trees", "extra": { "system": "be brief" }, "messages": [
        message("a", None, "user", "What is a banyan?"), message("b", Some("a"), "assistant", "A fig."), message("c", Some("a"), "assistant", "A tree."),
    ]});
    let put = ask("PUT", path, whole.clone()).await;
    assert_eq!(
        (put.status.as_u16(), &put.json()["before"], &put.json()["messages"]),
        (200, &json!(0), &json!(3)),
        "{}",
        put.text()
    );
    let read = ask("GET", path, json!({})).await.json();
    assert_eq!(
        (&read["client_id"], &read["extra"]["system"], &read["items"][2]["parent"]),
        (&json!("talk1"), &json!("be brief"), &json!("a")),
        "{read}"
    );
    for wrong in [
        json!({ "messages": [message("a b", None, "user", "x")] }),
        json!({ "messages": [message("a", Some(""), "user", "x")] }),
        json!({ "messages": [message("a", None, "nobody", "x")] }),
        json!({ "extra": 5 }),
        json!({ "removed": [5] }),
        json!({ "known": 0 }),
    ] {
        assert_eq!(ask("PUT", path, wrong.clone()).await.status, 400, "{wrong}");
    }
    assert_eq!(ask("PUT", "/v1/conversations/talk2", json!({ "known": 5 })).await.status, 404, "it was deleted elsewhere");

    // The list is sent again only when something has changed.
    let listed = ask("GET", "/v1/conversations", json!({})).await;
    let tag = listed.headers["etag"].to_str().expect("a text").to_owned();
    let again = async || {
        api.ask("GET", "/v1/conversations", &[("authorization", &key), ("if-none-match", &tag)], "").await.status.as_u16()
    };
    assert_eq!(again().await, 304);
    assert_eq!(ask("PATCH", path, json!({ "title": "Figs" })).await.status, 200);
    assert_eq!(again().await, 200);

    let share = ask("POST", "/v1/conversations/talk1/share", json!({ "messages": ["a", "c"] })).await.json();
    let link = format!("/v1/shares/{}", share["id"].as_str().unwrap_or_else(|| panic!("{share}")));
    let shown = api.get(&link).await.json();
    let contents = shown["messages"].as_array().expect("messages").iter().map(|one| one["content"].clone()).collect::<Vec<_>>();
    assert_eq!((&shown["title"], contents), (&json!("Figs"), vec![json!("What is a banyan?"), json!("A tree.")]), "{shown}");
    assert!(!shown.to_string().contains("be brief"), "nobody is told how the model was asked: {shown}");
    assert_eq!(ask("GET", path, json!({})).await.json()["share"], share["id"]);
    assert_eq!(ask("POST", "/v1/conversations/talk1/share", json!({ "messages": ["none"] })).await.status, 400);
    assert_eq!(api.get("/v1/conversations").await.status, 401, "only the link needs no key");
    assert_eq!(ask("DELETE", "/v1/conversations/talk1/share", json!({})).await.status, 200);
    assert_eq!(api.get(&link).await.status, 404);
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
