//! The way to the roots: which one to ask, and one connection to each.
//!
//! What one of them answers is in `answer.rs`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use banyan_etcd::View;
use banyan_proto::{
    MESSAGE_BYTES_MAX, NodeName, dial,
    v1::{self, inspect_client::InspectClient, root_client::RootClient},
};
use tokio::sync::watch;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::catalogue;

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
    links: Mutex<BTreeMap<NodeName, Link>>,
    /// Counts queries, for round-robin over trees.
    turn: AtomicUsize,
    /// How long one may be unreachable.
    pub(crate) retry: Duration,
}

/// The connection to one root. Dials when it is needed, and again when it broke.
#[derive(Clone)]
struct Link {
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
    #[error("the root went away before it answered")]
    Broken { source: Status },
}

impl AskError {
    /// Whether asking again soon may help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            AskError::NoRoot | AskError::Silent { .. } => true,
            AskError::Address(_) => false,
            AskError::Broken { .. } => true,
            AskError::Refused { source, .. } => !matches!(
                source.code(),
                Code::InvalidArgument | Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated | Code::OutOfRange
            ),
        }
    }
}

impl Roots {
    pub(crate) fn new(view: watch::Receiver<Arc<View>>, retry: Duration) -> Self {
        Roots { view, links: Mutex::default(), turn: AtomicUsize::new(0), retry }
    }

    /// What the registry knows now.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Asks a root of a tree that serves the model, in turn, or of any tree: then it is the root that says which models there are.
    pub(crate) async fn ask(&self, model: &str, question: v1::Question) -> Result<Streaming<v1::Answer>, AskError> {
        let Link { address, channel } = self.link_for(model)?;
        let mut client =
            RootClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
        match tokio::time::timeout(self.retry, client.ask(question)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(source)) => Err(AskError::Refused { address, source }),
            Err(_) => Err(AskError::Silent { address }),
        }
    }

    /// Whether a root answers.
    pub(crate) async fn probe(&self) -> Result<(), AskError> {
        let Link { address, channel } = self.link_for("")?;
        let probe = async { InspectClient::new(channel).status(v1::Target::default()).await };
        match tokio::time::timeout(PROBE, probe).await {
            Ok(Ok(_)) => Ok(()),
            // An older root that does not know the question is there all the same.
            Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(()),
            Ok(Err(source)) => Err(AskError::Refused { address, source }),
            Err(_) => Err(AskError::Silent { address }),
        }
    }

    fn link_for(&self, model: &str) -> Result<Link, AskError> {
        let view = self.view();
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        for (tree, root) in &view.roots {
            if links.get(tree).is_none_or(|link| link.address != root.address) {
                links.insert(tree.clone(), Link { channel: channel(&root.address)?, address: root.address.clone() });
            }
        }
        // A root whose key is gone keeps its link: a lost lease is no death, and it will register again.
        let mut trees: Vec<&NodeName> = links.keys().filter(|tree| catalogue::serves(&view, tree, model)).collect();
        if trees.is_empty() {
            trees = links.keys().collect();
        }
        if trees.is_empty() {
            return Err(AskError::NoRoot);
        }
        let tree = trees[self.turn.fetch_add(1, Ordering::Relaxed) % trees.len()];
        Ok(links[tree].clone())
    }
}

fn channel(address: &str) -> Result<Channel, AskError> {
    let endpoint = dial::endpoint(address).map_err(|_| AskError::Address(address.to_owned()))?;
    Ok(endpoint
        .connect_timeout(CONNECT)
        .initial_stream_window_size(ANSWER_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .connect_lazy())
}
