//! `banyan bench quality`: what a smaller form of a model costs in perplexity and divergence from f32.

use std::path::PathBuf;

use anyhow::Context as _;
use banyan_engine::{
    DeviceChoice, Dtype, KvDtype,
    quality::{self, Plan, Report},
};

use crate::{
    exit::Failure,
    inference,
    output::{self, Format},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A folder in Hugging Face layout, a .gguf file, a hub name like owner/name, owner/name@revision or owner/name/file.gguf,
    /// or `banyan-tiny`. Without it: gpt2 from the cache or the hub, or else banyan-tiny.
    #[arg(long, env = "BANYAN_MODEL", value_name = "MODEL")]
    model: Option<String>,
    /// Where to compute: auto, cpu or cuda:N.
    #[arg(long, env = "BANYAN_DEVICE", value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// The text to predict; by default the first four chapters of 'Alice's Adventures in Wonderland'.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The types to compare with f32, of weights or of weights/keys and values, as in `q8/f16`; by default all that make sense.
    #[arg(long = "dtype", value_name = "TYPE", value_delimiter = ',', value_parser = types)]
    dtypes: Vec<(Dtype, KvDtype)>,
    /// Tokens of a window, each of which is read by itself; by default 1024, or the model's context where that is less.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    window: Option<u32>,
    /// Reads the text's first tokens only.
    #[arg(long = "tokens", value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    tokens_max: Option<u32>,
    /// CPU threads; by default as many as cores.
    #[arg(long, env = "BANYAN_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

/// `q8`, or `q8/f16`.
fn types(text: &str) -> Result<(Dtype, KvDtype), String> {
    let (dtype, kv_dtype) = text.split_once('/').unwrap_or((text, "auto"));
    let dtype = dtype.parse::<Dtype>().map_err(|error| error.to_string())?;
    Ok((dtype, kv_dtype.parse::<KvDtype>().map_err(|error| error.to_string())?))
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let format = args.output;
    let comparing = tokio::task::spawn_blocking(move || compare(&args));
    let report = comparing.await.context("the comparison ended")??;
    match format {
        Format::Json => output::print_json(&report),
        Format::Table => output::print(&draw(&report)),
    }
}

fn compare(args: &Args) -> Result<Report, Failure> {
    let text = match &args.text {
        None => quality::TEXT.to_owned(),
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?,
    };
    let plan = Plan {
        text,
        dtypes: if args.dtypes.is_empty() { Plan::default().dtypes } else { args.dtypes.clone() },
        window: args.window.map(|window| window as usize),
        tokens_max: args.tokens_max.map(|tokens| tokens as usize),
        device: args.device,
        threads: args.threads.map(usize::from),
    };
    let tenth = std::cell::Cell::new(0);
    let tell = |done: usize, all: usize| {
        if done * 10 / all > tenth.get() {
            tenth.set(done * 10 / all);
            output::note(&format!("{} %", tenth.get() * 10));
        }
    };
    Ok(quality::run(&inference::find(args.model.as_deref())?, &plan, &tell).map_err(anyhow::Error::new)?)
}

fn draw(report: &Report) -> String {
    let mut text = format!(
        "{} ({:.1} million parameters) on {} in windows of {}: perplexity {:.3} in f32\n\n",
        report.model,
        report.parameters as f64 / 1e6,
        output::count(report.tokens, "token"),
        report.window,
        report.perplexity
    );
    let header = ["TYPE", "KV", "PERPLEXITY", "CHANGE", "DIVERGENCE", "OF 99 % BELOW", "SAME CHOICE"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for row in &report.rows {
        rows.push(vec![
            row.dtype.clone(),
            row.kv_dtype.clone(),
            format!("{:.3}", row.perplexity),
            format!("{:+.3} %", row.perplexity_change * 100.0),
            format!("{:.6}", row.divergence),
            format!("{:.6}", row.divergence_p99),
            format!("{:.2} %", row.same_choice * 100.0),
        ]);
    }
    text.push_str(&output::table(&rows));
    text
}

#[cfg(test)]
mod tests {
    use banyan_engine::quality::Row;

    use super::*;

    #[test]
    fn a_report_is_a_line_and_a_table() {
        let report = Report {
            model: "tiny".into(),
            parameters: 8_900_000,
            tokens: 1023,
            window: 1024,
            perplexity: 20.0,
            rows: vec![Row {
                dtype: "q8".into(),
                kv_dtype: "f16".into(),
                perplexity: 20.05,
                perplexity_change: 0.0025,
                divergence: 0.0012,
                divergence_p99: 0.01,
                same_choice: 0.985,
            }],
        };
        let expected = "\
tiny (8.9 million parameters) on 1023 tokens in windows of 1024: perplexity 20.000 in f32

TYPE  KV   PERPLEXITY  CHANGE    DIVERGENCE  OF 99 % BELOW  SAME CHOICE
q8    f16  20.050      +0.250 %  0.001200    0.010000       98.50 %
";
        assert_eq!(draw(&report), expected);
    }
}
