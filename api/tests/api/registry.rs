//! The API over a real registry: the embedded one.

use std::time::Duration;

use banyan_api::{Api, Config};
use banyan_etcd::{Registry, Role, embedded};
use tokio::net::TcpListener;

use crate::{
    client,
    rig::{name, view},
    root::{ScriptedRoot, hello},
};

#[tokio::test]
async fn models_and_roots_come_from_the_registry() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = embedded::Server::start(listener, None).await.unwrap();
    let config = banyan_etcd::Config::new(vec![format!("http://{}", server.address())], name("test"));
    let registry = Registry::connect(config).await.unwrap();
    let root = ScriptedRoot::start(std::sync::Arc::new(|_, _| hello())).await;
    let mut member = view(None, &["tiny"]).members.remove(&name("leaf-1")).unwrap();
    (member.role, member.parent, member.address) = (Role::Root, None, root.address.to_string());
    let registration = registry.register(member).await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = Api::start(Config::default(), registry, listener).await.unwrap();
    let ready = async {
        while client::ask(api.address(), "GET", "/readyz", &[], b"").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("never ready");
    let body = serde_json::json!({ "model": "tiny", "prompt": "a" }).to_string();
    let reply = client::ask(api.address(), "POST", "/v1/completions", &[], body.as_bytes()).await;
    assert_eq!(reply.json()["choices"][0]["text"], "Hello there");
    api.stop().await;
    registration.leave().await;
    server.stop().await;
}
