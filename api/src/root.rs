//! The way to the roots: which one to ask, and one connection to each.
//!
//! What one of them answers is in `answer.rs`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use banyan_etcd::{Root, View};
use banyan_observe::Tracer;
use banyan_proto::{
    Expected, MESSAGE_BYTES_MAX, NodeName, QueryId, Transport, dial,
    v1::{self, inspect_client::InspectClient, root_client::RootClient},
};
use banyan_store::Key;
use tokio::sync::watch;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    Aliases,
    catalogue::{self, Offer},
    meters::Meters,
};

/// How long a connection may take to come about; roots are near.
const CONNECT: Duration = Duration::from_secs(1);

/// A root that does not answer a ping for that long is gone. All answers of the connection end with it, so this is patient
/// enough for a machine under load.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// What one answer may have under way: more than a whole answer's tokens, so that a client that reads slowly leaves its share
/// of the connection alone.
const ANSWER_WINDOW: u32 = 1 << 20;

/// No bound of its own (2³¹ − 1 is HTTP/2's largest): each answer's window is bounded, and their number by our connections. A
/// smaller one would let slow readers hold up everybody else's tokens.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How long a root may take to say that it is there.
const PROBE: Duration = Duration::from_secs(2);

/// The roots of all trees.
pub(crate) struct Roots {
    view: watch::Receiver<Arc<View>>,
    aliases: Aliases,
    pub(crate) meters: Arc<Meters>,
    pub(crate) tracer: Tracer,
    transport: Transport,
    links: Mutex<BTreeMap<NodeName, Link>>,
    /// Counts queries, for round-robin over trees.
    turn: AtomicUsize,
    /// How long to wait for the first one.
    pub(crate) retry: Duration,
    /// How long a tree may be without one.
    pub(crate) failover: Duration,
}

/// A root that took a question, and what it answers.
pub(crate) struct Answering {
    pub(crate) tree: NodeName,
    address: String,
    /// What was read of it already.
    pub(crate) first: Option<v1::Answer>,
    pub(crate) answers: Streaming<v1::Answer>,
}

/// The connection to one root. Dials when it is needed, and again when it broke.
#[derive(Clone)]
struct Link {
    root: NodeName,
    address: String,
    channel: Channel,
}

/// Why a root could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no root has registered yet")]
    NoRoot,
    #[error("the root's address {0:?} is not one")]
    Address(String),
    #[error("the root at {address} did not answer")]
    Silent { address: String },
    #[error("the root at {address} can't be asked")]
    Refused { address: String, source: Status },
    #[error("no root has such an answer")]
    Unknown,
    #[error("the root went away")]
    Broken { source: Status },
}

impl AskError {
    /// Whether asking again soon may help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            AskError::NoRoot | AskError::Silent { .. } => true,
            AskError::Address(_) | AskError::Unknown => false,
            AskError::Broken { .. } => true,
            AskError::Refused { source, .. } => !matches!(
                source.code(),
                Code::InvalidArgument | Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated | Code::OutOfRange
            ),
        }
    }

    /// As a label.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            AskError::NoRoot => "no_root",
            AskError::Address(_) => "address",
            AskError::Silent { .. } => "silent",
            AskError::Refused { .. } => "refused",
            AskError::Unknown => "unknown",
            AskError::Broken { .. } => "broken",
        }
    }
}

impl Roots {
    pub(crate) fn new(
        view: watch::Receiver<Arc<View>>,
        aliases: Aliases,
        transport: Transport,
        retry: Duration,
        failover: Duration,
        meters: Arc<Meters>,
        tracer: Tracer,
    ) -> Self {
        let turn = AtomicUsize::new(0);
        Roots { view, aliases, meters, tracer, transport, links: Mutex::default(), turn, retry, failover }
    }

    /// Tells of changes in the registry.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Whether another root has taken the place of the one that answers.
    pub(crate) fn is_succeeded(&self, answering: &Answering) -> bool {
        self.view.borrow().roots.get(&answering.tree).is_some_and(|root| root.address != answering.address)
    }

    /// What the registry knows now.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The tree to ask: one that serves the model, or any, and then it is its root that says which models there are. `key` picks
    /// always the same one; without it they take turns.
    pub(crate) fn pick(&self, model: &str, key: Option<u64>) -> Result<NodeName, AskError> {
        let trees = self.trees(model)?;
        let turn = key.unwrap_or_else(|| self.turn.fetch_add(1, Ordering::Relaxed) as u64);
        Ok(trees[(turn % trees.len() as u64) as usize].clone())
    }

    /// Asks the root of a tree.
    pub(crate) async fn ask(&self, tree: &NodeName, question: v1::Question) -> Result<Answering, AskError> {
        let link = self.link(tree)?;
        let (address, mut client) = (link.address.clone(), client(link.channel.clone()));
        tokio::select! {
            answering = self.answering(tree, link, client.ask(question)) => answering,
            () = self.succeeded(tree, &address) => Err(AskError::Silent { address }),
        }
    }

    /// Waits until another root has taken the place of the one at that address: nobody need wait for it any longer.
    async fn succeeded(&self, tree: &NodeName, address: &str) {
        let other = |view: &Arc<View>| view.roots.get(tree).is_some_and(|root| root.address != address);
        if self.view.clone().wait_for(other).await.is_err() {
            // The registry's handle is gone, and with it what this could see.
            std::future::pending::<()>().await;
        }
    }

    /// Attaches to an answer of which only the id is known, at whichever root has it.
    pub(crate) async fn attach(&self, wanted: v1::AnswerRef) -> Result<Answering, AskError> {
        let mut last = AskError::NoRoot;
        for tree in self.trees("")? {
            let link = self.link(&tree)?;
            match self.answering(&tree, link.clone(), client(link.channel).attach(wanted.clone())).await {
                Ok(mut answering) => match answering.answers.message().await {
                    Ok(Some(first)) if !is_elsewhere(&first) => {
                        answering.first = Some(first);
                        return Ok(answering);
                    }
                    Ok(Some(_)) => last = AskError::Unknown,
                    Ok(None) => last = AskError::Broken { source: Status::unavailable("the root is none any more") },
                    Err(source) => last = AskError::Broken { source },
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Ends an answer for good.
    pub(crate) async fn cancel(&self, tree: &NodeName, wanted: v1::AnswerRef) {
        if let Ok(link) = self.link(tree) {
            // An older root has cancelled it already, when its stream was dropped; from a dead one nobody wants an answer.
            let _ = tokio::time::timeout(self.retry, client(link.channel).cancel(wanted)).await;
        }
    }

    /// Ends an answer for good, whichever root has it.
    pub(crate) async fn cancel_everywhere(&self, wanted: &v1::AnswerRef) {
        for tree in self.trees("").unwrap_or_default() {
            self.cancel(&tree, wanted.clone()).await;
        }
    }

    async fn answering(
        &self,
        tree: &NodeName,
        link: Link,
        asked: impl Future<Output = Result<tonic::Response<Streaming<v1::Answer>>, Status>>,
    ) -> Result<Answering, AskError> {
        let address = link.address;
        match tokio::time::timeout(self.retry, asked).await {
            Ok(Ok(answers)) => Ok(Answering { tree: tree.clone(), address, first: None, answers: answers.into_inner() }),
            Ok(Err(source)) => Err(AskError::Refused { address, source }),
            Err(_) => Err(AskError::Silent { address }),
        }
    }

    /// Whether somebody may ask for a name; without a key for all of them.
    pub(crate) fn may(&self, key: Option<&Key>, name: &str) -> bool {
        key.is_none_or(|key| self.aliases.may(name, &|name| key.names(name)))
    }

    /// The models to try for a name, in that order. The choices of an answer go the same way.
    pub(crate) fn chain(&self, name: &str, id: QueryId, allowed: Option<&Key>) -> Vec<String> {
        // Choices' ids differ in their last bits.
        let bits = id.to_wire();
        let key = bits[6..14].iter().fold(0, |key, byte| key << 8 | u64::from(*byte));
        self.aliases.chain(&self.view(), name, key, &|name| allowed.is_none_or(|key| key.names(name)))
    }

    /// Whether the registry knows of a node that serves a model.
    pub(crate) fn serves(&self, model: &str) -> bool {
        catalogue::context(&self.view(), model).is_some()
    }

    /// All that somebody can ask for, by name: models, those that providers stand in for, and aliases.
    pub(crate) fn offers(&self, key: Option<&Key>) -> Vec<Offer> {
        let mut offers = catalogue::with_aliases(&self.view(), &self.aliases);
        offers.retain(|offer| self.may(key, &offer.id));
        offers
    }

    /// The model that somebody gets who does not say which; empty: there is none.
    pub(crate) fn first(&self, key: Option<&Key>) -> String {
        catalogue::first(&self.view(), |model| self.may(key, model)).unwrap_or_default().to_owned()
    }

    /// Tokens that fit into the context of whatever a name stands for.
    pub(crate) fn context(&self, name: &str) -> Option<u32> {
        let view = self.view();
        let chain = self.aliases.iter().find(|(alias, _)| *alias == name).map(|(_, models)| models);
        let models = chain.unwrap_or_else(|| vec![name]);
        // What an answer may come to at most, wherever it is made.
        models.into_iter().filter_map(|model| catalogue::context(&view, model)).max()
    }

    /// Asks the root of a tree about its nodes.
    pub(crate) fn inspect(&self, tree: &NodeName) -> Result<InspectClient<Channel>, AskError> {
        let client = InspectClient::new(self.link(tree)?.channel);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Whether a root answers.
    pub(crate) async fn probe(&self) -> Result<(), AskError> {
        let Link { address, channel, .. } = self.link(&self.pick("", None)?)?;
        let probe = async { InspectClient::new(channel).status(v1::Target::default()).await };
        match tokio::time::timeout(PROBE, probe).await {
            Ok(Ok(_)) => Ok(()),
            // An older root that does not know the question is there all the same.
            Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(()),
            Ok(Err(source)) => Err(AskError::Refused { address, source }),
            Err(_) => Err(AskError::Silent { address }),
        }
    }

    fn trees(&self, model: &str) -> Result<Vec<NodeName>, AskError> {
        let view = self.view();
        let links = self.update(&view)?;
        let mut trees: Vec<&NodeName> = links.keys().filter(|tree| catalogue::serves(&view, tree, model)).collect();
        if trees.is_empty() {
            trees = links.keys().collect();
        }
        if trees.is_empty() { Err(AskError::NoRoot) } else { Ok(trees.into_iter().cloned().collect()) }
    }

    fn link(&self, tree: &NodeName) -> Result<Link, AskError> {
        self.update(&self.view())?.get(tree).cloned().ok_or(AskError::NoRoot)
    }

    fn update(&self, view: &View) -> Result<MutexGuard<'_, BTreeMap<NodeName, Link>>, AskError> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        // A root whose key is gone keeps its link: a lost lease is no death, and it will register again.
        for (tree, root) in &view.roots {
            if links.get(tree).is_none_or(|link| link.address != root.address || link.root != root.name) {
                let channel = self.channel(root)?;
                links.insert(tree.clone(), Link { channel, address: root.address.clone(), root: root.name.clone() });
            }
        }
        Ok(links)
    }

    fn channel(&self, root: &Root) -> Result<Channel, AskError> {
        let endpoint = dial::endpoint(&root.address).map_err(|_| AskError::Address(root.address.clone()))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .initial_stream_window_size(ANSWER_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE);
        Ok(self.transport.lazily(&endpoint, Expected::root(&root.name)))
    }
}

fn client(channel: Channel) -> RootClient<Channel> {
    RootClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn is_elsewhere(answer: &v1::Answer) -> bool {
    matches!(&answer.kind, Some(v1::answer::Kind::Failed(failed)) if failed.reason() == v1::Failure::NotFound)
}
