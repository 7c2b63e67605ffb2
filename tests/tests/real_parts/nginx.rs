//! Five APIs over one PostgreSQL behind Debian's nginx with deploy/nginx.conf: one dies in the middle of a conversation.

use std::collections::BTreeMap;

use banyan_tests::{Banyan, eventually, forest::free_port, nginx::Nginx, postgres::Postgres, socket::Socket};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_survives_its_replica_behind_nginx() {
    let server = Postgres::start().await;
    let store = server.database().await;
    let up = Banyan::up("--nodes 1 --token-time 10ms").await;
    let etcd = up.fact("registry").await;
    let ports: Vec<u16> = (0..5).map(|_| free_port()).collect();
    let mut replicas = BTreeMap::new();
    for (number, port) in ports.iter().enumerate() {
        let name = format!("api-{number}");
        let line = format!("api run --listen 127.0.0.1:{port} --etcd {etcd} --store {store} --replica {name}");
        replicas.insert(name, Banyan::start(&line));
    }
    for replica in replicas.values() {
        replica.printed("the API is ready").await;
    }
    let nginx = Nginx::start(&ports).await;
    let api = nginx.api();
    eventually("all is ready", || async { api.try_get("/readyz").await.ok()?.status.is_success().then_some(()) }).await;

    // With open conversations the least busy one is another each time.
    let mut open = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..10 {
        let (socket, ready) = Socket::open(api.0, &format!("client_id=c{number}"), None).await.expect("it connects");
        *seen.entry(ready["replica"].as_str().expect("a name").to_owned()).or_default() += 1;
        open.push(socket);
    }
    assert_eq!(seen.values().copied().collect::<Vec<_>>(), [2; 5], "{seen:?}");
    drop(open);

    let (mut socket, ready) = Socket::open(api.0, "clientId=me", None).await.expect("it connects");
    let (done, _) = socket.turn(&json!({ "text": "Good morning", "max_tokens": 4 })).await.expect("an answer");
    assert_eq!((&done["type"], &done["node"]), (&json!("done"), &json!("node-1")));
    socket.say(&json!({ "text": "[[count 300]]", "max_tokens": 400 })).await.expect("it listens");
    assert_eq!(socket.hear().await.expect("it begins")["type"], "token");
    let victim = ready["replica"].as_str().expect("a name").to_owned();
    replicas.remove(&victim).expect("it runs").signal("KILL").await;
    while socket.hear().await.is_ok() {}

    // What a client does: it connects again until somebody answers.
    let (mut socket, ready): (Socket, Value) =
        eventually("it connects again", || async { Socket::open(api.0, "clientId=me", None).await.ok() }).await;
    assert_ne!(ready["replica"], json!(victim));
    assert_eq!((&ready["messages"], &ready["unanswered"]), (&json!(3), &json!(true)), "{ready}");
    let (done, _) = socket.turn(&json!({ "type": "continue", "max_tokens": 400 })).await.expect("an answer");
    assert!(done["text"].as_str().is_some_and(|text| text.ends_with("299 300")), "{done}");
    assert_ne!(done["replica"], json!(victim));

    // Plain requests and streams pass through too.
    for _ in 0..10 {
        let answer = api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 2]]" })).await;
        assert_eq!(answer.text(), "1 2");
    }
    let stream = api.stream("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 9]]", "stream": true })).await;
    assert!(stream.rest().await.len() > 3, "it comes piece by piece");
}
