//! `banyan node …`: a file per verb.

pub(crate) mod drain;
pub(crate) mod list;
pub(crate) mod log;
pub(crate) mod move_;
pub(crate) mod run;
pub(crate) mod tree;

use crate::exit::Failure;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Runs a node until Ctrl-C; without --parent it is a root.
    Run(Box<run::Args>),
    /// Shows what a node is and what it decided; without a name the whole tree.
    Log(log::Args),
    /// Draws the whole tree with every node's load.
    Tree(tree::Args),
    /// Shows what the registry holds.
    List(list::Args),
    /// Gives a live node another parent.
    Move(move_::Args),
    /// Lets a node finish or hand over what it has, and leave.
    Drain(drain::Args),
}

/// Every verb but `run`.
pub(crate) async fn look(command: Command) -> Result<(), Failure> {
    match command {
        Command::Log(args) => log::run(args).await,
        Command::Tree(args) => tree::run(args).await,
        Command::List(args) => list::run(args).await,
        Command::Move(args) => move_::run(args).await,
        Command::Drain(args) => drain::run(args).await,
        Command::Run(_) => unreachable!("`node run` serves, and is handled where the others that serve are"),
    }
}
