//! The node's gRPC services: each turns the wire into our types, tells the node's task, and turns the answer back.

mod inspect;
mod root;
mod tree;

pub(crate) use self::{inspect::InspectService, root::RootService, tree::TreeService};
