//! `banyan.toml`: settings that stand between variables and defaults.
//!
//! A setting is called as its variable is: what BANYAN_NODES says, `nodes` says. On top of the file it is every command's that has
//! it; in a table with a command's first word, such as `[api]`, that command's alone. `[aliases]` and `[providers]` are what the
//! files of these flags hold. How it comes to the flags: as their defaults.

pub(crate) mod show;

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    fs, io,
    path::PathBuf,
};

use banyan_proto::nearest;
use clap::{Arg, ArgAction, Command, error::ContextKind, error::ContextValue};
use toml::{Table, Value};

use crate::{
    api,
    exit::{Code, Failure},
    node,
};

/// Looked for in the folder that a command is started in.
const NAME: &str = "banyan.toml";
const VARIABLE: &str = "BANYAN_CONFIG";
const FLAG: &str = "--config";
/// Tables that are no command's.
const TABLES: [&str; 2] = ["aliases", "providers"];

/// What is set for all that is started here; empty where there is no file.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    table: Table,
}

/// A table of a file, and where that lies: what it refers to is found beside it.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    pub(crate) table: Table,
}

/// A setting that some command has.
struct Known<'a> {
    /// The command's words; none of what stands before all of them.
    command: String,
    key: String,
    arg: &'a Arg,
}

impl File {
    /// Reads the file that the command line or the environment names, or the one in this folder, and checks that commands know its
    /// settings.
    pub(crate) fn find(words: impl IntoIterator<Item = OsString>, command: &Command) -> Result<File, Failure> {
        let named = flag(words).or_else(|| env::var_os(VARIABLE));
        // Set to nothing, it stands for no file.
        if named.as_deref().is_some_and(OsStr::is_empty) {
            return Ok(File::default());
        }
        let path = named.as_ref().map_or_else(|| NAME.into(), PathBuf::from);
        match fs::read_to_string(&path) {
            Ok(text) => File::parse(path, &text, command),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(File::default()),
            Err(error) => {
                let failure = anyhow::Error::new(error).context(format!("failed to read the settings in {}", path.display()));
                Err(Failure::new(Code::Usage, failure).hint(format!("name another file with `{FLAG} FILE`")))
            }
        }
    }

    fn parse(path: PathBuf, text: &str, command: &Command) -> Result<File, Failure> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            Failure::new(Code::Usage, anyhow::Error::new(error).context(format!("{} is no TOML", path.display())))
        })?;
        let file = File { path, table };
        file.check(command).map_err(|message| {
            Failure::told(Code::Usage, format!("in {}: {message}", file.path.display()))
                .hint("`banyan config show` lists all settings")
        })?;
        Ok(file)
    }

    fn check(&self, command: &Command) -> Result<(), String> {
        let known = known(command);
        let sections: BTreeSet<&str> = known.iter().map(Known::section).filter(|section| !section.is_empty()).collect();
        for (key, value) in &self.table {
            match value {
                Value::Table(_) if TABLES.contains(&key.as_str()) => {}
                Value::Table(table) if sections.contains(key.as_str()) => {
                    for (inner, value) in table {
                        let here = known.iter().filter(|one| one.section() == key);
                        one(inner, value, here, &format!("[{key}] "))?;
                    }
                }
                Value::Table(_) => {
                    let tables = sections.iter().copied().chain(TABLES);
                    return Err(format!(
                        "there is no table [{key}]{}",
                        did_you_mean(key, tables.clone(), || {
                            format!(": there are {}", tables.map(|name| format!("[{name}]")).collect::<Vec<_>>().join(", "))
                        })
                    ));
                }
                value => one(key, value, known.iter(), "")?,
            }
        }
        Ok(())
    }

    /// A command that has what is set as its defaults.
    pub(crate) fn apply(&self, command: Command) -> Command {
        self.apply_to(command, None)
    }

    fn apply_to(&self, mut command: Command, section: Option<&str>) -> Command {
        let set = |arg: &Arg| Some((arg.get_id().clone(), texts(self.setting(section, &key(arg)?)?.0)));
        let set: Vec<_> = command.get_arguments().filter_map(set).collect();
        for (id, texts) in set {
            // Clap's defaults live as long as the program, as these do.
            let texts: Vec<&'static str> = texts.into_iter().map(|text| &*text.leak()).collect();
            command = command.mut_arg(id, |arg| match (arg.get_action(), &texts[..]) {
                (ArgAction::SetTrue, ["false"]) => arg,
                _ => arg.default_values(texts).required(false),
            });
        }
        let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in names {
            command = command.mut_subcommand(&name, |sub| self.apply_to(sub, section.or(Some(&name))));
        }
        command
    }

    /// What a command's setting is here, and in which table.
    fn setting(&self, section: Option<&str>, key: &str) -> Option<(&Value, Option<&str>)> {
        let own = section.and_then(|section| Some((section, self.table.get(section)?.as_table()?.get(key)?)));
        match own {
            Some((section, value)) => Some((value, self.table.get_key_value(section).map(|(name, _)| name.as_str()))),
            None => self.table.get(key).filter(|value| !value.is_table()).map(|value| (value, None)),
        }
    }

    fn part(&self, name: &str) -> Option<Part> {
        let table = self.table.get(name)?.as_table()?.clone();
        Some(Part { path: self.path.clone(), table })
    }

    /// Gives a command the tables that it has a use for.
    pub(crate) fn hand_over(&self, command: &mut crate::Command) {
        let (aliases, providers) = (self.part("aliases"), self.part("providers"));
        match command {
            crate::Command::Up(args) => {
                args.serving.aliases.table = aliases;
                args.inference.providers_table = providers;
            }
            crate::Command::Node(node::Command::Run(args)) => args.inference.providers_table = providers,
            crate::Command::Api(api::Command::Run(args)) => args.serving.aliases.table = aliases,
            _ => {}
        }
    }

    /// Says of a wrong value that it stands in the file, where it does.
    pub(crate) fn blame(&self, error: &clap::Error) -> Option<String> {
        let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
        let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
        let name = flag.split_whitespace().next()?.trim_start_matches('-');
        let typed = env::args().any(|word| word == *value || word.split_once('=').is_some_and(|(_, typed)| typed == value));
        let tables = std::iter::once(&self.table).chain(self.table.values().filter_map(Value::as_table));
        let here = tables.flatten().any(|(_, set)| texts(set).contains(value));
        (here && !typed).then(|| format!("`{name}` has this value in {}", self.path.display()))
    }
}

impl Known<'_> {
    /// The table that is this command's alone.
    fn section(&self) -> &str {
        self.command.split(' ').next().unwrap_or_default()
    }
}

/// The word behind `--config`, wherever it stands.
fn flag(words: impl IntoIterator<Item = OsString>) -> Option<OsString> {
    let mut words = words.into_iter().skip(1).take_while(|word| word != "--");
    while let Some(word) = words.next() {
        if word == FLAG {
            return words.next();
        }
        if let Some(path) = word.to_str().and_then(|word| word.strip_prefix(FLAG)?.strip_prefix('=')) {
            return Some(path.into());
        }
    }
    None
}

/// The setting that a flag is.
fn key(arg: &Arg) -> Option<String> {
    Some(arg.get_env()?.to_str()?.strip_prefix("BANYAN_")?.to_ascii_lowercase())
}

fn known(command: &Command) -> Vec<Known<'_>> {
    fn walk<'a>(command: &'a Command, path: &str, known: &mut Vec<Known<'a>>) {
        let of = |arg| Some(Known { command: path.to_owned(), key: key(arg)?, arg });
        known.extend(command.get_arguments().filter_map(of));
        for sub in command.get_subcommands() {
            walk(sub, format!("{path} {}", sub.get_name()).trim_start(), known);
        }
    }
    let mut all = Vec::new();
    walk(command, "", &mut all);
    all
}

/// Checks one setting of the commands that stand for it.
fn one<'a>(key: &str, value: &Value, known: impl Iterator<Item = &'a Known<'a>> + Clone, place: &str) -> Result<(), String> {
    let Some(found) = known.clone().find(|one| one.key == key) else {
        let keys: BTreeSet<&str> = known.map(|one| one.key.as_str()).collect();
        return Err(format!("{place}there is no setting `{key}`{}", did_you_mean(key, keys, String::new)));
    };
    let is_list = matches!(found.arg.get_action(), ArgAction::Append) || found.arg.get_value_delimiter().is_some();
    let is_flag = matches!(found.arg.get_action(), ArgAction::SetTrue);
    let plain = |value: &Value| matches!(value, Value::String(_) | Value::Integer(_) | Value::Float(_));
    match value {
        Value::Boolean(_) if is_flag => Ok(()),
        _ if is_flag => Err(format!("{place}`{key}` must be true or false")),
        Value::Array(values) if is_list && !values.is_empty() && values.iter().all(plain) => Ok(()),
        value if plain(value) => Ok(()),
        _ if is_list => Err(format!("{place}`{key}` must be a text, or a list of texts")),
        _ => Err(format!("{place}`{key}` must be a text or a number")),
    }
}

fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>, otherwise: impl FnOnce() -> String) -> String {
    match &nearest(typed, known)[..] {
        [] => otherwise(),
        near => format!(": did you mean {}?", near.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// As a flag's values are typed.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Integer(number) => vec![number.to_string()],
        Value::Float(number) => vec![number.to_string()],
        Value::Boolean(yes) => vec![yes.to_string()],
        Value::Datetime(_) | Value::Table(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _};

    use super::*;
    use crate::Cli;

    fn file(text: &str) -> Result<File, String> {
        File::parse(NAME.into(), text, &Cli::command()).map_err(|failure| failure.to_string())
    }

    fn parsed(text: &str, line: &str) -> crate::Command {
        let file = file(text).unwrap();
        let words = std::iter::once("banyan").chain(line.split(' '));
        let matches = file.apply(Cli::command()).try_get_matches_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut cli = Cli::from_arg_matches(&matches).unwrap();
        file.hand_over(&mut cli.command);
        cli.command
    }

    #[test]
    fn what_is_set_stands_behind_flags_and_before_defaults() {
        let text = "nodes = 3\nlisten = '127.0.0.1:1'\nmodel = ['a', 'b']\nopen = true\n[api]\nlisten = '127.0.0.1:2'\n\
                    [aliases]\nfast = ['a', 'b']";
        let crate::Command::Up(up) = parsed(text, "up") else { panic!("another command") };
        assert_eq!((up.nodes, up.listen.as_str(), up.serving.open), (3, "127.0.0.1:1", true));
        assert!(up.inference.names_a_model() && up.serving.aliases.table.is_some());
        assert!(up.serving.aliases.read().is_ok());
        let crate::Command::Up(up) = parsed(text, "up --nodes 4") else { panic!("another command") };
        assert_eq!(up.nodes, 4);
        let crate::Command::Api(api::Command::Run(api)) = parsed(text, "api run") else { panic!("another command") };
        assert_eq!(api.listen, "127.0.0.1:2");
        let crate::Command::Node(node::Command::Run(node)) = parsed("[node]\nname = 'a'\nparent = 'root'", "node run") else {
            panic!("another command")
        };
        assert_eq!((node.name.to_string(), node.parent.map(|parent| parent.to_string())), ("a".into(), Some("root".into())));
        let crate::Command::Up(up) = parsed("open = false", "up") else { panic!("another command") };
        assert!(!up.serving.open);
    }

    #[test]
    fn what_nobody_knows_is_refused_with_the_nearest_name() {
        for (text, told) in [
            ("lisen = '127.0.0.1:1'", "there is no setting `lisen`: did you mean `listen`?"),
            ("[api]\nnodes = 3", "[api] there is no setting `nodes`"),
            ("[apis]\nlisten = 'x'", "there is no table [apis]: did you mean `api`?"),
            ("nodes = [1, 2]", "`nodes` must be a text or a number"),
            ("open = 'yes'", "`open` must be true or false"),
            ("model = [[1]]", "`model` must be a text, or a list of texts"),
            ("nodes = ", "is no TOML"),
        ] {
            let error = file(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn a_wrong_value_is_told_with_its_file() {
        let file = file("nodes = 0").unwrap();
        let error = file.apply(Cli::command()).try_get_matches_from(["banyan", "up"]).unwrap_err();
        assert_eq!(file.blame(&error).as_deref(), Some("`nodes` has this value in banyan.toml"));
    }

    #[test]
    fn the_file_is_named_by_a_flag() {
        let words = |line: &str| flag(line.split(' ').map(OsString::from));
        assert_eq!(words("banyan up --config a.toml --nodes 2"), Some("a.toml".into()));
        assert_eq!(words("banyan --config=b.toml up"), Some("b.toml".into()));
        assert_eq!((words("banyan up"), words("banyan why -- --config x")), (None, None));
    }

    #[test]
    fn every_setting_is_one_word_for_one_thing() {
        let command = Cli::command();
        let all = known(&command);
        assert!(all.len() > 30 && all.iter().all(|one| !TABLES.contains(&one.section())));
    }
}
