//! `banyan bench overload`: what a tree does when more is asked of it than it can serve, and what it takes over time.
//!
//! Clients come at their times whatever became of those before them, as in life. Who is refused and told when to come back does so,
//! once, at exactly that time, beside those who come anyway.

mod clients;
mod memory;

use std::{sync::Arc, time::Duration};

use banyan_engine::fake;
use banyan_node::{LaneLimits, Routing};
use serde::Serialize;

use self::{
    clients::{Crowd, Seen},
    memory::{Memory, Slope},
};
use crate::{
    bench::{
        latencies::Summary,
        load,
        testbed::{Plan, Testbed},
    },
    exit::Failure,
    http::Target,
    output::{self, Format},
};

/// A soak's load, of what the tree can serve.
const SOAK: f64 = 0.8;
/// The peak is measured no longer than that.
const PEAK: Duration = Duration::from_secs(10);
/// The part of a soak after which its memory is watched: before that what is bounded fills, some tables in large steps.
const SETTLING: f64 = 0.5;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The API to load; without it, a tree of fake engines in this process.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The model to ask for; by default the first that GET /v1/models lists.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// How much is asked, in multiples of what the tree can serve, which is measured first.
    #[arg(long = "at", value_name = "X", value_delimiter = ',', default_values_t = [1.0, 2.0, 5.0, 10.0])]
    loads: Vec<f64>,
    /// How long each is measured.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = crate::args::duration)]
    time: Duration,
    /// Instead, asks for four fifths of what can be served, that long, and watches the memory.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1440))]
    minutes: Option<u32>,
    /// The process whose memory is watched, with --url; by default this one.
    #[arg(long, value_name = "PID", requires = "url")]
    pid: Option<u32>,
    /// Tokens of each answer.
    #[arg(long = "new", value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..))]
    new_tokens: u32,
    /// Nodes of the tree.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=64))]
    nodes: u8,
    /// Sequences that each runs together.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// How long they take for a token.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = crate::args::duration)]
    token_time: Duration,
    /// Queries that may wait at the tree's root.
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..))]
    lane_entries: u32,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

#[derive(Serialize)]
struct Report {
    /// What the tree serves when as many ask as it runs together, and half as many more: answers a second.
    peak: f64,
    measured: Vec<Measured>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Slope>,
}

#[derive(Serialize)]
struct Measured {
    /// Of the peak.
    load: f64,
    /// Those who came by themselves, a second.
    offered_per_s: f64,
    /// Answers that came to their end, a second.
    served_per_s: f64,
    /// Of the peak.
    goodput: f64,
    refused_per_s: f64,
    /// From asking to being refused.
    refused: Summary,
    /// How long they were told to wait, in seconds.
    told_s_mean: f64,
    /// Who came back at exactly the time that they were told, and how many of them were let in.
    came_back: u64,
    let_in: u64,
    /// Of those who were answered.
    first_token: Summary,
    /// From one token to the next: each answer's mean.
    each_token: Summary,
    /// Answers that ended in an error, or never began for another reason than overload; and the first one's words.
    failed: u64,
    error: Option<String>,
    /// How late the clients themselves were: they share the machine with the tree.
    client_late: Summary,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let (testbed, target) = match &args.url {
        Some(url) => (None, Target::find(url, None).await?),
        None => {
            let testbed = Testbed::start(plans(&args), Routing::RoundRobin, lanes(&args)).await?;
            let target = testbed.api.into();
            (Some(testbed), target)
        }
    };
    let outcome = measure(&args, Arc::new(target)).await;
    if let Some(testbed) = testbed {
        testbed.stop().await;
    }
    let report = outcome?;
    match args.output {
        Format::Json => output::print_json(&report),
        Format::Table => output::print(&draw(&report)),
    }
}

fn plans(args: &Args) -> Vec<Plan> {
    let engine = fake::Options {
        batch_max: args.batch.into(),
        token_time: args.token_time,
        tokens_default: args.new_tokens,
        ..fake::Options::default()
    };
    let node = |at: u8| Plan {
        name: format!("n{at}"),
        parent: "root".to_owned(),
        engine: engine.clone(),
        busy_at: None,
        blocked: false,
    };
    (1..=args.nodes).map(node).collect()
}

fn lanes(args: &Args) -> LaneLimits {
    LaneLimits { entries: args.lane_entries as usize, ..LaneLimits::default() }
}

async fn measure(args: &Args, target: Arc<Target>) -> Result<Report, Failure> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => load::first_model(&target).await?,
    };
    let crowd = Crowd::new(target, model, args.new_tokens);
    let at_once = u32::from(args.nodes) * u32::from(args.batch) * 3 / 2;
    output::note(&format!("what the tree can serve, with {at_once} clients ..."));
    let peak = crowd.peak(at_once, args.time.min(PEAK)).await?;
    let mut report = Report { peak, measured: Vec::new(), memory: None };
    if let Some(minutes) = args.minutes {
        let time = Duration::from_secs(60 * u64::from(minutes));
        output::note(&format!("{:.1} queries a second for {minutes} min ...", SOAK * peak));
        let memory = Memory::of(args.pid)?;
        let watching = tokio::spawn(memory.watch(time.mul_f64(SETTLING), time));
        let seen = crowd.load(SOAK * peak, time).await;
        report.measured.push(measured(SOAK, peak, time, &seen));
        report.memory = watching.await.map_err(anyhow::Error::new)?;
        return Ok(report);
    }
    for &load in &args.loads {
        output::note(&format!("{:.0} queries a second ...", load * peak));
        let seen = crowd.load(load * peak, args.time).await;
        report.measured.push(measured(load, peak, args.time, &seen));
    }
    Ok(report)
}

fn measured(load: f64, peak: f64, time: Duration, seen: &Seen) -> Measured {
    let per_s = |count: u64| count as f64 / time.as_secs_f64();
    Measured {
        load,
        offered_per_s: per_s(seen.offered),
        served_per_s: per_s(seen.served),
        goodput: per_s(seen.served) / peak,
        refused_per_s: per_s(seen.refused.summary().count as u64),
        refused: seen.refused.summary(),
        told_s_mean: seen.told.summary().mean_us / 1e6,
        came_back: seen.came_back,
        let_in: seen.let_in,
        first_token: seen.first_token.summary(),
        each_token: seen.each_token.summary(),
        failed: seen.failed,
        error: seen.error.clone(),
        client_late: seen.late.summary(),
    }
}

fn draw(report: &Report) -> String {
    let heads = [
        "LOAD",
        "ASKED/s",
        "SERVED/s",
        "OF PEAK",
        "REFUSED/s",
        "in p50",
        "p99",
        "TOLD",
        "CAME BACK",
        "LET IN",
        "FIRST p50",
        "p99",
        "TOKEN p50",
        "p99",
        "FAILED",
        "CLIENT p99",
    ];
    let us = |us: f64| output::microseconds(us.round() as u64);
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for one in &report.measured {
        let let_in = match one.came_back {
            0 => "-".to_owned(),
            came_back => format!("{:.1} %", 100.0 * one.let_in as f64 / came_back as f64),
        };
        rows.push(vec![
            format!("{}x", one.load),
            format!("{:.0}", one.offered_per_s),
            format!("{:.1}", one.served_per_s),
            format!("{:.1} %", 100.0 * one.goodput),
            format!("{:.0}", one.refused_per_s),
            us(one.refused.p50_us),
            us(one.refused.p99_us),
            format!("{:.0} s", one.told_s_mean),
            one.came_back.to_string(),
            let_in,
            us(one.first_token.p50_us),
            us(one.first_token.p99_us),
            us(one.each_token.p50_us),
            us(one.each_token.p99_us),
            one.failed.to_string(),
            us(one.client_late.p99_us),
        ]);
    }
    let mut text = format!("{:.1} answers/s at the peak\n\n{}", report.peak, output::table(&rows));
    for one in report.measured.iter().filter_map(|one| one.error.as_ref()).take(1) {
        text.push_str(&format!("the first that failed: {one}\n"));
    }
    if let Some(memory) = &report.memory {
        text.push_str(&format!("{memory}\n"));
    }
    text
}
