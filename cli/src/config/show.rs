//! `banyan config show`: every setting, what it is now, and who says so.

use std::{env, path::PathBuf};

use clap::ArgAction;
use serde::Serialize;

use super::{File, Known, known, texts};
use crate::{
    exit::Failure,
    output::{self, Format},
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Shows all settings as they are here and now: a command's flags would stand above them.
    Show(Args),
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Says of each where it comes from.
    #[arg(long)]
    origin: bool,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

/// A setting, for all commands for which it is the same.
#[derive(Debug, PartialEq, Serialize)]
struct Setting {
    setting: String,
    /// Empty: not set, and there is no default.
    value: Vec<String>,
    origin: String,
    commands: Vec<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    /// Empty: there is none.
    file: &'a PathBuf,
    settings: Vec<Setting>,
}

pub(crate) fn run(command: Command, file: &File, all: &clap::Command) -> Result<(), Failure> {
    let Command::Show(args) = command;
    let settings = settings(file, all, |name| env::var(name).ok());
    match args.output {
        Format::Json => output::print_json(&Report { file: &file.path, settings }),
        Format::Table => output::print(&draw(&settings, args.origin)),
    }
}

fn settings(file: &File, all: &clap::Command, variable: impl Fn(&str) -> Option<String>) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for one in known(all) {
        let (value, origin) = value(&one, file, &variable);
        let command = if one.command.is_empty() { "all".to_owned() } else { one.command };
        match settings.iter_mut().find(|other| (&other.setting, &other.value, &other.origin) == (&one.key, &value, &origin)) {
            Some(other) => other.commands.push(command),
            None => settings.push(Setting { setting: one.key, value, origin, commands: vec![command] }),
        }
    }
    settings.sort_by(|one, other| one.setting.cmp(&other.setting));
    settings
}

fn value(one: &Known, file: &File, variable: impl Fn(&str) -> Option<String>) -> (Vec<String>, String) {
    let name = one.arg.get_env().and_then(|name| name.to_str()).unwrap_or_default();
    let hidden = |values: Vec<String>| if one.arg.is_hide_env_values_set() { vec!["(hidden)".to_owned()] } else { values };
    if let Some(value) = variable(name) {
        return (hidden(vec![value]), name.to_owned());
    }
    let path = file.path.display();
    match file.setting(Some(one.section()), &one.key) {
        Some((value, Some(table))) => (hidden(texts(value)), format!("{path} [{table}]")),
        Some((value, None)) => (hidden(texts(value)), path.to_string()),
        None if file.part(&one.key).is_some() => (vec![format!("[{}]", one.key)], path.to_string()),
        None => {
            let values = one.arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
            let is_flag = matches!(one.arg.get_action(), ArgAction::SetTrue);
            (if is_flag { vec!["false".to_owned()] } else { values }, "default".to_owned())
        }
    }
}

fn draw(settings: &[Setting], origin: bool) -> String {
    let row = |setting: &str, value: &str, from: &str, commands: &str| {
        let mut row = vec![setting.to_owned(), value.to_owned()];
        row.extend(origin.then(|| from.to_owned()));
        row.push(commands.to_owned());
        row
    };
    let mut rows = vec![row("SETTING", "VALUE", "ORIGIN", "COMMANDS")];
    for one in settings {
        let value = if one.value.is_empty() { "-".to_owned() } else { one.value.join(",") };
        rows.push(row(&one.setting, &value, &one.origin, &one.commands.join(", ")));
    }
    output::table(&rows)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn every_setting_says_where_it_comes_from() {
        let text =
            "nodes = 3\nlisten = '127.0.0.1:1'\nstore = 'postgres://me:secret@h/d'\n[api]\nlisten = '127.0.0.1:2'\n[aliases]";
        let all = Cli::command();
        let file = File::parse("banyan.toml".into(), text, &all).map_err(|failure| failure.to_string()).unwrap();
        let settings = settings(&file, &all, |name| (name == "BANYAN_NODES").then(|| "5".to_owned()));
        let of = |setting: &str, command: &str| {
            let found = settings.iter().find(|one| one.setting == setting && one.commands.iter().any(|has| has == command));
            let found = found.unwrap_or_else(|| panic!("no {setting} of {command}"));
            (found.value.join(","), found.origin.as_str())
        };
        assert_eq!(of("nodes", "up"), ("5".into(), "BANYAN_NODES"));
        assert_eq!(of("listen", "up"), ("127.0.0.1:1".into(), "banyan.toml"));
        assert_eq!(of("listen", "api run"), ("127.0.0.1:2".into(), "banyan.toml [api]"));
        assert_eq!(of("store", "up"), ("(hidden)".into(), "banyan.toml"));
        assert_eq!(of("aliases", "up"), ("[aliases]".into(), "banyan.toml"));
        assert_eq!(of("cluster", "node list"), ("default".into(), "default"));
        let text = draw(&settings, true);
        assert!(text.contains("ORIGIN") && !text.contains("secret"), "{text}");
        assert!(!draw(&settings, false).contains("ORIGIN"));
    }
}
