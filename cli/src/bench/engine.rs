//! `banyan bench engine`: how fast the engine decodes and prefills here, with no tree around it.

use std::sync::Arc;

use anyhow::Context as _;
use banyan_engine::{
    Model,
    bench::{self, Plan, Report},
};

use crate::{
    exit::Failure,
    inference::ModelArgs,
    output::{self, Format},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Takes random weights in the exact shape of gpt2 (124 million parameters) instead of a model: as fast as the real one.
    #[arg(long, conflicts_with = "model")]
    random: bool,
    /// How many sequences decode at once.
    #[arg(long = "batch", value_name = "N", value_delimiter = ',', default_values_t = Plan::default().batches, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batches: Vec<u32>,
    /// Prompt tokens of each sequence that decodes.
    #[arg(long, value_name = "N", default_value_t = Plan::default().prompt_tokens, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that each sequence decodes.
    #[arg(long = "new", value_name = "N", default_value_t = Plan::default().new_tokens, value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: u32,
    /// How often to measure each; the median is told.
    #[arg(long, value_name = "N", default_value_t = Plan::default().rounds, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// CPU threads; by default as many as cores.
    #[arg(long, env = "BANYAN_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let format = args.output;
    let measuring = tokio::task::spawn_blocking(move || measure(&args));
    let report = measuring.await.context("the benchmark ended")??;
    match format {
        Format::Json => output::print_json(&report),
        Format::Table => output::print(&draw(&report)),
    }
}

fn measure(args: &Args) -> Result<Report, Failure> {
    let model = match args.random {
        true => Model::random(args.model.dtype).map_err(anyhow::Error::new)?,
        false => args.model.load()?,
    };
    let plan = Plan {
        threads: args.threads.map(usize::from),
        batches: args.batches.clone(),
        prompt_tokens: args.prompt,
        new_tokens: args.new_tokens,
        rounds: args.rounds,
        ..Plan::default()
    };
    Ok(bench::run(&Arc::new(model), &plan).map_err(anyhow::Error::new)?)
}

fn draw(report: &Report) -> String {
    let mut text = format!(
        "{} in {} on {} ({}), {}\n\n",
        report.model,
        report.dtype,
        report.device,
        report.kernels,
        output::count(report.threads, "thread")
    );
    let mut rows = vec![["BATCH", "TOKENS/s", "WITH PROMPTS"].map(str::to_owned).to_vec()];
    for row in &report.decode {
        rows.push(vec![
            row.batch.to_string(),
            format!("{:.1}", row.tokens_per_s),
            format!("{:.1}", row.tokens_per_s_with_prompts),
        ]);
    }
    text.push_str(&output::table(&rows));
    text.push('\n');
    let mut rows = vec![["PROMPT", "FIRST TOKEN"].map(str::to_owned).to_vec()];
    for row in &report.first_token {
        let after = output::microseconds((row.ms * 1e3) as u64);
        rows.push(vec![output::count(row.prompt_tokens as usize, "token"), after]);
    }
    text.push_str(&output::table(&rows));
    if let Some(bytes) = report.memory_peak_bytes {
        text.push_str(&format!("\npeak memory {:.0} MB", bytes as f64 / 1e6));
    }
    text
}

#[cfg(test)]
mod tests {
    use banyan_engine::bench::{Decode, FirstToken};

    use super::*;

    #[test]
    fn a_report_is_two_tables_and_the_memory() {
        let report = Report {
            model: "gpt2".into(),
            dtype: "f32".into(),
            device: "cpu".into(),
            kernels: "avx2".into(),
            threads: 2,
            decode: vec![Decode { batch: 8, tokens_per_s: 123.45, tokens_per_s_with_prompts: 100.0 }],
            first_token: vec![FirstToken { prompt_tokens: 32, ms: 12.34 }],
            memory_first_batch_bytes: None,
            memory_peak_bytes: Some(812_000_000),
        };
        let expected = "\
gpt2 in f32 on cpu (avx2), 2 threads

BATCH  TOKENS/s  WITH PROMPTS
8      123.5     100.0

PROMPT     FIRST TOKEN
32 tokens  12.3 ms

peak memory 812 MB";
        assert_eq!(draw(&report), expected);
    }
}
