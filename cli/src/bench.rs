//! `banyan bench …`: measures this machine, with the parts that serve.

mod compare;
mod engine;
mod latencies;
mod route;
mod testbed;

use crate::exit::Failure;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// How fast the engine decodes and prefills, alone.
    Engine(engine::Args),
    /// What the tree costs: queries a second and added latency, with an engine that costs nothing.
    Route(route::Args),
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Engine(args) => engine::run(args).await,
        Command::Route(args) => route::run(args).await,
    }
}
