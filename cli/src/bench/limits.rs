//! `banyan bench limits`: what this machine could do at best.

use anyhow::Context as _;
use banyan_engine::{
    limits::{Limits, Meter},
    threads,
};

use crate::{
    bench::tables,
    exit::{Code, Failure},
    output::{self, Format},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// CPU threads; by default as many as cores.
    #[arg(long, env = "BANYAN_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// How often to measure.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let format = args.output;
    let all = tokio::task::spawn_blocking(move || measure(&args)).await.context("the measurement ended")??;
    match format {
        Format::Json => output::print_json(&all),
        Format::Table => {
            let threads = all.first().map_or(0, |limits| limits.threads);
            output::print(&format!("{}. {}", output::count(threads, "thread"), tables::said(&all)))
        }
    }
}

fn measure(args: &Args) -> Result<Vec<Limits>, Failure> {
    let meter = Meter::new(args.threads.map_or_else(threads::available, usize::from)).context("failed to start threads")?;
    let all = (0..args.rounds).map(|_| meter.measure()).collect::<Option<Vec<_>>>();
    all.ok_or_else(|| Failure::told(Code::Error, "the system has no 256 MiB of memory to read"))
}
