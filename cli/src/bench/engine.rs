//! `banyan bench engine`: how fast the engine decodes and prefills here, and how near that is to the machine's limits.
//!
//! Several dtypes or numbers of threads are measured one after the other, each in a process of its own, so that each one's
//! memory is its own.

use std::{fs, path::PathBuf, process::Stdio, sync::Arc};

use anyhow::Context as _;
use banyan_engine::{
    DeviceChoice, Dtype, Engine, KvDtype, Model, Options, RandomShape,
    bench::{self, Plan, Report},
    threads,
};
use serde::{Deserialize, Serialize};

use crate::{
    args,
    bench::{
        load::{self, Endpoint, Objective, Pace},
        machine::Machine,
        plot,
        served::Served,
        tables,
    },
    exit::{Code, Failure},
    inference::ModelArgs,
    output::{self, Format},
};

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// A folder in Hugging Face layout, a .gguf file, a hub name like owner/name, owner/name@revision or owner/name/file.gguf,
    /// or `banyan-tiny`, which is in this program. Without it: gpt2 from the cache or the hub, or else banyan-tiny.
    #[arg(long, env = "BANYAN_MODEL", value_name = "MODEL")]
    model: Option<String>,
    /// Takes random weights in the exact shape of a model, which are as fast as the real ones: gpt2 by default.
    #[arg(long, value_name = "SHAPE", num_args = 0..=1, default_missing_value = "gpt2", conflicts_with = "model")]
    random: Option<RandomShape>,
    /// The weights' types: auto, f32, bf16, q8, q4; each is measured.
    #[arg(long = "dtype", env = "BANYAN_DTYPE", value_name = "TYPE", value_delimiter = ',', default_value = "auto")]
    dtypes: Vec<Dtype>,
    /// What keys and values are kept as: auto, f32, f16 or q8.
    #[arg(long, env = "BANYAN_KV_DTYPE", value_name = "TYPE", default_value = "auto")]
    kv_dtype: KvDtype,
    /// Where to compute: auto, cpu or cuda:N.
    #[arg(long, env = "BANYAN_DEVICE", value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// CPU threads, by default as many as cores; each number is measured.
    #[arg(long, env = "BANYAN_THREADS", value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// How many sequences decode at once.
    #[arg(long = "batch", value_name = "N", value_delimiter = ',', default_values_t = Plan::default().batches, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batches: Vec<u32>,
    /// Prompt tokens of each sequence that decodes.
    #[arg(long, value_name = "N", default_value_t = Plan::default().prompt_tokens, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that each sequence decodes.
    #[arg(long = "new", value_name = "N", default_value_t = Plan::default().new_tokens, value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: u32,
    /// Prompt lengths for which to measure the time to the first token.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = Plan::default().first_token_prompts, value_parser = clap::value_parser!(u32).range(1..))]
    first_token: Vec<u32>,
    /// How often to measure each; the median is told.
    #[arg(long, value_name = "N", default_value_t = Plan::default().rounds, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Memory for the KV of all sequences, such as 2GB or 512MiB; by default a quarter of what is available at the most.
    #[arg(long, env = "BANYAN_KV_MEMORY", value_name = "SIZE", value_parser = args::size)]
    kv_memory: Option<u64>,
    /// Shows where the time goes, kernel by kernel, and how near each is to the machine's limits.
    #[arg(long)]
    profile: bool,
    /// Measures the largest batch over HTTP too: one node behind a root and an API.
    #[arg(long)]
    http: bool,
    /// Draws tokens a second over the batch sizes, as an SVG picture.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

/// Everything that was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) machine: Machine,
    pub(crate) runs: Vec<Run>,
}

/// One dtype with one number of threads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Until the model could compute, in seconds.
    pub(crate) load_s: f64,
    #[serde(flatten)]
    pub(crate) report: Report,
    /// The largest batch over HTTP.
    pub(crate) http: Option<load::Report>,
}

/// What is measured in a process of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Case {
    dtype: Dtype,
    threads: Option<u16>,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let cases = cases(&args);
    let runs = match cases[..] {
        [case] => vec![alone(args.clone(), case).await?],
        _ => {
            let mut runs = Vec::new();
            for case in cases {
                let threads =
                    case.threads.map_or_else(String::new, |threads| format!(", {}", output::count(threads.into(), "thread")));
                output::note(&format!("{}{threads} ...", case.dtype));
                runs.append(&mut child(&args, case).await?.runs);
            }
            runs
        }
    };
    let measured = Measured { machine: Machine::here(), runs };
    if let Some(path) = &args.plot {
        let failed =
            |error| Failure::new(Code::Error, anyhow::Error::new(error).context(format!("failed to write {}", path.display())));
        fs::write(path, plot::draw(&measured)).map_err(failed)?;
    }
    match args.output {
        Format::Json => output::print_json(&measured),
        Format::Table if args.profile => output::print(&(tables::overview(&measured) + "\n" + &tables::profiles(&measured))),
        Format::Table => output::print(&tables::overview(&measured)),
    }
}

fn cases(args: &Args) -> Vec<Case> {
    let threads: Vec<Option<u16>> =
        if args.threads.is_empty() { vec![None] } else { args.threads.iter().copied().map(Some).collect() };
    let of = |dtype: Dtype| threads.iter().map(move |&threads| Case { dtype, threads });
    args.dtypes.iter().flat_map(|&dtype| of(dtype).collect::<Vec<_>>()).collect()
}

/// This program again, with one case.
async fn child(args: &Args, case: Case) -> Result<Measured, Failure> {
    let own = std::env::current_exe().context("failed to find this program")?;
    let mut command = tokio::process::Command::new(own);
    command.args(["bench", "engine", "-o", "json", "--dtype", &case.dtype.to_string()]);
    command.args(["--device", &args.device.to_string(), "--kv-dtype", &args.kv_dtype.to_string()]);
    command.args(["--batch", &list(&args.batches), "--first-token", &list(&args.first_token)]);
    for (flag, number) in [("--prompt", args.prompt), ("--new", args.new_tokens), ("--rounds", args.rounds)] {
        command.args([flag, &number.to_string()]);
    }
    // What is in the environment and not wanted would come back.
    command.env_remove("BANYAN_THREADS");
    if let Some(threads) = case.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    if let Some(bytes) = args.kv_memory {
        command.args(["--kv-memory", &bytes.to_string()]);
    }
    if let Some(shape) = args.random {
        command.args(["--random", &shape.to_string()]).env_remove("BANYAN_MODEL");
    }
    if let Some(model) = &args.model {
        command.args(["--model", model]);
    }
    if args.http {
        command.arg("--http");
    }
    let done = command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output().await;
    let done = done.context("failed to start this program again")?;
    if !done.status.success() {
        return Err(Failure::told(Code::Error, format!("measuring {} failed: see above", case.dtype)));
    }
    Ok(serde_json::from_slice(&done.stdout).context("this program's report is no report")?)
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// One case, in this process.
async fn alone(args: Args, case: Case) -> Result<Run, Failure> {
    let clients = args.batches.iter().copied().max().unwrap_or(1) as u16;
    let http = args.http.then(|| load::Plan {
        pace: Pace::Closed { clients, rounds: args.rounds, time: None },
        prompt: args.prompt,
        new_tokens: args.new_tokens,
        endpoint: Endpoint::Completions,
        objective: Objective::default(),
    });
    let kv_memory = args.kv_memory;
    let measuring = tokio::task::spawn_blocking(move || measure(&args, case));
    let (model, load_s, report) = measuring.await.context("the benchmark ended")??;
    let http = match http {
        Some(plan) => Some(over_http(model, &report, clients, &plan, kv_memory).await?),
        None => None,
    };
    Ok(Run { load_s, report, http })
}

fn measure(args: &Args, case: Case) -> Result<(Arc<Model>, f64, Report), Failure> {
    let begun = std::time::Instant::now();
    let model = match args.random {
        Some(shape) => Model::random(shape, case.dtype, args.kv_dtype).map_err(anyhow::Error::new)?,
        None => {
            let (model, dtype, kv_dtype, device) = (args.model.clone(), case.dtype, args.kv_dtype, args.device);
            ModelArgs { models: model.into_iter().collect(), dtype, kv_dtype, device }.load(args.kv_memory, 1)?.swap_remove(0)
        }
    };
    let load_s = begun.elapsed().as_secs_f64();
    let plan = Plan {
        threads: case.threads.map(usize::from),
        kv_memory: args.kv_memory,
        batches: args.batches.clone(),
        prompt_tokens: args.prompt,
        new_tokens: args.new_tokens,
        first_token_prompts: args.first_token.clone(),
        rounds: args.rounds,
        ..Plan::default()
    };
    let model = Arc::new(model);
    let report = bench::run(&model, &plan).map_err(anyhow::Error::new)?;
    Ok((model, load_s, report))
}

/// The same load through an API, a root and a node.
async fn over_http(
    model: Arc<Model>,
    report: &Report,
    clients: u16,
    plan: &load::Plan,
    kv_memory: Option<u64>,
) -> Result<load::Report, Failure> {
    let options = Options {
        batch_max: clients.into(),
        threads: Some(report.threads.min(threads::available())),
        kv_memory,
        // As without HTTP.
        speculate: false,
        ..Options::default()
    };
    let engine = Engine::start(model, options).map_err(anyhow::Error::new)?;
    let name = report.model.clone();
    let served = Served::start(engine).await?;
    let seen = load::measure(&Arc::new(served.api.into()), &name, plan).await;
    served.stop().await;
    let seen = seen?;
    match &seen.error {
        None => Ok(seen),
        Some(error) => Err(anyhow::anyhow!("{} failed over HTTP: {error}", output::count(seen.failed as usize, "answer")).into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn read(line: &str) -> Args {
        Line::parse_from(std::iter::once("engine").chain(line.split(' ').filter(|word| !word.is_empty()))).args
    }

    #[test]
    fn every_dtype_is_measured_with_every_number_of_threads() {
        let case = |dtype, threads| Case { dtype, threads };
        assert_eq!(cases(&read("")), [case(Dtype::Auto, None)]);
        let all = [case(Dtype::F32, Some(1)), case(Dtype::F32, Some(2)), case(Dtype::Q8, Some(1)), case(Dtype::Q8, Some(2))];
        assert_eq!(cases(&read("--dtype f32,q8 --threads 1,2")), all);
    }

    #[test]
    fn random_weights_are_those_of_gpt2_unless_another_shape_is_named() {
        assert_eq!(read("--random --dtype q8").random, Some(RandomShape::Gpt2));
        assert_eq!(read("--random gpt2-large").random, Some(RandomShape::Gpt2Large));
        assert_eq!(read("").random, None);
    }
}
