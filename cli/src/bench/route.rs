//! `banyan bench route`: what the tree adds to a query, measured with an engine that costs nothing.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use banyan_engine::fake;
use banyan_node::{LaneLimits, Routing};
use bytes::Bytes;
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    bench::{
        compare,
        latencies::{Latencies, Summary},
        testbed::{Asker, Plan, Testbed},
    },
    exit::Failure,
    http::{Connection, Target},
    output::{self, Format},
};

/// Queries before anything is measured: connections are open and code is warm behind them.
const WARM_UP: usize = 200;
/// How many sequences the leaf runs at once, so that it is never what one waits for.
const SLOTS: u32 = 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many links lie between the root and the node that answers.
    #[arg(long = "depth", value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4], value_parser = clap::value_parser!(u8).range(1..=16))]
    depths: Vec<u8>,
    /// How many queries are on their way at once.
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u16).range(1..=1000))]
    concurrency: u16,
    /// How long each measurement takes.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = crate::args::duration)]
    time: Duration,
    /// Shows instead how long queries wait under the same load with this routing and with round-robin.
    #[arg(long, value_name = "ROUTING", value_enum)]
    compare: Option<Against>,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Against {
    Classic,
}

/// One way into one tree.
#[derive(Serialize)]
struct Measured {
    depth: u8,
    /// `tree`: at the root's gRPC service; `api`: through HTTP.
    at: &'static str,
    /// One query at a time: a query's whole way, with a one-token answer.
    alone: Summary,
    concurrency: u16,
    /// Under load.
    queries_per_second: f64,
    loaded: Summary,
}

#[derive(Serialize)]
struct Report {
    measured: Vec<Measured>,
    /// What one more link costs a lone query, in microseconds; none where one depth was measured.
    hop_us: Option<f64>,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    if let Some(Against::Classic) = args.compare {
        return compare::run(args.time, args.output).await;
    }
    let mut measured = Vec::new();
    for depth in &args.depths {
        output::note(&format!("depth {depth} ..."));
        let testbed = Testbed::start(chain(*depth), Routing::RoundRobin, LaneLimits::default()).await?;
        let outcome = measure(&testbed, *depth, &args).await;
        testbed.stop().await;
        measured.extend(outcome?);
    }
    let report = Report { hop_us: hop(&measured), measured };
    match args.output {
        Format::Json => output::print_json(&report),
        Format::Table => output::print(&draw(&report)),
    }
}

/// A branch whose last node answers; those between are busy, and pass everything on.
fn chain(depth: u8) -> Vec<Plan> {
    let node = |at: u8| if at == 0 { "root".to_owned() } else { format!("n{at}") };
    let plan = |at: u8| {
        if at < depth {
            return Plan::blocked(node(at), node(at - 1));
        }
        let engine = fake::Options { batch_max: SLOTS, ..fake::Options::default() };
        Plan { name: node(at), parent: node(at - 1), engine, busy_at: None, blocked: false }
    };
    (1..=depth).map(plan).collect()
}

async fn measure(testbed: &Testbed, depth: u8, args: &Args) -> anyhow::Result<[Measured; 2]> {
    let asker = Asker::dial(&testbed.root).await?;
    let ask = |asker: Asker| async move {
        let asked = Instant::now();
        asker.ask("one", 1).await?;
        Ok((asked.elapsed(), asker))
    };
    let askers = vec![asker; usize::from(args.concurrency)];
    let tree = both(depth, "tree", askers, args, ask).await?;

    let target = Arc::new(Target::from(testbed.api));
    let mut connections = Vec::new();
    for _ in 0..args.concurrency {
        connections.push(Connection::open(&target).await?);
    }
    let body = Bytes::from_static(br#"{"model":"fake","prompt":"one","max_tokens":1,"seed":1,"temperature":0}"#);
    let post = move |mut connection: Connection| {
        let body = body.clone();
        async move {
            let asked = Instant::now();
            connection.post("/completions", body).await?;
            Ok((asked.elapsed(), connection))
        }
    };
    let api = both(depth, "api", connections, args, post).await?;
    Ok([tree, api])
}

/// Measures one query at a time, and then as many at once as there are clients.
async fn both<C, F, W>(depth: u8, at: &'static str, mut clients: Vec<C>, args: &Args, ask: F) -> anyhow::Result<Measured>
where
    C: Send + 'static,
    F: Fn(C) -> W + Clone + Send + 'static,
    W: Future<Output = anyhow::Result<(Duration, C)>> + Send,
{
    let mut client = clients.pop().context("there is at least one client")?;
    for _ in 0..WARM_UP {
        (_, client) = ask(client).await?;
    }
    let mut alone = Latencies::default();
    let begun = Instant::now();
    while begun.elapsed() < args.time {
        let latency;
        (latency, client) = ask(client).await?;
        alone.push(latency);
    }
    clients.push(client);

    let begun = Instant::now();
    let end = begun + args.time;
    let mut workers = JoinSet::new();
    for mut client in clients {
        let ask = ask.clone();
        workers.spawn(async move {
            let mut latencies = Latencies::default();
            while Instant::now() < end {
                let latency;
                (latency, client) = ask(client).await?;
                latencies.push(latency);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut loaded = Latencies::default();
    while let Some(worker) = workers.join_next().await {
        loaded.append(worker.context("a client panicked")??);
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let loaded = loaded.summary();
    let queries_per_second = loaded.count as f64 / elapsed;
    Ok(Measured { depth, at, alone: alone.summary(), concurrency: args.concurrency, queries_per_second, loaded })
}

/// The slope between the shallowest and the deepest tree.
fn hop(measured: &[Measured]) -> Option<f64> {
    let tree = || measured.iter().filter(|one| one.at == "tree");
    let shallow = tree().min_by_key(|one| one.depth)?;
    let deep = tree().max_by_key(|one| one.depth)?;
    let links = deep.depth.checked_sub(shallow.depth).filter(|links| *links > 0)?;
    Some((deep.alone.p50_us - shallow.alone.p50_us) / f64::from(links))
}

fn draw(report: &Report) -> String {
    let heads = ["DEPTH", "AT", "ALONE p50", "p99", "QUERIES/s", "AT ONCE", "LOADED p50", "p99"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let us = |us: f64| output::microseconds(us.round() as u64);
    for one in &report.measured {
        rows.push(vec![
            one.depth.to_string(),
            one.at.to_owned(),
            us(one.alone.p50_us),
            us(one.alone.p99_us),
            format!("{:.0}", one.queries_per_second),
            one.concurrency.to_string(),
            us(one.loaded.p50_us),
            us(one.loaded.p99_us),
        ]);
    }
    let mut text = output::table(&rows);
    if let Some(hop) = report.hop_us {
        text.push_str(&format!("each further link adds {} to a lone query (p50)\n", us(hop.max(0.0))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(depth: u8, p50_us: f64) -> Measured {
        let alone = Summary { count: 1, mean_us: p50_us, p50_us, p90_us: p50_us, p99_us: p50_us, max_us: p50_us };
        Measured { depth, at: "tree", alone, concurrency: 1, queries_per_second: 1.0, loaded: alone }
    }

    #[test]
    fn only_the_end_of_a_chain_has_room() {
        let plans = chain(3);
        let shape: Vec<(&str, &str, bool)> =
            plans.iter().map(|plan| (plan.name.as_str(), plan.parent.as_str(), plan.blocked)).collect();
        assert_eq!(shape, [("n1", "root", true), ("n2", "n1", true), ("n3", "n2", false)]);
    }

    #[test]
    fn a_links_cost_is_the_slope_over_the_depths() {
        assert_eq!(hop(&[measured(1, 100.0), measured(2, 999.0), measured(4, 190.0)]), Some(30.0));
        assert_eq!(hop(&[measured(2, 100.0)]), None);
    }
}
