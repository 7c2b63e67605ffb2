//! What can go wrong between a node and its registry, one enum per operation.

use std::time::Duration;

use banyan_proto::NodeName;

use crate::{Member, MemberError, Root, registry::DEPTH_MAX};

/// Why one call to the registry failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The server, or the way to it, said no.
    #[error("{}{}", .status.message(), causes(.status))]
    Status {
        /// What came back.
        status: Box<tonic::Status>,
    },
    /// The client itself.
    #[error(transparent)]
    Client(etcd_client::Error),
}

/// Why [`Registry::connect`](crate::Registry::connect) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// An empty list.
    #[error("no registry endpoint is given: name one, such as --etcd http://127.0.0.1:2379")]
    NoEndpoints,
    /// Not a URL that etcd could have.
    #[error("{endpoint:?} is no registry endpoint: write it like http://127.0.0.1:2379")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        source: CallError,
    },
    /// Nobody answers there, or not as etcd does.
    #[error("no registry answers at {endpoints}: start one with `banyan registry serve` or `etcd`, or name another with --etcd")]
    Unavailable {
        /// The endpoints, with commas.
        endpoints: String,
        /// What the last call met.
        source: CallError,
    },
}

/// Why reading the registry failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Nobody answers.
    #[error("the registry at {endpoints} can't be read: see that it runs (`banyan registry serve` or `etcd`)")]
    Unavailable {
        /// The endpoints, with commas.
        endpoints: String,
        /// What the last call met.
        source: CallError,
    },
    /// Somebody else wrote there.
    #[error(
        "the registry's key {key} holds nothing of Banyan's: look with `etcdctl get {key}`, remove it with `etcdctl del {key}`"
    )]
    Foreign {
        /// The key.
        key: String,
        /// What is wrong with its value.
        source: MemberError,
    },
}

/// Why [`Registry::register`](crate::Registry::register) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name is somebody else's.
    #[error(
        "the name {} is taken by the node at {} (device {:?}, incarnation {}): choose another name; \
         if that node has died, its name is free again once its lease ends",
        .holder.name, .holder.address, .holder.device, .holder.incarnation
    )]
    Taken {
        /// Who has it.
        holder: Box<Member>,
    },
    /// The tree has a root.
    #[error(
        "the tree {tree} has a root, {} at {}: give this node a parent with --parent, let it wait for its turn with --standby, \
         or give it another tree with --tree; if that root has died, its place is free again once its lease ends",
        .holder.name, .holder.address
    )]
    TreeTaken {
        /// The tree.
        tree: NodeName,
        /// Its root.
        holder: Root,
    },
    /// The wanted parent isn't there (yet).
    #[error("no node is named {parent}, the wanted parent: start it first, or see who there is with `banyan node list`")]
    ParentMissing {
        /// The wanted parent.
        parent: NodeName,
    },
    /// The wanted parent is in another tree.
    #[error("the wanted parent {parent} is in the tree {tree}: register there with --tree {tree}")]
    OtherTree {
        /// The wanted parent.
        parent: NodeName,
        /// The parent's tree.
        tree: NodeName,
    },
    /// The wanted parent is the node itself, or below it.
    #[error("{name} can't be below {parent}, which is below {name} itself ({}): choose another parent", path(.chain))]
    Cycle {
        /// The node.
        name: NodeName,
        /// The wanted parent.
        parent: NodeName,
        /// From the wanted parent upwards to the node.
        chain: Vec<NodeName>,
    },
    /// Too far from the root.
    #[error("below {parent} the tree would be deeper than {DEPTH_MAX}: choose a parent nearer to the root")]
    TooDeep {
        /// The wanted parent.
        parent: NodeName,
    },
    /// Others changed the same part of the tree all the time.
    #[error("the tree around {name} kept changing while it registered: try again")]
    Contended {
        /// The node.
        name: NodeName,
    },
    /// The member can't be written.
    #[error("{name} can't be written to the registry")]
    Invalid {
        /// The node.
        name: NodeName,
        /// Why.
        source: MemberError,
    },
    /// Somebody else may write there.
    #[error("the registry at {endpoints} does not let this member register: docs/security.md says which rights it needs")]
    Forbidden {
        /// The endpoints, with commas.
        endpoints: String,
        /// What it says.
        source: CallError,
    },
    /// Reading what is there failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Nobody answers.
    #[error("the registry at {endpoints} does not answer: see that it runs (`banyan registry serve` or `etcd`)")]
    Unavailable {
        /// The endpoints, with commas.
        endpoints: String,
        /// What the last call met.
        source: CallError,
    },
}

/// Why [`Registration::move_to`](crate::Registration::move_to) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// A root has no parent.
    #[error("{0} is a root, and a root has no parent: move another node")]
    Root(NodeName),
    /// Its lease is lost and not yet had again.
    #[error("{0} is not registered at the moment: try again when the registry answers it")]
    Unregistered(NodeName),
    /// As for registering: the parent is missing, below the node, too deep or in another tree, or nobody answers.
    #[error(transparent)]
    Refused(#[from] RegisterError),
    /// The registration has ended.
    #[error("{0} has left the registry")]
    Left(NodeName),
}

/// Why [`Registration::reign`](crate::Registration::reign) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReignError {
    /// As for registering: another root was faster, or nobody answers.
    #[error(transparent)]
    Refused(RegisterError),
    /// The registration has ended.
    #[error("it has left the registry")]
    Left,
}

impl From<etcd_client::Error> for CallError {
    fn from(error: etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => CallError::Status { status: Box::new(status) },
            other => CallError::Client(other),
        }
    }
}

impl CallError {
    /// Whether the registry knows who calls, and does not let him.
    pub(crate) fn is_forbidden(&self) -> bool {
        use tonic::Code::{PermissionDenied, Unauthenticated};
        matches!(self, CallError::Status { status } if matches!(status.code(), PermissionDenied | Unauthenticated))
    }

    /// Whether the same call may succeed a moment later, perhaps at another endpoint.
    pub(crate) fn is_passing(&self) -> bool {
        use tonic::Code::{Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown};
        match self {
            CallError::TimedOut(_) => true,
            CallError::Status { status } => {
                matches!(status.code(), Unavailable | Unknown | Internal | Cancelled | DeadlineExceeded | ResourceExhausted)
            }
            CallError::Client(error) => matches!(error, etcd_client::Error::TransportError(_) | etcd_client::Error::IoError(_)),
        }
    }
}

/// What lies under a status, such as 'connection refused'; a status that came from the server has none.
fn causes(status: &tonic::Status) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

fn path(chain: &[NodeName]) -> String {
    chain.iter().map(NodeName::as_str).collect::<Vec<_>>().join(" below ")
}
