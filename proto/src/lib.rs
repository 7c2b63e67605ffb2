//! The wire: generated messages and services ([`v1`]), the names and ids that are parsed once, at the door, how the
//! parts [`dial`] each other, and how a [`Transport`] knows who they are.
//!
//! Depends on nothing else of Banyan. What the messages mean is said in `proto/banyan.proto`.

mod credentials;
pub mod dial;
mod gate;
mod id;
mod identity;
mod name;
mod signed;
mod tls;
pub mod transport;

pub use credentials::{AUTHORITY_FILE, CERTIFICATE_FILE, Credentials, CredentialsError, KEY_FILE};
pub use id::{Attempt, ParseIdError, QueryId};
pub use identity::{Expected, Identity, IdentityError, Role};
pub use name::{NameError, NodeName, nearest};
pub use signed::{Signature, SignedError};
pub use transport::Transport;

/// The messages and services of `banyan.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("banyan.v1");
}

/// The protocol's file descriptors, for gRPC reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/banyan.bin"));

/// The version that nodes tell each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the names of providers' models begin with in the tree: an answer says whether one's own nodes or money made it, and a
/// query that a node has begun never goes on at a provider.
pub const PROVIDER_PREFIX: &str = "provider/";

/// The largest message that services and clients accept, in bytes: the API's body limit and room for the envelope.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
