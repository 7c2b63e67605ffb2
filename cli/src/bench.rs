//! `banyan bench …`: measures this machine, with the parts that serve.

mod compare;
mod count;
mod engine;
mod histogram;
mod latencies;
mod limits;
mod load;
mod machine;
mod overload;
mod plot;
mod quality;
mod route;
mod served;
mod tables;
mod testbed;

use crate::exit::Failure;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// How fast the engine decodes and prefills, alone, beside what the machine could do at best.
    Engine(Box<engine::Args>),
    /// What the machine could do at best: reads of memory, and arithmetic.
    Limits(limits::Args),
    /// The case whose instructions are counted.
    #[command(hide = true)]
    Count(count::Args),
    /// How fast a running API answers many clients.
    Load(load::Args),
    /// What a tree does when more is asked than it can serve: goodput, refusals, honesty of waits, memory.
    Overload(overload::Args),
    /// What a smaller form of a model costs in quality: perplexity, and divergence from f32, on a text.
    Quality(quality::Args),
    /// What the tree costs: queries a second and added latency, with an engine that costs nothing.
    Route(route::Args),
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Engine(args) => engine::run(*args).await,
        Command::Count(args) => count::run(args).await,
        Command::Limits(args) => limits::run(args).await,
        Command::Load(args) => load::run(args).await,
        Command::Overload(args) => overload::run(args).await,
        Command::Quality(args) => quality::run(args).await,
        Command::Route(args) => route::run(args).await,
    }
}
