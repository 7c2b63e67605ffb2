//! An API over a scripted root, and the view that the registry would give it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use banyan_api::{Api, Config, Limits};
use banyan_etcd::{Member, Model, Role, Root, View};
use banyan_proto::{NodeName, v1};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    client::{self, Connection, Reply},
    root::{ScriptedRoot, Step},
};

pub(crate) struct Rig {
    pub(crate) api: Api,
    pub(crate) root: ScriptedRoot,
    pub(crate) view: watch::Sender<Arc<View>>,
}

/// Every question gets the same answer.
pub(crate) async fn rig(steps: Vec<Step>) -> Rig {
    Rig::start(move |_, _| steps.clone(), quick()).await
}

/// Limits that a test does not wait for.
pub(crate) fn quick() -> Limits {
    Limits {
        root_retry: Duration::from_millis(300),
        failover: Duration::from_millis(300),
        drain: Duration::from_millis(200),
        ..Limits::default()
    }
}

impl Rig {
    pub(crate) async fn start(
        script: impl Fn(usize, &v1::Generation) -> Vec<Step> + Send + Sync + 'static,
        limits: Limits,
    ) -> Rig {
        Self::start_over(script, Config { limits, ..Config::default() }).await
    }

    pub(crate) async fn start_over(
        script: impl Fn(usize, &v1::Generation) -> Vec<Step> + Send + Sync + 'static,
        config: Config,
    ) -> Rig {
        let root = ScriptedRoot::start(Arc::new(script)).await;
        let (view, views) = watch::channel(Arc::new(view(Some(&root.address.to_string()), &["tiny", "openai-community/gpt2"])));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api::over(config, views, listener).await.unwrap();
        Rig { api, root, view }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        client::ask(self.api.address(), "GET", path, &[], b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        client::ask(self.api.address(), "POST", path, &[], body.to_string().as_bytes()).await
    }

    /// A connection whose response comes bit by bit.
    pub(crate) async fn open(&self, path: &str, body: &Value) -> Connection {
        Connection::send(self.api.address(), "POST", path, &[], body.to_string().as_bytes()).await
    }
}

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// One tree with one node.
pub(crate) fn view(root: Option<&str>, models: &[&str]) -> View {
    let model =
        |id: &&str| Model { id: (*id).to_owned(), context: 512, chat: *id == "tiny", created: 1_700_000_000, stands_in: None };
    let member = Member {
        name: name("leaf-1"),
        parent: Some(name("root")),
        address: "127.0.0.1:1".into(),
        role: Role::Node,
        tree: name("main"),
        incarnation: 1,
        version: "0.1.0".into(),
        models: models.iter().map(model).collect(),
        device: "cpu".into(),
        started_at: 0,
    };
    let roots =
        root.map(|address| (name("main"), Root { name: name("root"), address: address.to_owned(), epoch: 1, former: vec![] }));
    View { members: BTreeMap::from([(member.name.clone(), member)]), roots: roots.into_iter().collect(), revision: 1, live: true }
}
