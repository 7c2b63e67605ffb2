//! `banyan reference`: docs/cli.md, made from the command line itself; and `banyan completions` and `banyan man`, made the same way.

use std::{io, path::PathBuf};

use clap::{Arg, ArgAction, Command, builder::StyledStr};
use clap_complete::Shell;

use crate::{exit::Failure, help, output};

/// What stands before the commands in docs/cli.md.
const PREAMBLE: &str = "\
# The command line

Made from the program by `cargo run --release -- reference > docs/cli.md`; a test compares.

Flags win over environment variables, and those over defaults. Data goes to standard output, everything else to standard
error. `NO_COLOR` switches colours off; off a terminal there are none, and no progress bars.

| exit code | what it means |
|---|---|
| 0 | done |
| 1 | failed; the line on standard error says why, and what to try |
| 2 | the command line makes no sense |
| 3 | no such node, query, key or model |
| 4 | a name, a port or a place is taken |
| 5 | the registry, the tree or the API can't be reached |
| 6 | it took too long |
| 130 | interrupted |
";

#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// For which shell.
    #[arg(value_name = "SHELL", value_parser = clap::value_parser!(Shell))]
    shell: Shell,
}

#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// Writes a page for each command into this folder, instead of the first page to standard output.
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
}

/// `banyan completions SHELL`.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut help::command(), "banyan", &mut script);
    Ok(io::Write::write_all(&mut io::stdout().lock(), &script)?)
}

/// `banyan man`.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut command = help::command();
    command.build();
    let Some(folder) = &args.to else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return Ok(io::Write::write_all(&mut io::stdout().lock(), &page)?);
    };
    let failed = |error| anyhow::Error::new(error).context(format!("failed to write man pages to {}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(command, folder).map_err(failed)?;
    output::note(&format!("`man -l {}` reads the first of them", folder.join("banyan.1").display()));
    Ok(())
}

/// `banyan reference`.
pub(crate) fn run() -> Result<(), Failure> {
    output::print(&reference())
}

/// docs/cli.md.
fn reference() -> String {
    let mut text = PREAMBLE.to_owned();
    let mut command = help::command();
    command.build();
    let everywhere: Vec<String> = command.get_arguments().filter(|arg| arg.is_global_set()).map(describe).collect();
    if !everywhere.is_empty() {
        text.push_str(&format!("\nEvery command takes:\n\n{}\n", everywhere.join("\n")));
    }
    for (path, command) in help::every(&command) {
        if path.is_empty() || path == "help" || path.ends_with(" help") {
            continue;
        }
        let level = "#".repeat(1 + path.split(' ').count().min(2));
        text.push_str(&format!("\n{level} banyan {path}\n\n{}\n", about(command)));
        if command.has_subcommands() {
            continue;
        }
        text.push_str(&format!("\n```\nbanyan {path}{}\n```\n", usage(command)));
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_global_set() && !is_everywhere(arg));
        let described: Vec<String> = shown.map(describe).collect();
        if !described.is_empty() {
            text.push_str(&format!("\n{}\n", described.join("\n")));
        }
        if let Some(examples) = help::examples(&path) {
            text.push_str(&format!("\nExamples:\n\n```sh\n{examples}\n```\n"));
        }
    }
    text
}

fn about(command: &Command) -> String {
    let about = command.get_long_about().or(command.get_about());
    about.map(StyledStr::to_string).unwrap_or_default()
}

/// `--help` and `--version`.
fn is_everywhere(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version)
}

/// What must be given, and that there is more.
fn usage(command: &Command) -> String {
    let mut usage = String::new();
    if command.get_opts().next().is_some() {
        usage.push_str(" [OPTIONS]");
    }
    for arg in command.get_arguments().filter(|arg| arg.is_required_set() && !arg.is_positional()) {
        usage.push_str(&format!(" {}", flag(arg)));
    }
    for arg in command.get_positionals() {
        let name = value(arg);
        usage.push_str(&if arg.is_required_set() { format!(" <{name}>") } else { format!(" [{name}]") });
    }
    usage
}

fn value(arg: &Arg) -> String {
    let names: Vec<&str> = arg.get_value_names().into_iter().flatten().map(|name| name.as_str()).collect();
    if names.is_empty() { arg.get_id().as_str().to_uppercase() } else { names.join(" ") }
}

fn flag(arg: &Arg) -> String {
    let takes = arg.get_action().takes_values();
    let value = if takes { format!(" {}", value(arg)) } else { String::new() };
    let long = arg.get_long().map(|long| format!("--{long}"));
    let names: Vec<String> = arg.get_short().map(|short| format!("-{short}")).into_iter().chain(long).collect();
    if names.is_empty() { value.trim().to_owned() } else { format!("{}{value}", names.join(", ")) }
}

/// An argument in a line: its flag, what it is for, and where else it comes from.
fn describe(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(StyledStr::to_string).unwrap_or_default();
    let mut facts = Vec::new();
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if arg.get_action().takes_values() {
        let choices: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| value.get_name().to_owned())
            .collect();
        if !choices.is_empty() {
            facts.push(choices.join(", "));
        }
        if !defaults.is_empty() {
            facts.push(format!("default `{}`", defaults.join(",")));
        }
    }
    if let Some(env) = arg.get_env() {
        facts.push(format!("`{}`", env.to_string_lossy()));
    }
    let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join("; ")) };
    format!("- `{}`: {}{facts}", flag(arg), help.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_the_docs_is_that_of_this_program() {
        let written = include_str!("../../docs/cli.md");
        assert!(written == reference(), "docs/cli.md is old: `cargo run --release -- reference > docs/cli.md` makes it new");
    }

    #[test]
    fn every_shell_gets_a_script_and_every_command_a_page() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut help::command(), "banyan", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("parent-timeout"), "{shell}");
        }
        let folder = tempfile::tempdir().unwrap();
        man(&ManArgs { to: Some(folder.path().to_owned()) }).unwrap();
        let page = std::fs::read_to_string(folder.path().join("banyan-node-run.1")).unwrap();
        assert!(page.contains("Examples") && page.contains("banyan node run root"), "{page}");
    }
}
