//! `banyan key`: who may ask the API, for what, and how much a minute.

use std::time::Duration;

use banyan_store::{Key, NewKey, day_of};
use serde::Serialize;

use crate::{
    args,
    exit::Failure,
    output::{self, Format, ListFormat},
    store::StoreArgs,
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Makes a key, and prints its secret: it is shown this once only.
    Create(CreateArgs),
    /// Lists the keys.
    List(ListArgs),
    /// Ends a key; APIs refuse it within a second.
    Revoke(NameArgs),
    /// Gives a key another secret; history, usage and limits stay.
    Rotate(RotateArgs),
}

#[derive(clap::Args)]
pub(crate) struct CreateArgs {
    /// What people call it.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Requests a minute; without it, any number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rpm: Option<u32>,
    /// Tokens a minute, of prompts and answers together; without it, any number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tpm: Option<u32>,
    /// The models that it may ask for; without it, all.
    #[arg(long, value_name = "MODEL", value_delimiter = ',')]
    models: Vec<String>,
    /// It may drain and move nodes, read their logs, and see everybody's keys and usage.
    #[arg(long)]
    operator: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

#[derive(clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: ListFormat,
}

#[derive(clap::Args)]
pub(crate) struct NameArgs {
    /// The key's name, or its id.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(clap::Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    key: NameArgs,
    /// How long the former secret stays good.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = args::duration)]
    grace: Duration,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

/// A key with its secret, for programs.
#[derive(Serialize)]
struct Made<'a> {
    secret: &'a str,
    #[serde(flatten)]
    key: &'a Key,
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => {
            let new = NewKey {
                name: args.name,
                models: args.models,
                requests_per_minute: args.rpm,
                tokens_per_minute: args.tpm,
                operator: args.operator,
            };
            let (key, secret) = args.store.open().await?.create_key(new).await?;
            show(&key, secret.reveal(), args.output)
        }
        Command::List(args) => list(&args.store.open().await?.list_keys().await?, args.output),
        Command::Revoke(args) => {
            let key = args.store.open().await?.revoke_key(&args.name).await?;
            output::note(&format!("the key `{}` is no longer good", key.name));
            Ok(())
        }
        Command::Rotate(args) => {
            let (key, secret) = args.key.store.open().await?.rotate_key(&args.key.name, args.grace).await?;
            show(&key, secret.reveal(), args.output)
        }
    }
}

fn show(key: &Key, secret: &str, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::print_json(&Made { secret, key }),
        Format::Table => {
            output::note(&format!("the secret of `{}`, shown this once only:", key.name));
            output::print(secret)
        }
    }
}

fn list(keys: &[Key], format: ListFormat) -> Result<(), Failure> {
    match format {
        ListFormat::Json => output::print_json(&keys),
        ListFormat::Name => {
            let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
            if names.is_empty() { Ok(()) } else { output::print(&names.join("\n")) }
        }
        ListFormat::Table if keys.is_empty() => {
            output::note("there is no key; `banyan key create --name NAME` makes one, and then every request needs one");
            Ok(())
        }
        ListFormat::Table => output::print(&draw(keys)),
    }
}

fn draw(keys: &[Key]) -> String {
    let limit = |limit: Option<u32>| limit.map_or("-".to_owned(), |limit| limit.to_string());
    let mut rows = vec![["NAME", "SECRET", "STATE", "RPM", "TPM", "MODELS", "CREATED", "ID"].map(str::to_owned).to_vec()];
    for key in keys {
        rows.push(vec![
            key.name.clone(),
            key.shown.clone(),
            match key {
                Key { revoked_ms: Some(_), .. } => "revoked",
                Key { operator: true, .. } => "operator",
                _ => "good",
            }
            .to_owned(),
            limit(key.requests_per_minute),
            limit(key.tokens_per_minute),
            if key.models.is_empty() { "all".to_owned() } else { key.models.join(",") },
            day_of(key.created_ms),
            key.id.clone(),
        ]);
    }
    output::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_drawn_without_their_secrets() {
        let key = Key {
            id: "key_1".into(),
            name: "me".into(),
            shown: "sk-banyan-12ab…".into(),
            models: vec!["gpt2".into(), "tiny".into()],
            requests_per_minute: Some(60),
            tokens_per_minute: None,
            operator: false,
            created_ms: 0,
            revoked_ms: Some(1),
        };
        let expected = "\
NAME  SECRET           STATE    RPM  TPM  MODELS     CREATED     ID
me    sk-banyan-12ab…  revoked  60   -    gpt2,tiny  1970-01-01  key_1
";
        assert_eq!(draw(&[key]), expected);
    }
}
