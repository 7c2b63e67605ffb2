//! Who is in the tree: the [`Registry`] over etcd v3, and an [`embedded`] server that speaks the same protocol.
//!
//! A node registers a [`Member`] under a name and holds the name by a lease; everyone else sees the [`View`]. The registry
//! says who wants to be where. Who is linked to whom, and how busy anybody is, is between the nodes.

mod backoff;
pub mod embedded;
mod enrol;
mod error;
mod keeper;
mod keys;
mod lease;
mod member;
mod registration;
mod registry;
mod tokens;
mod view;
mod watcher;

pub use error::{CallError, ConnectError, MoveError, ReadError, RegisterError, ReignError};
pub use member::{Member, MemberError, Model, Policy, Role, StandIn};
pub use registration::Registration;
pub use registry::{Config, Registry, Tls};
pub use tokens::Redeemed;
pub use view::{Root, View};
