//! A node of the tree: the rule, the links, the root's ledger, the services, and the task that drives them.
//!
//! Three rooms matter most: [`router`] (which node runs a query), [`ledger`] (what the root owes to whom), and the
//! engine's scheduler. They are pure: events in, actions out. Everything else here moves bytes for them.

pub mod bare;
pub mod capacity;
mod config;
mod core;
mod deliver;
mod inspect;
mod journal;
mod lanes;
pub mod ledger;
mod meters;
mod node;
mod rates;
mod recording;
mod returns;
pub mod router;
mod services;
mod standby;
mod translate;
mod uplink;
mod ways;

pub use config::{Config, LaneLimits, Routing, UnknownRouting};
pub use node::{Node, NodeError, StartError, turn_away};
pub use recording::{Record, Recording};
