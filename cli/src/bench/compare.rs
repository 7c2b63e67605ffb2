//! Waiting times under the same load: routing by local knowledge alone, against routing by what subtrees report.
//!
//! The load is the same to the microsecond for each: arrivals and answers' lengths are drawn once. Most answers are short
//! and a few are long, as in real use; so somewhere in the tree there is room nearly always, and the question is whether
//! a query gets there.

use std::time::Duration;

use anyhow::Context as _;
use banyan_engine::fake;
use banyan_node::{LaneLimits, Routing};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    bench::{
        latencies::{Latencies, Summary},
        testbed::{Asker, Plan, Testbed},
    },
    exit::Failure,
    output::{self, Format},
};

/// A step of the engine; long against the tree's own time, so that what is measured is waiting.
const TOKEN_TIME: Duration = Duration::from_millis(5);
/// Sequences that a node runs together.
const SLOTS: u32 = 2;
/// Two branches of three nodes: a busy inner node has children to choose from.
const NODES: [(&str, &str); 6] = [("a", "root"), ("b", "root"), ("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")];
/// Most answers are short, one in so many is long.
const SHORT: u32 = 4;
const LONG: u32 = 80;
const ONE_LONG_IN: u32 = 10;
/// The share of the tree's slots that the load would keep busy if nothing ever waited.
const UTILISATION: f64 = 0.6;
const SEED: u64 = 20_26;

/// One query of the load.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Arrival {
    at: Duration,
    tokens: u32,
}

#[derive(Serialize)]
struct Row {
    routing: String,
    busy_at: u32,
    /// From asking to the first token, less one step.
    wait: Summary,
}

pub(crate) async fn run(time: Duration, format: Format) -> Result<(), Failure> {
    let load = load(time.max(Duration::from_secs(1)));
    let mut rows = Vec::new();
    for (routing, busy_at) in [(Routing::Classic, 1), (Routing::Classic, SLOTS), (Routing::RoundRobin, SLOTS)] {
        output::note(&format!("{routing}, busy at {busy_at}: {} queries ...", load.len()));
        let testbed = Testbed::start(plans(busy_at), routing, LaneLimits::default()).await?;
        let waits = waits(&testbed, &load).await;
        testbed.stop().await;
        rows.push(Row { routing: routing.to_string(), busy_at, wait: waits? });
    }
    match format {
        Format::Json => output::print_json(&rows),
        Format::Table => output::print(&draw(&rows)),
    }
}

fn plans(busy_at: u32) -> Vec<Plan> {
    let engine = fake::Options { batch_max: SLOTS, token_time: TOKEN_TIME, ..fake::Options::default() };
    let plan = |(name, parent): (&str, &str)| Plan {
        name: name.to_owned(),
        parent: parent.to_owned(),
        engine: engine.clone(),
        busy_at: Some(busy_at),
        blocked: false,
    };
    NODES.map(plan).into()
}

/// Arrivals at random (a Poisson process), at the rate that gives the utilisation.
fn load(time: Duration) -> Vec<Arrival> {
    let mut random = StdRng::seed_from_u64(SEED);
    let mean_tokens = (f64::from(SHORT) * f64::from(ONE_LONG_IN - 1) + f64::from(LONG)) / f64::from(ONE_LONG_IN);
    let slots = f64::from(SLOTS) * NODES.len() as f64;
    let rate = UTILISATION * slots / (mean_tokens * TOKEN_TIME.as_secs_f64());
    let mut at = 0.0;
    let mut arrivals = Vec::new();
    loop {
        // The gap between arrivals is exponential; 1 - u is in (0, 1].
        at -= (1.0 - random.random::<f64>()).ln() / rate;
        let tokens = if random.random_range(0..ONE_LONG_IN) == 0 { LONG } else { SHORT };
        let at = Duration::from_secs_f64(at);
        if at > time {
            return arrivals;
        }
        arrivals.push(Arrival { at, tokens });
    }
}

async fn waits(testbed: &Testbed, load: &[Arrival]) -> anyhow::Result<Summary> {
    let asker = Asker::dial(&testbed.root).await?;
    let begun = Instant::now();
    let mut asking = JoinSet::new();
    for arrival in load.iter().copied() {
        let asker = asker.clone();
        asking.spawn(async move {
            tokio::time::sleep_until(begun + arrival.at).await;
            asker.ask(&format!("[[count {}]]", arrival.tokens), arrival.tokens).await
        });
    }
    let mut waits = Latencies::default();
    while let Some(asked) = asking.join_next().await {
        waits.push(asked.context("a client panicked")??.saturating_sub(TOKEN_TIME));
    }
    Ok(waits.summary())
}

fn draw(rows: &[Row]) -> String {
    let mut table = vec![["ROUTING", "BUSY AT", "QUERIES", "WAIT mean", "p50", "p90", "p99", "max"].map(str::to_owned).to_vec()];
    let us = |us: f64| output::microseconds(us.round() as u64);
    for row in rows {
        let wait = row.wait;
        table.push(vec![
            row.routing.clone(),
            row.busy_at.to_string(),
            wait.count.to_string(),
            us(wait.mean_us),
            us(wait.p50_us),
            us(wait.p90_us),
            us(wait.p99_us),
            us(wait.max_us),
        ]);
    }
    output::table(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_the_same_every_time_and_as_heavy_as_it_says() {
        let time = Duration::from_secs(200);
        let arrivals = load(time);
        assert_eq!(arrivals, load(time));
        let busy: f64 = arrivals.iter().map(|arrival| f64::from(arrival.tokens) * TOKEN_TIME.as_secs_f64()).sum();
        let utilisation = busy / (time.as_secs_f64() * f64::from(SLOTS) * NODES.len() as f64);
        assert!((0.5..0.7).contains(&utilisation), "{utilisation}");
    }
}
