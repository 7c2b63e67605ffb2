//! `banyan model …`: the models on this machine. They lie in the cache that all Hugging Face tools share.

use std::path::PathBuf;

use banyan_engine::{Cached, Folder, Hub, Progress, ResolveError, Source, Verdict};
use serde::Serialize;

use crate::{
    exit::{Code, Failure},
    inference,
    output::{self, Format, ListFormat},
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Fetches a model from the hub, and checks it; what is there already is only checked.
    Pull(PullArgs),
    /// Copies a folder or a .gguf file of this machine into the cache, with checksums, as local/NAME.
    Import(ImportArgs),
    /// Lists the models in the cache.
    List(ListArgs),
    /// Reads models again, and compares every file with the checksum that it came with.
    Verify(VerifyArgs),
    /// Removes a model from the cache, with all its revisions.
    Rm(RmArgs),
}

#[derive(clap::Args)]
pub(crate) struct PullArgs {
    /// owner/name, owner/name@revision, owner/name/file.gguf, or gpt2 and its sizes.
    #[arg(value_name = "MODEL")]
    model: String,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

#[derive(clap::Args)]
pub(crate) struct ImportArgs {
    /// A folder in Hugging Face layout, or a .gguf file.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// What to call it; by default as its folder or file is called.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: ListFormat,
}

#[derive(clap::Args)]
pub(crate) struct VerifyArgs {
    /// As `banyan model list` calls it; without it, all.
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

#[derive(clap::Args)]
pub(crate) struct RmArgs {
    /// As `banyan model list` calls it.
    #[arg(value_name = "MODEL")]
    model: String,
}

/// A model of the cache, for programs.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    commit: &'a str,
    bytes: u64,
    whole: bool,
}

/// A file that was read again, for programs.
#[derive(Serialize)]
struct Looked {
    model: String,
    file: String,
    verdict: &'static str,
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    // Files are read and fetched for as long as that takes, and Ctrl-C is not to wait for it.
    let working = tokio::task::spawn_blocking(move || match command {
        Command::Pull(args) => pull(&args),
        Command::Import(args) => import(&args),
        Command::List(args) => list(args.output),
        Command::Verify(args) => verify(&args),
        Command::Rm(args) => rm(&args.model),
    });
    working.await.map_err(|error| anyhow::Error::new(error).context("looking after models failed"))?
}

fn pull(args: &PullArgs) -> Result<(), Failure> {
    let source = inference::find(Some(&args.model))?;
    let path = match source.folder() {
        Folder::Bundled => None,
        Folder::Disk(path) | Folder::Gguf(path) => Some(path.display().to_string()),
    };
    match args.output {
        Format::Json => output::print_json(&serde_json::json!({ "model": args.model, "name": source.name(), "path": path })),
        Format::Table => {
            output::note(&format!("{} is here, and whole; `banyan up --model {0}` serves it", args.model));
            output::print(path.as_deref().unwrap_or("(in this program)"))
        }
    }
}

fn import(args: &ImportArgs) -> Result<(), Failure> {
    let imported = Hub::from_env().import(&args.path, args.name.as_deref(), &Progress::stderr()).map_err(failure)?;
    match args.output {
        Format::Json => output::print_json(&listed(&imported)),
        Format::Table => {
            output::note(&format!("`banyan up --model {}` serves it", imported.name));
            output::print(&imported.name)
        }
    }
}

fn list(format: ListFormat) -> Result<(), Failure> {
    let hub = Hub::from_env();
    let cached = hub.cached().map_err(failure)?;
    match format {
        ListFormat::Json => output::print_json(&cached.iter().map(listed).collect::<Vec<_>>()),
        ListFormat::Name => {
            let names: Vec<&str> = cached.iter().map(|model| model.name.as_str()).collect();
            if names.is_empty() { Ok(()) } else { output::print(&names.join("\n")) }
        }
        ListFormat::Table if cached.is_empty() => {
            output::note(&format!(
                "there is no model in {}; `banyan model pull gpt2` fetches one, and banyan-tiny is in this program",
                hub.cache.display()
            ));
            Ok(())
        }
        ListFormat::Table => {
            let mut rows = vec![["MODEL", "SIZE", "STATE", "REVISION"].map(str::to_owned).to_vec()];
            rows.extend(cached.iter().map(|model| {
                let state = if model.whole { "whole" } else { "incomplete" };
                vec![model.name.clone(), output::bytes(model.bytes), state.to_owned(), model.commit[..12].to_owned()]
            }));
            output::print(&output::table(&rows))
        }
    }
}

fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let hub = Hub::from_env();
    let models = match &args.model {
        Some(name) => vec![named(&hub, name)?],
        None => hub.cached().map_err(failure)?,
    };
    let mut looked = Vec::new();
    for model in &models {
        let checked = hub.verify(model, &Progress::stderr()).map_err(failure)?;
        looked.extend(checked.into_iter().map(|checked| Looked {
            model: model.name.clone(),
            file: checked.file,
            verdict: match checked.verdict {
                Verdict::Good => "good",
                Verdict::Damaged => "damaged",
                Verdict::Unknown => "unknown",
            },
        }));
    }
    match args.output {
        Format::Json => output::print_json(&looked)?,
        Format::Table => {
            let mut rows = vec![["MODEL", "FILE", "VERDICT"].map(str::to_owned).to_vec()];
            rows.extend(looked.iter().map(|one| vec![one.model.clone(), one.file.clone(), one.verdict.to_owned()]));
            output::print(&output::table(&rows))?;
        }
    }
    match looked.iter().find(|one| one.verdict == "damaged") {
        None => Ok(()),
        Some(damaged) => {
            Err(Failure::told(Code::Error, format!("{} of {} is damaged", damaged.file, damaged.model)).hint(format!(
                "`banyan model pull {}` fetches it again; what was imported, `banyan model rm` and `banyan model import` renew",
                damaged.model
            )))
        }
    }
}

fn rm(name: &str) -> Result<(), Failure> {
    let hub = Hub::from_env();
    let model = named(&hub, name)?;
    let bytes = hub.remove(&model).map_err(failure)?;
    output::note(&format!("{name} is gone, and {} are free", output::bytes(bytes)));
    Ok(())
}

/// The model of that name, as the list and `--model` call it.
fn named(hub: &Hub, name: &str) -> Result<Cached, Failure> {
    let cached = hub.cached().map_err(failure)?;
    // What people type for gpt2 has an owner as well.
    let long = Source::full_name(name);
    let known: Vec<String> = cached.iter().map(|model| model.name.clone()).collect();
    cached.into_iter().find(|model| model.name == long).ok_or_else(|| {
        let near = banyan_proto::nearest(name, known.iter().map(String::as_str));
        let hint = match near.first() {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`banyan model list` shows what is there".to_owned(),
        };
        Failure::told(Code::NotFound, format!("no model in the cache is called `{name}`")).hint(hint)
    })
}

fn listed(model: &Cached) -> Listed<'_> {
    Listed { name: &model.name, commit: &model.commit, bytes: model.bytes, whole: model.whole }
}

fn failure(error: ResolveError) -> Failure {
    let code = match error {
        ResolveError::Taken { .. } => Code::Conflict,
        ResolveError::Cache { .. } => Code::Error,
        ResolveError::Name { .. } => Code::Usage,
        _ => Code::NotFound,
    };
    Failure::new(code, error)
}
