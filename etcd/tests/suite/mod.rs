//! What a registry has to do, whichever server is behind it. `embedded.rs` and `real_etcd.rs` run it over their servers.

pub(crate) mod scenarios;
pub(crate) mod server;

use std::{future::Future, time::Duration};

use banyan_etcd::{Config, Member, Model, Registry, Role};
use banyan_proto::NodeName;

/// How long a fact may take to come true on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("a test's name is a name")
}

/// A member of the tree `main`; without a parent its root.
pub(crate) fn member(text: &str, parent: Option<&str>) -> Member {
    Member {
        name: name(text),
        parent: parent.map(name),
        address: format!("127.0.0.1:1/{text}"),
        role: if parent.is_none() { Role::Root } else { Role::Node },
        tree: name("main"),
        incarnation: 0,
        version: "0.1.0".into(),
        models: vec![Model { id: "gpt2".into(), context: 1024, chat: false, created: 1, stands_in: None }],
        device: "cpu".into(),
        started_at: 1,
    }
}

/// A registry with a short lease and patient calls.
pub(crate) async fn connect(url: &str) -> Registry {
    connect_to(url, "test").await
}

pub(crate) async fn connect_to(url: &str, cluster: &str) -> Registry {
    let mut config = Config::new(vec![url.to_owned()], name(cluster));
    config.lease_ttl = Duration::from_secs(3);
    config.timeout = Duration::from_secs(3);
    eventually("the server answers", || async { Registry::connect(config.clone()).await.ok() }).await
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(fact: &str, ask: impl Fn() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("in vain waited that {fact}"))
}

/// Waits until a watched value is as wanted.
pub(crate) async fn sees<T: Clone>(fact: &str, values: &mut tokio::sync::watch::Receiver<T>, wanted: impl Fn(&T) -> bool) -> T {
    let seen = tokio::time::timeout(PATIENCE, values.wait_for(|value| wanted(value))).await;
    seen.unwrap_or_else(|_| panic!("in vain waited that {fact}")).expect("the sender lives").clone()
}
