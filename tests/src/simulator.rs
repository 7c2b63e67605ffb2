//! Ten thousand nodes under virtual time: production's router, ledger and node task in a world of links that are slow, break
//! and come back, of processes that die, and of engines that take their time.
//!
//! What decides is production code and nothing else: every node is a [`banyan_node::bare::Bare`], its engine's steps are planned
//! by the production scheduler, and whom it attaches to is production's search. The world stands for sockets, processes,
//! clocks and clients. Everything that is left to chance comes from one seed, so a run replays exactly.

mod agenda;
mod asking;
mod attach;
mod checks;
mod client;
mod deliver;
mod engine;
mod faults;
mod figures;
mod link;
mod load;
mod node;
mod pipe;
mod registry;
mod setup;
mod shape;
mod trace;
mod wires;
mod world;

pub use client::{Client, Wish};
pub use faults::RECOVERY;
pub use figures::{Figures, Summary};
pub use load::{Lengths, Load};
pub use node::Plan;
pub use pipe::Delay;
pub use setup::Setup;
pub use shape::{balanced, scattered};
pub use world::{ROOT, SECOND, World};
