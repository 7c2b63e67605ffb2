//! `banyan`: the command line. Reads what was asked, runs it, and ends with the exit code that says how it went.
//!
//! Every command has a file of its own; what they share is how to read flags ([`args`]), how to end ([`exit`]), how to
//! write ([`output`], [`terminal`]), how to stop ([`stop`]), how to listen ([`listen`]), how to show themselves ([`observe`]), what a
//! supervisor hears ([`supervisor`]), how to find a node ([`lookout`]), and how they are described ([`help`], [`mod@reference`]). What a
//! tree is and does, the other crates know.

mod api;
mod args;
mod autoscale;
mod bench;
mod ca;
mod chat;
mod config;
mod doctor;
mod drawing;
mod exit;
mod fleet;
mod help;
mod http;
mod inference;
mod key;
mod listen;
mod lookout;
mod model;
mod node;
mod observe;
mod output;
mod reference;
mod registry;
mod stop;
mod store;
mod supervisor;
mod terminal;
mod tls;
mod up;
mod usage;
mod why;

use std::{env, path::PathBuf, process::ExitCode};

use clap::{FromArgMatches as _, Parser, Subcommand};

use crate::{exit::Failure, observe::LogArgs, stop::Stop};

/// Serves language models from a tree of inference nodes.
///
/// `banyan up` starts a whole tree in one process. Every flag can also be given as the environment variable that its help
/// names, or in `banyan.toml`; flags win over variables, and variables over the file.
#[derive(Parser)]
#[command(name = "banyan", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    /// The file of settings: by default what BANYAN_CONFIG names, or `banyan.toml` in this folder.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a whole tree in one process: registry, root, nodes, API and the chat page.
    Up(up::Args),
    /// Runs a node, or looks at those that run.
    #[command(subcommand)]
    Node(node::Command),
    /// Talks to a model in the terminal.
    Chat(chat::Args),
    /// The models on this machine.
    #[command(subcommand)]
    Model(model::Command),
    /// Shows the way a query took: attempts, hops, reasons and times.
    Why(why::Args),
    /// The HTTP API and the chat page.
    #[command(subcommand)]
    Api(api::Command),
    /// Who may ask the API, for what, and how much a minute.
    #[command(subcommand)]
    Key(key::Command),
    /// Shows who used how much of what.
    Usage(usage::Args),
    /// The embedded registry, on its own.
    #[command(subcommand)]
    Registry(registry::Command),
    /// The cluster's certificate authority, and its members' certificates.
    #[command(subcommand)]
    Ca(ca::Command),
    /// Tokens with which new members join.
    #[command(subcommand)]
    Token(ca::TokenCommand),
    /// Adds nodes where a model has too few, and drains them where it has too many.
    Autoscale(Box<autoscale::Args>),
    /// What is set for commands that are started here.
    #[command(subcommand)]
    Config(config::show::Command),
    /// Measures this machine.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Looks at everything that a tree needs, and says what to do about what is wrong.
    Doctor(doctor::Args),
    /// Prints a script with which a shell completes commands and flags.
    Completions(reference::CompletionsArgs),
    /// Prints the manual.
    Man(reference::ManArgs),
    /// Prints docs/cli.md.
    #[command(hide = true)]
    Reference,
}

fn main() -> ExitCode {
    let (file, cli) = match settled() {
        Ok(settled) => settled,
        Err(failure) => return exit::report(failure),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(Failure::from(anyhow::Error::new(error).context("failed to start the runtime"))),
    };
    let outcome = runtime.block_on(async {
        let stop = Stop::on_signals()?;
        run(cli.command, &cli.log, &file, stop).await
    });
    // A model that is being loaded when the user interrupts is not waited for.
    runtime.shutdown_background();
    outcome.map_or_else(exit::report, |()| ExitCode::SUCCESS)
}

/// What was asked, with what is set.
fn settled() -> Result<(config::File, Cli), Failure> {
    let file = config::File::find(env::args_os(), &help::command())?;
    let parsed = file.apply(help::command()).try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let mut cli = parsed.unwrap_or_else(|error| {
        if let Some(blamed) = file.blame(&error) {
            output::note(&blamed);
        }
        error.exit()
    });
    file.hand_over(&mut cli.command);
    Ok((file, cli))
}

async fn run(command: Command, log: &LogArgs, file: &config::File, stop: Stop) -> Result<(), Failure> {
    log.start(match &command {
        Command::Node(node::Command::Run(_)) | Command::Api(_) | Command::Registry(_) | Command::Ca(ca::Command::Serve(_)) => {
            "info"
        }
        _ => "warn",
    })?;
    match command {
        // These serve until they are told to stop, and then end well.
        Command::Up(args) => up::run(args, stop).await,
        Command::Node(node::Command::Run(args)) => node::run::run(*args, stop).await,
        Command::Api(api::Command::Run(args)) => api::run(args, stop).await,
        Command::Registry(registry::Command::Serve(args)) => registry::run(args, stop).await,
        Command::Ca(command) => ca::run(command, stop).await,
        Command::Autoscale(args) => autoscale::run(*args, stop).await,
        // These have an end of their own, and are interrupted before it.
        Command::Node(command) => stop.unless(node::look(command)).await,
        Command::Why(args) => stop.unless(why::run(args)).await,
        Command::Key(command) => stop.unless(key::run(command)).await,
        Command::Usage(args) => stop.unless(usage::run(args)).await,
        Command::Token(command) => stop.unless(ca::token(command)).await,
        Command::Model(command) => stop.unless(model::run(command)).await,
        Command::Config(command) => config::show::run(command, file, &help::command()),
        Command::Bench(command) => stop.unless(bench::run(command)).await,
        Command::Doctor(args) => stop.unless(doctor::run(args)).await,
        // Ctrl-C ends an answer and not the conversation, so it listens itself.
        Command::Chat(args) => chat::run(args).await,
        // These are done at once.
        Command::Completions(args) => reference::completions(&args),
        Command::Man(args) => reference::man(&args),
        Command::Reference => reference::run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_guide_is_understood() {
        for line in [
            "up",
            "up --nodes 3 --model gpt2 --listen 127.0.0.1:0 --registry-listen 127.0.0.1:0",
            "up --etcd http://127.0.0.1:2379 --engine fake",
            "node run root",
            "node run root --metrics 127.0.0.1:9600 --log info,banyan_node=debug --log-format json",
            "--log debug up --metrics 0.0.0.0:9600",
            "node run a --parent root --etcd http://10.0.0.1:2379,http://10.0.0.2:2379 --listen 0.0.0.0:7600",
            "node run a --parent root --advertise a.local:7600 --dtype q8 --device cuda:1 --busy-at auto --routing classic",
            "node run a --parent root --engine fake --parent-timeout 500ms --batch 8 --threads 2",
            "up --batch auto --busy-at 4",
            "node log",
            "node log a --follow --last 5 -o json",
            "node tree --watch",
            "node list -o name",
            "node move a --parent b",
            "node drain a --deadline 5s -o json",
            "node run a --parent root --drain 10s",
            "why chatcmpl-0123",
            "api run --etcd http://127.0.0.1:2379 --listen 127.0.0.1:8080",
            "api run --store postgres://banyan@localhost/banyan --listen 0.0.0.0:8080 --open --replica a --host chat.example.com --chat-idle 5m",
            "up --store memory",
            "key create --name me --rpm 60 --tpm 10000 --models gpt2,tiny --store keys.db",
            "key list -o name",
            "key revoke me",
            "key rotate me --grace 1h -o json",
            "usage --from 2026-11-01 --to 2026-11-20 --key me -o csv",
            "usage --requests 20",
            "registry serve --listen 127.0.0.1:2379 --file registry.json",
            "registry serve --listen 0.0.0.0:2379 --tls-dir tls",
            "ca init --dir ca --cluster prod",
            "ca serve --dir ca --listen 0.0.0.0:7599 --advertise ca.local:7599 --etcd https://10.0.0.1:2379 --valid 24h",
            "ca join a --dir tls --token-file -",
            "ca issue --dir ca --name api-1 --role api --out tls --host chat.example.com,10.0.0.7 --valid 48h",
            "api run --tls-cert api.crt --tls-key api.key --tls-dir tls --etcd https://10.0.0.1:2379",
            "up --tls-cert api.crt --tls-key api.key",
            "ca revoke a --role node --dir ca --etcd http://127.0.0.1:2379",
            "token create --dir ca --role root --name root",
            "node run a --parent root --listen 0.0.0.0:7600 --tls-dir tls --join-token-file token",
            "node run a --parent root --listen 0.0.0.0:7600 --insecure",
            "node tree --etcd https://10.0.0.1:2379 --etcd-ca ca.crt --etcd-cert tls.crt --etcd-key tls.key --tls-dir tls",
            "up --config banyan.toml --log-texts",
            "config show --origin -o json",
            "bench route --depth 1 --depth 2 -o json",
            "bench route --compare classic",
            "bench engine --random --dtype q8 --batch 1,8 -o json",
            "bench engine --random gpt2-large --dtype f32,q8 --threads 1,2 --profile --first-token 512",
            "bench engine --random --http --plot engine.svg",
            "bench limits --threads 1",
            "bench quality --model banyan-tiny --dtype q8,q4 --text story.txt --window 512 -o json",
            "autoscale --model gpt2 --min 1 --max 9 --prefix g --up true --down false --high 0.9 --low 0.2 --cooldown 1m --drain 9s",
            "chat --model gpt2 --url http://127.0.0.1:8080 --system brief --max-tokens 20 --temperature 0",
            "model pull owner/name@v1 -o json",
            "model import ./folder --name mine",
            "model list -o name",
            "model verify gpt2",
            "model rm gpt2",
            "doctor --model gpt2 -o json",
            "completions zsh",
            "man --to pages",
            "bench load --url http://127.0.0.1:8080 --concurrency 64 --endpoint completions -o json",
        ] {
            let words = ["banyan"].into_iter().chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "",
            "up --nodes 0",
            "node run",
            "node run A",
            "node run a --parent a/b",
            "node run a --parent b --busy-at 0",
            "node run a --routing random",
            "node run a --device tpu",
            "node run a --parent-timeout soon",
            "node run a --listen nowhere",
            "node log --follow",
            "node list -o xml",
            "node list --log-format xml",
            "up --metrics nowhere",
            "node move a",
            "why",
            "why chatcmpl-",
            "why roots",
            "key create",
            "key create --name me --rpm 0",
            "key rotate",
            "usage --from yesterday",
            "usage --from 2026-11-01 --requests 5",
            "up --store mysql://localhost",
            "completions tcsh-or-so",
            "autoscale --model gpt2 --max 2",
            "autoscale --model gpt2 --up true --max 2 --high 1.5",
            "model rm",
            "bench route --depth 0",
            "ca issue --dir ca --name a --role king --out tls",
            "ca issue --dir ca --name a --role authority --out tls",
            "node tree --etcd-cert tls.crt",
            "api run --tls-cert api.crt",
            "node run a --join-token banyan-join-x",
            "bench route --compare weighted",
        ] {
            let words = ["banyan"].into_iter().chain(line.split(' ').filter(|word| !word.is_empty()));
            let Err(error) = Cli::try_parse_from(words) else { panic!("{line:?} was accepted") };
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
